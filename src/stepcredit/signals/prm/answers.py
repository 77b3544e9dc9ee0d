"""Layouts in a chat template that put nothing between steps but white space."""

from collections.abc import Sequence
from typing import Any, Literal

from stepcredit.errors import InputError
from stepcredit.signals.prm.chat import TemplateLayout
from stepcredit.signals.prm.layouts import PROBE, Input, numbered
from stepcredit.signals.prm.words import Pieces

NO_ANSWER = "There is no reference answer for this question."


class PrefixLayout(TemplateLayout):
    """One input a step: the problem with its reference answer, the steps so far, and the token that ends a sequence.

    The score is read at that token.
    """

    takes_answer = True

    def __init__(self, name: str, tokenizer: Any, separator: str, *, system: str | None = None) -> None:
        """Takes the tokenizer's own token for the end of a sequence."""
        super().__init__(name, tokenizer, separator, system=system)
        if tokenizer.eos_token_id is None:
            raise self.unfit("a token for the end of its input (EOS)", "none")
        self._before, self._after = self.around(["user"], prompt=True)
        problem, steps = PROBE
        user = self._user(problem, None)
        prompt = tokenizer.encode(self.render([("user", user)], prompt=True), add_special_tokens=False)
        answer = tokenizer.encode(separator.join(steps) + separator)
        if self.encode(problem, steps)[0] != [*prompt, *answer, tokenizer.eos_token_id]:
            raise self.unfit("the same ids for its input in pieces and in one text", "others")

    def encode(self, problem: str, steps: Sequence[str]) -> tuple[list[int], list[int]]:
        """The last of `inputs`, with its one mark."""
        ids, marks, _ = self.inputs(problem, steps)[-1]
        return ids, marks

    def inputs(self, problem: str, steps: Sequence[str], answer: str | None = None) -> list[Input]:
        """See `Layout.inputs`."""
        prompt, _ = self.words.join((*self._before, self.content(self._user(problem, answer)), *self._after))
        found = []
        for count in range(1, len(steps) + 1):
            ids = prompt + self.words.ids(self.separator.join(steps[:count]) + self.separator)
            found.append(Input([*ids, self.words.tokenizer.eos_token_id], [len(ids)], len(prompt)))
        return found

    @staticmethod
    def _user(problem: str, answer: str | None) -> str:
        return f"{problem}\n\n###\n\nThe reference answer is: {NO_ANSWER if answer is None else answer}"


class AnswerLayout(TemplateLayout):
    """The problem as the user's message and the numbered steps as the assistant's; a score is a sum over its tokens.

    The sum of step k goes from the token `Input.first` through the mark of step k. Where these are is a choice:

    - "published": the sum begins one token before the answer, at the last one of the assistant's head. Step k < n
      ends where the text of the first k steps ends when it is encoded as a conversation of its own, which is one
      token or two after the step in the whole text: in the next step. The last step ends with the token after it.
    - "exact": the sum begins at the answer's first token, and a step ends with the token of its last character.
    """

    def __init__(
        self, name: str, tokenizer: Any, separator: str, *, boundary: Literal["published", "exact"] = "published"
    ) -> None:
        """Tries template and tokenizer on a problem of two steps."""
        super().__init__(name, tokenizer, separator)
        self._boundary = boundary
        self._before, between, after = self.around(["user", "assistant"])
        if not any(isinstance(piece, int) for piece in between) or not (after and isinstance(after[0], int)):
            raise self.unfit("a chat template with special tokens around the answer", repr(between + after))
        last = between[-1]
        self._head = last if isinstance(last, str) else ""
        self._between, self._after = between[:-1] if self._head else between, after
        self._closed = _stripped(after)
        problem, steps = PROBE
        whole = self.render([("user", problem), ("assistant", separator.join(numbered(steps)))])
        self.check(self.encode(problem, steps)[0], whole)

    def encode(self, problem: str, steps: Sequence[str]) -> tuple[list[int], list[int]]:
        """See `Layout.encode`; the marks are where the steps' sums end."""
        ids, marks, _ = self.inputs(problem, steps)[0]
        return ids, marks

    def inputs(self, problem: str, steps: Sequence[str], answer: str | None = None) -> list[Input]:
        """See `Layout.inputs`."""
        if answer is not None:
            raise InputError(f"`answer` must be None for the preset {self.name!r}; got {answer!r:.40}.")
        steps = numbered(steps)
        begin, _ = self.words.join((*self._before, self.content(problem), *self._between))
        joined = self.separator.join(steps)
        ids = begin + self.words.join([self._head, joined, *self._after])[0]
        if self._boundary == "exact":
            first, marks = self._exact(len(begin), steps, joined)
        else:
            first, marks = self._published(len(begin), steps)
        return [Input(ids, [min(mark, len(ids) - 1) for mark in marks], first)]

    def _published(self, begin: int, steps: Sequence[str]) -> tuple[int, list[int]]:
        """Where the sums begin and end, from the lengths of the first 0, 1, ... steps as conversations."""
        lengths = []
        for count in range(len(steps) + 1):
            partly = [self.separator] if 0 < count < len(steps) else []
            text = self.separator.join(steps[:count])
            lengths.append(begin + len(self.words.join([self._head, text, *self._closed, *partly])[0]))
        first, *ends = lengths
        return first - 2, [end - 1 for end in ends]

    def _exact(self, begin: int, steps: Sequence[str], joined: str) -> tuple[int, list[int]]:
        """Where the sums begin and end, from the characters of the tokens."""
        spans = self.words.spans(self._head + joined)
        start = len(self._head)
        first = sum(end <= start for _, end in spans)
        marks, place = [], start
        for step in steps:
            place += len(step)
            marks.append(begin + sum(s < place for s, _ in spans) - 1)
            place += len(self.separator)
        return begin + first, marks


def _stripped(pieces: Pieces) -> Pieces:
    """Pieces without the white space at their end."""
    *rest, last = pieces
    if isinstance(last, int):
        return pieces
    return [*rest, last.rstrip()] if last.strip() else _stripped(rest)
