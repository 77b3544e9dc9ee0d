"""Layouts of plain text in which a token of the vocabulary ends every step."""

from collections.abc import Sequence
from typing import Any

from stepcredit.signals.prm.layouts import PROBE, Layout, numbered
from stepcredit.signals.prm.words import encodable


class TaggedLayout(Layout):
    """One text of the problem and the steps, each with a tag at its end, that is encoded as a whole.

        problem + after_problem + step + before_tag + tag + after_tag + step + before_tag + tag

    The score is read at the tag: the token that ends where the tag's characters end.
    """

    def __init__(
        self,
        name: str,
        tokenizer: Any,
        separator: str,
        *,
        after_problem: str,
        before_tag: str = "",
        after_tag: str = "",
        number: bool = False,
    ) -> None:
        """Puts "Step 1: " and so on before the steps if ``number``, and tries the tokenizer on two steps."""
        super().__init__(name, tokenizer, separator)
        self._after_problem, self._before_tag, self._after_tag = after_problem, before_tag, after_tag
        self._number = number
        self._tag = self.separator_id()
        if not getattr(tokenizer, "is_fast", False):
            raise self.unfit("a tokenizer that tells the characters of its tokens (a fast one)", "a slow one")
        self.encode(*PROBE)

    def encode(self, problem: str, steps: Sequence[str]) -> tuple[list[int], list[int]]:
        """See `Layout.encode`."""
        text = problem + self._after_problem
        ends = []
        for index, step in enumerate(numbered(steps) if self._number else steps):
            text += (self._after_tag if index else "") + step + self._before_tag + self.separator
            ends.append(len(text))
        encoded = self.words.tokenizer(
            encodable(text), return_offsets_mapping=True, split_special_tokens=True, verbose=False
        )
        ids = list(encoded["input_ids"])
        last = {end: index for index, (start, end) in enumerate(encoded["offset_mapping"]) if start < end}
        marks = [last.get(end, -1) for end in ends]
        wrong = [self.words.tokenizer.convert_ids_to_tokens(ids[mark]) for mark in marks if ids[mark] != self._tag]
        if wrong or -1 in marks:
            raise self.unfit(f"the token of {self.separator!r} at the end of every step", repr(wrong))
        return ids, marks
