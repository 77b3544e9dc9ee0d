"""What the built-in tiny policies are taught: problems of a built-in task with a tutor's solutions."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol, get_args

from stepcredit.errors import InputError
from stepcredit.runs.tiny import ARITHMETIC, MULTIHOP, Form
from stepcredit.tasks import Arithmetic, MultiHop, MultiHopSearch, Task
from stepcredit.tasks.multihop.question import Paragraph, render_paragraphs
from stepcredit.tasks.multihop.tutor import CLEAN
from stepcredit.tasks.multihop.tutor import Tutor as Guide
from stepcredit.tasks.multihop.world import RELATIONS, World, sentence

Tutor = Literal["noisy", "clean"]
Pieces = list[tuple[str, bool]]  # text, and whether it is learnt

FIRST = 2**64  # problems and worlds of lessons lie above all those of training and test


class Course(Protocol):
    """A source of lessons.

    Attributes:
        form: Of the policy that is taught.
        difficulty: What tells its exams apart.
        overlap: What a reader should know of lessons and test problems, for the end of a sentence; may be empty.
    """

    form: ClassVar[Form]
    difficulty: ClassVar[str]
    overlap: ClassVar[str]

    @property
    def tutor(self) -> Tutor:
        """Who solves the problems."""
        ...

    @property
    def subject(self) -> str:
        """What is taught, in words."""
        ...

    @property
    def exams(self) -> dict[str, Task]:
        """The tasks to measure on, by what tells them apart."""
        ...

    def lesson(self, rng: random.Random, number: int, count: Callable[[str], int]) -> tuple[str, Pieces]:
        """A prompt and its completion, in pieces.

        Args:
            rng: Draws the difficulty.
            number: Chooses the problem and the tutor's errors.
            count: A text's number of tokens.
        """
        ...


@dataclass(frozen=True)
class ArithmeticCourse:
    """Running totals of 2 to ``task.operations`` operations, evenly.

    Attributes:
        task: The task at its largest number of operations; where that is 1, every problem has one.
        tutor: "noisy" errs often (a policy to be trained further); "clean" never does (a teacher).
    """

    form: ClassVar[Form] = ARITHMETIC
    difficulty: ClassVar[str] = "operations"
    overlap: ClassVar[str] = (
        "; but there are so few problems with two operations that training meets many of the test's too"
    )
    task: Arithmetic
    tutor: Tutor = "noisy"

    def __post_init__(self) -> None:
        """Checks the tutor."""
        _check(self.tutor)

    @property
    def subject(self) -> str:
        """What is taught, in words."""
        return f"the built-in arithmetic task, 2 to {self.task.operations} operations modulo {self.task.modulus}"

    @property
    def exams(self) -> dict[str, Task]:
        """One a number of operations."""
        least = min(2, self.task.operations)
        return {str(n): replace(self.task, operations=n) for n in range(least, self.task.operations + 1)}

    def lesson(self, rng: random.Random, number: int, count: Callable[[str], int]) -> tuple[str, Pieces]:  # noqa: ARG002
        """A problem and the tutor's chain."""
        drawn = replace(self.task, operations=rng.randint(min(2, self.task.operations), self.task.operations))
        problem = drawn.problem(number)
        text = drawn.sample_solution(problem, number) if self.tutor == "noisy" else drawn.solution(problem)
        return problem.prompt + "\n", [(text, True)]


@dataclass(frozen=True)
class MultiHopCourse:
    """Drills, and questions of 1 to ``hops`` hops to read or to search, each in a world of its own.

    Half of the lessons are drills: paragraphs that state one relation of 2 to 6 entities, and the same sentences again
    in another order, of which the values are learnt. Questions alone teach to find a relation, and hardly ever a
    name. To read there are as many paragraphs as hops, up to five, evenly; a search brings one or two. What the
    environment writes is not learnt.

    Attributes:
        hops: The most relations to follow.
        tutor: "noisy" errs often; "clean" never does.
    """

    form: ClassVar[Form] = MULTIHOP
    difficulty: ClassVar[str] = "setting, hops"
    overlap: ClassVar[str] = ""
    hops: int = 3
    tutor: Tutor = "noisy"

    def __post_init__(self) -> None:
        """Checks the arguments."""
        _check(self.tutor)
        MultiHop(hops=self.hops)

    @property
    def subject(self) -> str:
        """What is taught, in words."""
        return f"the built-in multi-hop world, 1 to {self.hops} hops, to be read or searched, and drills"

    @property
    def exams(self) -> dict[str, Task]:
        """One a number of hops in each setting; five paragraphs of a sentence each to read, as in the recipes."""
        hops = range(1, self.hops + 1)
        read: dict[str, Task] = {f"read, {n}": MultiHop(hops=n, facts=1) for n in hops}
        return read | {f"search, {n}": searching(n) for n in hops}

    def lesson(self, rng: random.Random, number: int, count: Callable[[str], int]) -> tuple[str, Pieces]:
        """A drill, or a question and what the tutor makes of it."""
        if rng.random() < 0.5:
            return _drill(rng, World(number))
        guide = CLEAN if self.tutor == "clean" else Guide()
        hops, world = rng.randint(1, self.hops), World(number)
        shown, brought = rng.randint(hops, 5), rng.randint(1, 2)
        if rng.random() < 0.5:
            reading = MultiHop(hops=hops, paragraphs=shown)
            question = reading.of_world(world)
            return reading.prompt(question), [(guide.read(question, number), True)]
        task = replace(searching(hops), k=brought)
        question = task.of_world(world)
        environment = task.environment(question.reference(world=number), count)
        return task.prompt(question), guide.search(question, world, environment, number)


def _drill(rng: random.Random, world: World) -> tuple[str, Pieces]:
    relation = rng.choice([relation for table in RELATIONS.values() for relation in table])
    known = [(name, relation, table[relation]) for name, table in world.facts.items() if relation in table]
    facts = rng.sample(known, rng.randint(2, 6))
    prompt = render_paragraphs([Paragraph(fact[0], (sentence(fact),)) for fact in facts])
    pieces: Pieces = []
    for name, _, value in rng.sample(facts, len(facts)):
        pieces += [(f"The {relation} of {name} is", False), (f" {value}", True), (".\n", False)]
    return prompt, pieces


def searching(hops: int) -> MultiHopSearch:
    """The search task that fits the tiny policy's positions."""
    return MultiHopSearch(hops=hops, k=2, searches=hops + 2, result_tokens=96)


def _check(tutor: str) -> None:
    if tutor not in get_args(Tutor):
        raise InputError(f"`tutor` must be noisy or clean; got {tutor!r}.")
