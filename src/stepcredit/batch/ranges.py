"""Characters of a completion: one span, and spans that stand one behind the other, of which one place each is kept."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, overload

import numpy as np


class Span(NamedTuple):
    """Characters ``[start, end)`` of one completion; a Python slice of the exact completion text."""

    start: int
    end: int


class ScoredSpan(NamedTuple):
    """A character span and the process score that a signal gives it (unit: the signal's own)."""

    start: int
    end: int
    score: float


_scored_span = partial(tuple.__new__, ScoredSpan)  # of a tuple, in half the time


class Ranges(Sequence[tuple[int, int]]):
    """For each token of a completion its characters ``(start, end)``, where each starts at the end of the one before.

    It reads as the list of these pairs, which is not made unless somebody asks for one. In order by construction.

    Args:
        bounds: Where the tokens begin, and where the last one ends: integers that begin at 0 and never decrease.
            Shape: [tokens + 1].

    Attributes:
        bounds: The same, as an array of int64.

    Example:
        >>> ranges = Ranges([0, 2, 5, 5])
        >>> list(ranges), ranges[1], len(ranges), ranges == [(0, 2), (2, 5), (5, 5)]
        ([(0, 2), (2, 5), (5, 5)], (2, 5), 3, True)
    """

    __slots__ = ("bounds",)

    def __init__(self, bounds: Sequence[int] | np.ndarray[Any, np.dtype[np.int64]]) -> None:
        self.bounds = np.asarray(bounds, np.int64)

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return pairwise(self.bounds.tolist())

    @overload
    def __getitem__(self, index: int) -> tuple[int, int]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[int, int]]: ...
    def __getitem__(self, index: int | slice) -> tuple[int, int] | list[tuple[int, int]]:
        return list(self)[index]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Ranges):
            return np.array_equal(self.bounds, other.bounds)
        return isinstance(other, list) and list(self) == other

    __hash__ = None  # type: ignore[assignment]  # as a list has none

    def __repr__(self) -> str:
        return repr(list(self))


class ScoredRanges(Sequence[ScoredSpan]):
    """Scored spans of which the first starts at 0 and each other one at the end of the one before.

    It reads as the tuple of these spans, which is not made unless somebody asks for one. In order by construction.

    Args:
        ends: Where the spans end: integers from 0 on that never decrease. Shape: [spans].
        scores: Their scores. Shape: [spans].

    Attributes:
        ends: The same.
        scores: The same.

    Example:
        >>> ranges = ScoredRanges([2, 5], [1.0, 0.0])
        >>> ranges[1], len(ranges), ranges == (ScoredSpan(0, 2, 1.0), ScoredSpan(2, 5, 0.0))
        (ScoredSpan(start=2, end=5, score=0.0), 2, True)
    """

    __slots__ = ("ends", "scores")

    def __init__(self, ends: list[int], scores: list[float]) -> None:
        self.ends, self.scores = ends, scores

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[ScoredSpan]:
        return map(_scored_span, zip([0, *self.ends], self.ends, self.scores, strict=False))

    @overload
    def __getitem__(self, index: int) -> ScoredSpan: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[ScoredSpan, ...]: ...
    def __getitem__(self, index: int | slice) -> ScoredSpan | tuple[ScoredSpan, ...]:
        return tuple(self)[index]

    def __eq__(self, other: object) -> bool:
        return tuple(self) == (tuple(other) if isinstance(other, ScoredRanges) else other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))
