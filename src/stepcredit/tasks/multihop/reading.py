"""Multi-hop question answering with the paragraphs in the prompt: the distractor setting."""

import json
from dataclasses import dataclass
from typing import ClassVar

from stepcredit.errors import InputError
from stepcredit.tasks.grading import Grade
from stepcredit.tasks.multihop.question import Question, render_paragraphs
from stepcredit.tasks.multihop.source import STATE_ANSWER, WORLD, MultiHopTask
from stepcredit.tasks.multihop.world import KIND, World


@dataclass(frozen=True)
class MultiHop(MultiHopTask):
    r"""Multi-hop questions with their paragraphs, gold ones and distractors, in the prompt.

    The policy reasons and writes its answer inside ``<answer>`` and ``</answer>``.

    Args:
        paragraphs: Paragraphs in a prompt. None: all that a published question has; 5 for the world's. A published
            question keeps its gold ones, and the first others, in their order; the world has 64.
        facts: Sentences a paragraph of the world's, at most.

    The other options are those of both settings: ``train``, ``test``, ``train_split``, ``test_split``, ``config``,
    ``aliases``, ``answerable_only``, ``hops``, ``reward``, ``instruction``.

    Raises:
        InputError: An option is out of its range.

    Example:
        >>> task = MultiHop(paragraphs=2)
        >>> example = task.examples("test", 1)[0]
        >>> print(example.prompt, end="")
        # Lunden
        The mayor of Lunden is Nadir. The region of Lunden is Brovenia.
        # Metalis
        The founder of Metalis is Dalia. The seat of Metalis is Lunden.
        Question: Who is the mayor of the seat of Metalis?
        >>> task.grade(example.reference, "<answer>the Nadir</answer>").outcome
        1.0
    """

    name: ClassVar[str] = "multihop"
    kinds: ClassVar[tuple[str, ...]] = ()
    measures: ClassVar[tuple[str, ...]] = ("em", "f1")
    _instruction: ClassVar[str] = f"Answer the question from the paragraphs. Reason step by step. {STATE_ANSWER}"
    paragraphs: int | None = None
    facts: int = 2

    def __post_init__(self) -> None:
        """Checks the options."""
        super().__post_init__()
        for option in ("facts", "paragraphs"):
            value = getattr(self, option)
            if type(value) is not int and not (option == "paragraphs" and value is None):
                raise InputError(f"`{option}` must be a whole number; got {value!r}.")
        if self.facts < 1:
            raise InputError(f"`facts` must be at least 1; got {self.facts}.")
        if self.paragraphs is None:
            return
        of_world = WORLD in (self.train, self.test)
        if self.paragraphs < (self.hops if of_world else 1):
            raise InputError(f"`paragraphs` must be at least 1, and the hops of the world; got {self.paragraphs}.")
        if of_world and self.paragraphs > len(KIND):
            raise InputError(f"`paragraphs` must be at most the world's {len(KIND)}; got {self.paragraphs}.")

    def of_world(self, world: World) -> Question:
        """The world's question in this task."""
        return world.question(hops=self.hops, paragraphs=self.paragraphs or 5, facts=self.facts)

    def prompt(self, question: Question) -> str:
        """The paragraphs, then the question."""
        shown = question.paragraphs
        if self.paragraphs is not None:
            others = [place for place, paragraph in enumerate(shown) if not paragraph.support]
            spare = max(self.paragraphs - (len(shown) - len(others)), 0)
            left_out = set(others[spare:])  # by place: paragraphs may be equal
            shown = tuple(paragraph for place, paragraph in enumerate(shown) if place not in left_out)
        return render_paragraphs(shown) + super().prompt(question)

    def grade(self, reference: str, completion: str, *, finished: bool = True) -> Grade:
        """Grades the answer and the form; there are no steps.

        Args:
            reference: The example's.
            completion: The exact text that the model wrote.
            finished: False where generation was cut by a length limit; its form is then not kept.
        """
        return Grade(**self._answered(json.loads(reference), completion, finished, in_form=True))
