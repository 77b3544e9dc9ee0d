"""The characters of tokens that join to their text: one place a token, where it ends."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, overload

import numpy as np


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
