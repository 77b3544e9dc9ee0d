"""Layouts: the token ids of a problem and its steps as a family of models was trained on them, and where to read."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from stepcredit.errors import InputError
from stepcredit.signals.prm.fit import unfit
from stepcredit.signals.prm.words import Words

PROBE = ("What is 2+3?", ["Add 2 and 3.", "The answer is 5."])  # a problem and its steps, to try a model on


class Input(NamedTuple):
    """What one forward pass reads: token ids, the positions of its scores, and where the answer begins."""

    ids: list[int]
    marks: list[int]
    first: int = 0


class Layout(ABC):
    """A preset's input under one tokenizer.

    Marks are known because the ids are put together here; no id is ever looked for, since a problem may hold it.

    Attributes:
        name: The preset.
        separator: What ends every step; empty: nothing does.
        words: The tokenizer.
        takes_answer: Whether the input may hold the problem's reference answer.
    """

    takes_answer = False

    def __init__(self, name: str, tokenizer: Any, separator: str) -> None:
        self.name, self.separator = name, separator
        self.words = Words(tokenizer)

    @abstractmethod
    def encode(self, problem: str, steps: Sequence[str]) -> tuple[list[int], list[int]]:
        """The ids of the whole input, and for each step the position at which its score is read.

        Args:
            problem: The problem, word for word.
            steps: The steps' texts, not empty and without white space around them.

        Returns:
            ``(ids, marks)``; ``marks`` has one position a step, in order.
        """

    def inputs(self, problem: str, steps: Sequence[str], answer: str | None = None) -> list[Input]:
        """What goes through the model; their marks, one after the other, are those of the steps in order.

        Args:
            problem: The problem, word for word.
            steps: The steps' texts, not empty and without white space around them.
            answer: The problem's reference answer, for a family that takes one (`takes_answer`).
        """
        if answer is not None and not self.takes_answer:
            raise InputError(f"`answer` must be None for the preset {self.name!r}; got {answer!r:.40}.")
        return [Input(*self.encode(problem, steps))]

    def unfit(self, rule: str, fact: str) -> Exception:
        """Says what the tokenizer lacks."""
        return unfit(self.name, self.words.source, rule, fact)

    def separator_id(self) -> int:
        """The separator's id; refuses one that is not one token."""
        found = self.words.token(self.separator)
        if found is None:
            count = len(self.words.tokenizer.encode(self.separator, add_special_tokens=False))
            fact = f"{count} tokens" if count != 1 else "the unknown token"
            raise self.unfit(f"one token for the separator {self.separator!r}", fact)
        return found


class SeparatedLayout(Layout):
    """The problem, then each step and the separator, every piece encoded alone: TRL's `PRMTrainer`.

    The score is read at the last token of the separator.
    """

    def __init__(
        self,
        name: str,
        tokenizer: Any,
        separator: str,
        *,
        bos: Literal["none", "if known", "must"] = "if known",
        after: str = "",
        one_token: bool = False,
    ) -> None:
        """Says whether the tokenizer's BOS comes first, and what text follows the problem, in one piece with it."""
        super().__init__(name, tokenizer, separator)
        if bos == "must" and tokenizer.bos_token_id is None:
            raise self.unfit("a token for the beginning of its input (BOS)", "none")
        self._bos = [] if bos == "none" or tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        self._after = after
        self._separator = [self.separator_id()] if one_token else tokenizer.encode(separator, add_special_tokens=False)
        if not self._separator:
            raise self.unfit("at least one token for the separator", f"none for {separator!r}")

    def encode(self, problem: str, steps: Sequence[str]) -> tuple[list[int], list[int]]:
        """See `Layout.encode`."""
        ids = self._bos + self.words.ids(problem + self._after)
        marks = []
        for step in steps:
            ids += self.words.ids(step) + self._separator
            marks.append(len(ids) - 1)
        return ids, marks


def numbered(steps: Sequence[str]) -> list[str]:
    """The steps with "Step 1: ", "Step 2: ", ... in front, save those that begin so."""
    heads = [f"Step {count}:" for count in range(1, len(steps) + 1)]
    return [step if step.startswith(head) else f"{head} {step}" for head, step in zip(heads, steps, strict=True)]


def separated(tokenizer: Any, problem: str, steps: Sequence[str], separator: str) -> tuple[list[int], list[int]]:
    """The ids of a problem and its steps as TRL's `PRMTrainer` puts them together, and where a step's label sits.

        [the tokenizer's BOS, if it has one] + problem + for each step (step + separator)

    every piece encoded alone, without special tokens and with no text between; a mark is the separator's last id.
    To encode many, make one `SeparatedLayout` and call its `encode`.

    Args:
        tokenizer: A tokenizer of Transformers.
        problem: The prompt's text.
        steps: The steps' texts. Nothing is stripped from them.
        separator: What ends every step, one token or more.

    Returns:
        ``(ids, marks)``; ``marks`` has one position a step, in order.

    Raises:
        InputError: The separator has no tokens.

    Reference:
        TRL's `PRMTrainer.tokenize_row`; departs from it in text that spells a special token, which is text here.
    """
    return SeparatedLayout("trl", tokenizer, separator).encode(problem, steps)
