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
_MARK = "\0"  # stands between tokens for a moment

Decode = Callable[[list[int]], str]


class Pieces:
    """The texts of a tokenizer's single tokens, those that were met so far.

    A decoder may drop the space before the first word that it writes, so a token has two: as one that opens a
    completion, up to the first that writes something, and behind that one.
    """

    def __init__(self) -> None:
        self._opening: dict[int, str] = {}
        self._behind: dict[int, str] = {}

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
        parts = self._parts(token_ids)
        try:
            marked = _MARK.join(parts)  # type: ignore[arg-type]
        except TypeError:  # of a token that was not met
            for ids in token_ids:
                self._meet(ids, decode)
            parts = [REPLACEMENT if part is None else part for part in self._parts(token_ids)]  # joins to nothing
            marked = _MARK.join(parts)  # type: ignore[arg-type]
        lengths = _lengths_between(marked, len(parts))
        if lengths is None:  # a token writes the mark itself
            whole, lengths = "".join(parts), np.fromiter(map(len, parts), np.int64, len(parts))  # type: ignore[arg-type]
        else:
            whole = marked.replace(_MARK, "")
        sizes = np.fromiter(map(len, token_ids), np.int64, len(token_ids)) + 1  # bounds are one more than tokens
        opens = np.cumsum(sizes) - sizes
        bounds = np.zeros(len(parts) + len(token_ids), np.int64)
        behind = np.ones(bounds.size, bool)
        behind[opens] = False
        bounds[behind] = lengths
        bounds = np.cumsum(bounds)
        begins = bounds[opens]
        bounds -= np.repeat(begins, sizes)
        closes = opens + sizes
        fits = bounds[closes - 1] == np.fromiter(map(len, texts), np.int64, len(texts))
        all_join = bool(fits.all()) and whole == "".join(texts) and REPLACEMENT not in whole
        found: list[Ranges | None] = []
        rows = zip(token_ids, texts, begins.tolist(), opens.tolist(), closes.tolist(), fits.tolist(), strict=True)
        for ids, text, begin, low, high, joins in rows:
            own = bounds[low:high]
            if joins and not all_join:
                joins = whole.startswith(text, begin) and REPLACEMENT not in text
            if joins and len(ids) > AUDIT:
                joins = all(decode(ids[:size]) == text[: own[size]] for size in range(AUDIT, len(ids), AUDIT))
            found.append(Ranges(own) if joins else None)
        return found

    def _parts(self, token_ids: Sequence[list[int]]) -> list[str | None]:
        """What each token of all completions writes; None where that is not known."""
        parts = list(map(self._behind.get, chain.from_iterable(token_ids)))
        at = 0
        for ids in token_ids:
            for place, token in enumerate(ids, at):
                parts[place] = text = self._opening.get(token)
                if text != "":
                    break
            at += len(ids)
        return parts

    def _meet(self, ids: list[int], decode: Decode) -> None:
        """Asks what tokens write that were not met; of one that cannot be told behind this opening, nothing is kept."""
        for opener in ids:
            if opener not in self._opening:
                self._opening[opener] = decode([opener])
            if self._opening[opener]:
                break
        else:
            return  # nothing is written that something could stand behind
        for token in {*ids}.difference(self._behind):
            alone, both = decode([opener]), decode([opener, token])
            if both.startswith(alone):
                self._behind[token] = both[len(alone) :]


def _lengths_between(marked: str, parts: int) -> np.ndarray[Any, np.dtype[np.int64]] | None:
    """How long the parts between marks are, which takes a third of the time of asking each; None if there are others.

    Args:
        marked: The parts, joined by marks.
        parts: How many they are.
    """
    characters = np.frombuffer(marked.encode("utf-32-le", "surrogatepass"), "<u4")
    ends = np.append(np.flatnonzero(characters == ord(_MARK)), len(marked))
    return np.diff(ends, prepend=-1) - 1 if ends.size == parts else None


_OF: WeakKeyDictionary[Any, dict[bool, Pieces]] = WeakKeyDictionary()
