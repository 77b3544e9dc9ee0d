"""What both settings of multi-hop question answering share: where questions come from, and what an answer earns."""

import random
import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

from stepcredit.errors import InputError, StepCreditWarning
from stepcredit.tasks.multihop.answers import exact_match, f1, keeps_form, stated_answer
from stepcredit.tasks.multihop.loading import load_questions
from stepcredit.tasks.multihop.question import Question
from stepcredit.tasks.multihop.world import World
from stepcredit.tasks.task import Example, Split

WORLD = "world"
"""The source that is the built-in generator."""
STATE_ANSWER = "Then state the final answer, in as few words as possible, inside <answer> and </answer>."

_TEST_SEED = 0
_TRAIN_SEEDS = 2**32  # a run's training worlds start at (1 + its seed) times this


@dataclass(frozen=True)
class MultiHopTask:
    """Where the questions come from and what an answer earns: what both settings share.

    Attributes:
        train: The training questions: "world" (a fresh `World` each), or a file, folder or hub name; see
            `load_questions`.
        test: The same for the test questions.
        train_split: The split of a folder or hub dataset to train on.
        test_split: The split to test on.
        config: The configuration of hub datasets, of both where both are; empty for the one that is known to be meant.
        aliases: 2WikiMultihopQA's ``id_aliases.json``, whose other names of an answer are right too; empty for none.
        answerable_only: Leave out the rows that MuSiQue marks unanswerable, with a warning of how many; otherwise they
            are refused.
        hops: Relations to follow in the world's questions, 1 to 4; published questions have what they have.
        reward: The outcome: "em", exact match, or "f1", word overlap; see `exact_match` and `f1`. Whether an answer is
            correct is exact match with either: pass@k, accuracies and `RolloutBatch.correct` are of it.
        instruction: The system message; "default" for a plain one, or none where all questions are the world's.
    """

    train: str = WORLD
    test: str = WORLD
    train_split: str = "train"
    test_split: str = "validation"
    config: str = ""
    aliases: str = ""
    answerable_only: bool = False
    hops: int = 2
    reward: Literal["em", "f1"] = "em"
    instruction: str = "default"

    name: ClassVar[str]
    _instruction: ClassVar[str]

    def __post_init__(self) -> None:
        """Checks the options; the instruction is settled here."""
        for option in ("train", "test", "train_split", "test_split", "config", "aliases", "instruction"):
            if not isinstance(getattr(self, option), str):
                raise InputError(f"`{option}` must be a text; got {getattr(self, option)!r}.")
        if not isinstance(self.answerable_only, bool):
            raise InputError(f"`answerable_only` must be true or false; got {self.answerable_only!r}.")
        if type(self.hops) is not int or not 1 <= self.hops <= 4:
            raise InputError(f"`hops` must be a whole number from 1 to 4; got {self.hops!r}.")
        if self.reward not in ("em", "f1"):
            raise InputError(f"`reward` must be em or f1; got {self.reward!r}.")
        if self.instruction == "default":
            only_world = self.train == self.test == WORLD
            object.__setattr__(self, "instruction", "" if only_world else self._instruction)

    @property
    def endless(self) -> bool:
        """Whether the training questions never end: the world's do not."""
        return self.train == WORLD

    def questions(self, split: Split, count: int | None = None, *, seed: int = 0) -> list[Question]:
        """The questions behind `examples`.

        Raises:
            InputError: No count for the world, more questions than there are, a seed below 0, or a source that cannot
                be read.
        """
        return [question for question, _ in self._drawn(split, count, seed)]

    def worlds(self, split: Split, count: int | None, *, seed: int = 0) -> list[World]:
        """The worlds that this many of the built-in generator's questions are about, one a question.

        Raises:
            InputError: No count, as the world has no end, or a seed below 0.
        """
        if seed < 0:
            raise InputError(f"`seed` must be at least 0; got {seed}.")
        if count is None or count < 1:
            raise InputError(f"`count` must be at least 1 for the world, which has no end; got {count}.")
        first = _TEST_SEED if split == "test" else _TRAIN_SEEDS * (1 + seed)
        return [World(number) for number in range(first, first + count)]

    def _drawn(self, split: Split, count: int | None, seed: int) -> list[tuple[Question, dict[str, Any]]]:
        """The questions, each with what its reference says of where it comes from."""
        source, part = self._source(split)
        if source == WORLD:
            return [(self.of_world(world), {"world": world.seed}) for world in self.worlds(split, count, seed=seed)]
        if seed < 0:
            raise InputError(f"`seed` must be at least 0; got {seed}.")
        questions = list(published(source, part, self.config, self.aliases, self.answerable_only))
        if split == "train":
            random.Random(seed).shuffle(questions)  # noqa: S311 - reproducible order, no secret
        if count is not None and not 1 <= count <= len(questions):
            raise InputError(f"`count` must be from 1 to the {len(questions)} questions of {source!r}; got {count}.")
        return [(question, {"split": split}) for question in questions[:count]]

    def of_world(self, world: World) -> Question:
        """The world's question in this task."""
        return world.question(hops=self.hops)

    def prompt(self, question: Question) -> str:
        """What the policy is given of a question."""
        return f"Question: {question.question}\n"

    def examples(self, split: Split, count: int | None = None, *, seed: int = 0) -> list[Example]:
        """The questions as a policy meets them: test in the source's order, train shuffled or drawn by the seed."""
        return [
            Example(question.id, self.prompt(question), question.reference(**where))
            for question, where in self._drawn(split, count, seed)
        ]

    def _source(self, split: str) -> tuple[str, str]:
        return (self.train, self.train_split) if split == "train" else (self.test, self.test_split)

    def _answered(self, gold: dict[str, Any], text: str, finished: bool, in_form: bool) -> dict[str, Any]:
        """What a grade says of the answer and the form; ``text`` is what the policy wrote last."""
        answer = stated_answer(text)
        em = float(answer is not None and exact_match(answer, gold["answers"]))
        overlap = 0.0 if answer is None else f1(answer, gold["answers"])
        form = finished and in_form and keeps_form(text)
        return {
            "outcome": em if self.reward == "em" else overlap,
            "correct": bool(em),
            "format_reward": float(form),
            "format_ok": form,
            "parsed": answer is not None,
            "reason": "no answer" if answer is None else "right" if em else "wrong",
            "measures": {"em": em, "f1": overlap},
        }


@lru_cache(maxsize=4)
def published(
    source: str, split: str, config: str = "", aliases: str = "", answerable_only: bool = False
) -> tuple[Question, ...]:
    """The questions of a file, folder or hub name, read once; what had to be mended or left out is warned of."""
    questions = load_questions(
        source, split=split, config=config or None, aliases=aliases or None, answerable_only=answerable_only
    )
    for what, count in questions.repairs.items():
        warnings.warn(f"{source}: {what} ({count} times)", StepCreditWarning, stacklevel=2)
    return tuple(questions)
