"""What single tokens write, and the completions whose tokens' own texts join to them."""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from stepcredit.batch.ranges import Ranges
from stepcredit.signals.decoding import can_be_remembered

AUDIT = 256  # tokens after which, again and again, the whole prefix is decoded and compared
REPLACEMENT = "\ufffd"  # what decoders write for bytes that are not UTF-8 (or not yet)

Decode = Callable[[list[int]], str]
_Array = np.ndarray[Any, np.dtype[Any]]
_OPENING, _BEHIND = 0, 1  # a decoder may drop the space before the first word that it writes: that token is special


class Pieces:
    """The texts of a tokenizer's single tokens, those that were met so far, on one axis of characters."""

    def __init__(self) -> None:
        self._number = np.full((2, 0), -1)  # [opening or behind, token id] -> the number of its text; -1: not met
        self._texts: list[str] = []
        self._begins = np.zeros(1, np.int64)  # [texts + 1], where the characters of each begin
        self._characters = _code_points([])

    @classmethod
    def of(cls, tokenizer: Any, *, skip_special_tokens: bool) -> "Pieces":
        """Those of a tokenizer, remembered while it lives, if it can be."""
        if not can_be_remembered(tokenizer):
            return cls()
        return _OF.setdefault(tokenizer, {}).setdefault(skip_special_tokens, cls())

    def joined(self, token_ids: Sequence[list[int]], texts: Sequence[str], decode: Decode) -> list[Ranges | None]:
        """The ranges of each completion whose tokens' own texts join to it; None where not, or a character is cut.

        Args:
            token_ids: Shape: [batch][tokens].
            texts: Shape: [batch].
            decode: Asked for tokens that were not met, and every 256 tokens for all up to there.
        """
        sizes, places = _lengths(token_ids), _lengths(texts)
        ids = np.fromiter(chain.from_iterable(token_ids), np.int64, int(sizes.sum()))
        if ids.min(initial=0) < 0:
            return [None] * len(texts)
        numbers = self._numbers(ids, sizes)
        if numbers.min(initial=0) < 0:
            self._meet(token_ids, decode)
            numbers = self._numbers(ids, sizes)
        lengths = np.diff(self._begins)[numbers]
        opens = np.cumsum(sizes + 1) - sizes - 1  # a completion has one bound more than it has tokens
        inside = np.ones(ids.size + sizes.size, bool)
        inside[opens] = False
        bounds = np.zeros(inside.size, np.int64)
        bounds[inside] = lengths
        bounds = np.cumsum(bounds)
        bounds -= np.repeat(bounds[opens], sizes + 1)
        same = bounds[opens + sizes] == places
        if not same.all():  # only those of the right length are compared
            of_same = np.repeat(same, sizes)
            numbers, lengths = numbers[of_same], lengths[of_same]
        there = np.repeat(self._begins[numbers] - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
        written = _code_points([text for text, fits in zip(texts, same.tolist(), strict=True) if fits])
        wrong = (self._characters[there] != written) | (written == ord(REPLACEMENT))
        if wrong.any():
            same[np.repeat(np.flatnonzero(same), places[same])[wrong]] = False
        found: list[Ranges | None] = []
        for row, (fits, low, size) in enumerate(zip(same.tolist(), opens.tolist(), sizes.tolist(), strict=True)):
            own = bounds[low : low + size + 1]
            audits = range(AUDIT, size, AUDIT) if fits else ()
            fits = fits and all(decode(token_ids[row][:n]) == texts[row][: own[n]] for n in audits)
            found.append(Ranges(own) if fits else None)
        return found

    def _numbers(self, ids: _Array, sizes: _Array) -> _Array:
        """The number of each token's text."""
        missing = int(ids.max(initial=-1)) + 1 - self._number.shape[1]
        if missing > 0:
            self._number = np.pad(self._number, ((0, 0), (0, missing)), constant_values=-1)
        numbers: _Array = self._number[_BEHIND][ids]
        silent = np.diff(self._begins) == 0
        stops = np.cumsum(sizes)
        at, stops = (stops - sizes)[sizes > 0], stops[sizes > 0]
        while at.size:  # up to the first that writes
            numbers[at] = number = self._number[_OPENING][ids[at]]
            more = (number >= 0) & (at + 1 < stops)
            more[more] = silent[number[more]]
            at, stops = at[more] + 1, stops[more]
        return numbers

    def _meet(self, token_ids: Sequence[list[int]], decode: Decode) -> None:
        """Asks what tokens write that were not met: alone, up to the first that writes, and behind that one."""
        opening, behind = self._number
        for ids in token_ids:
            opener = -1
            for opener in ids:
                if opening[opener] < 0:
                    opening[opener] = self._add(decode([opener]))
                if self._texts[opening[opener]]:
                    break
            for token in {*ids}:
                if behind[token] < 0:
                    alone, both = decode([opener]), decode([opener, token])
                    behind[token] = self._add(both[len(alone) :] if both.startswith(alone) else REPLACEMENT)
        self._begins = np.cumsum([0, *map(len, self._texts)])
        self._characters = _code_points(self._texts)

    def _add(self, text: str) -> int:
        self._texts.append(text)
        return len(self._texts) - 1


_OF: WeakKeyDictionary[Any, dict[bool, Pieces]] = WeakKeyDictionary()


def _lengths(rows: Sequence[Any]) -> _Array:
    return np.fromiter(map(len, rows), np.int64, len(rows))


def _code_points(texts: Sequence[str]) -> _Array:
    return np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
