"""Layouts in a chat template: the steps as one answer of the assistant, or each step as a turn of the user."""

import re
from collections.abc import Sequence
from typing import Any

from stepcredit.signals.prm.fit import line
from stepcredit.signals.prm.layouts import PROBE, Layout
from stepcredit.signals.prm.words import Mark, Pieces

Messages = list[tuple[str, str]]  # roles and contents


class TemplateLayout(Layout):
    """A layout in the chat template of the checkpoint's tokenizer.

    Attributes:
        system: The system message; None: none, and the template does what it does without one.
    """

    def __init__(self, name: str, tokenizer: Any, separator: str, *, system: str | None = None) -> None:
        """Takes nothing from the template yet."""
        super().__init__(name, tokenizer, separator)
        self.system = system
        self._trims: bool | None = None

    def render(self, messages: Messages, *, prompt: bool = False) -> str:
        """The messages as text, the system message ahead of them; ``prompt``: and the head of the next answer."""
        system = [] if self.system is None else [("system", self.system)]
        rows = [{"role": role, "content": content} for role, content in (*system, *messages)]
        try:
            return str(self.words.tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=prompt))
        except Exception as error:
            raise self.unfit("a chat template that takes its messages", line(error)) from error

    def around(self, roles: Sequence[str], *, prompt: bool = False) -> list[Pieces]:
        """What the template puts before, between and after the contents of messages with these roles."""
        slots = [f"[content {index}]" for index in range(len(roles))]
        shown = self.render(list(zip(roles, slots, strict=True)), prompt=prompt)
        parts = re.split("|".join(map(re.escape, slots)), shown)
        if len(parts) != len(slots) + 1 or [shown.find(slot) for slot in slots] != sorted(map(shown.find, slots)):
            raise self.unfit("a chat template that shows problem and steps once each", repr(shown))
        return [self.words.pieces(part) for part in parts]

    def content(self, text: str) -> str:
        """A message's content as the template shows it: some take the white space around it away."""
        if self._trims is None:
            spaced = " [content] "
            self._trims = spaced not in self.render([("user", spaced), ("assistant", "[answer]")])
        return text.strip() if self._trims else text

    def check(self, found: list[int], whole: str, *, add_special_tokens: bool = False) -> None:
        """Refuses a tokenizer under which the pieces do not give the ids of the text as published."""
        if found != self.words.tokenizer.encode(whole, add_special_tokens=add_special_tokens):
            raise self.unfit("the same ids for its input in pieces and in one text", f"others for {whole!r}")


class ChatLayout(TemplateLayout):
    """The problem as the user's message, and as the assistant's the steps, each with a special token at its end.

    The score is read at that token.
    """

    def __init__(self, name: str, tokenizer: Any, separator: str, *, system: str | None = None) -> None:
        """Tries template and tokenizer on a problem of two steps."""
        super().__init__(name, tokenizer, separator, system=system)
        self._mark = Mark(self.separator_id())
        self.words = type(self.words)(tokenizer, also=self._mark)
        if separator not in self.words.special or self._mark in self.words.ids(separator):
            raise self.unfit(f"a token of its own for the separator {separator!r}", "an ordinary token")
        self._before, self._between, self._after = self.around(["user", "assistant"])
        problem, steps = PROBE
        whole = self.render([("user", problem), ("assistant", "".join(step + separator for step in steps))])
        self.check(self.encode(problem, steps)[0], whole, add_special_tokens=True)

    def encode(self, problem: str, steps: Sequence[str]) -> tuple[list[int], list[int]]:
        """See `Layout.encode`."""
        body: Pieces = [piece for step in steps for piece in (step, self._mark)]
        return self.words.join((*self._before, self.content(problem), *self._between, *body, *self._after))


class TurnsLayout(TemplateLayout):
    """Each step is a turn of the user, the first with the problem before it, and a good label the assistant's answer.

    The score is read one token before the label, which is what the model predicts there. Every answer is the good
    label, whatever the model thinks of the step.
    """

    def __init__(self, name: str, tokenizer: Any, separator: str, *, system: str | None = None) -> None:
        """Tries template and tokenizer on a problem of two steps."""
        super().__init__(name, tokenizer, separator, system=system)
        self._mark = Mark(self.separator_id())
        self._templates: dict[int, list[Pieces]] = {}
        problem, steps = PROBE
        turns = [f"{problem} {steps[0]}", *steps[1:]]
        whole = self.render([message for turn in turns for message in (("user", turn), ("assistant", separator))])
        self.check(self.encode(problem, steps)[0], whole)

    def encode(self, problem: str, steps: Sequence[str]) -> tuple[list[int], list[int]]:
        """See `Layout.encode`."""
        turns = [f"{problem} {steps[0]}", *steps[1:]] if steps else []
        if len(turns) not in self._templates:
            self._templates[len(turns)] = self.around(["user", "assistant"] * len(turns))
        before, *parts = self._templates[len(turns)]
        pieces = [*before]
        for turn, between, after in zip(turns, parts[::2], parts[1::2], strict=True):
            pieces += [self.content(turn), *between, self._mark, *after]
        ids, marks = self.words.join(pieces)
        return ids, [mark - 1 for mark in marks]
