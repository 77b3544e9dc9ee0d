"""What a task is to those who train and evaluate on it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from stepcredit.batch import Span
from stepcredit.tasks.grading import Grade

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Example:
    """One problem, as a policy meets it.

    Attributes:
        id: Names the problem, the same in every run; what pairs two evaluations.
        prompt: The text that the policy continues, or that its chat template wraps as the user's message.
        reference: What `Task.grade` needs to grade an answer: the gold answer, or the problem itself.
    """

    id: str
    prompt: str
    reference: str


@runtime_checkable
class Task(Protocol):
    """Problems with an exact grader.

    Attributes:
        name: What configs and the command line call it.
        instruction: The system message for policies with a chat template; empty for none.
        endless: True where `examples` makes as many problems as asked for.
        kinds: The words that its grades' ``kinds`` use; empty where it grades no steps.
        measures: The names of the further numbers in its grades' ``measures``, the same in every grade; often none.
    """

    name: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]]

    @property
    def endless(self) -> bool:
        """Whether it makes as many problems as asked for."""
        ...

    @property
    def instruction(self) -> str:
        """The system message for policies with a chat template; empty for none."""
        ...

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of the further numbers in its grades."""
        ...

    def examples(self, split: Split, count: int | None = None, *, seed: int = 0) -> list[Example]:
        """The first ``count`` problems of a split; None for all that there are.

        Args:
            split: "train" or "test"; no problem is in both where the task can tell.
            count: How many; a task without end needs a number.
            seed: Chooses the training problems, or their order; the test problems are always the same.

        Raises:
            InputError: Fewer problems than asked for, or none at all.
        """
        ...

    def grade(self, reference: str, completion: str, *, finished: bool = True) -> Grade:
        """Grades one completion; never raises on what the model wrote.

        Args:
            reference: The example's.
            completion: The exact text that the model wrote.
            finished: False where generation was cut by a length limit.
        """
        ...


@runtime_checkable
class SearchTask(Task, Protocol):
    """A task whose policy may search: it writes turns, and an environment writes between them.

    Attributes:
        searches: How many searches a rollout has.
    """

    @property
    def searches(self) -> int:
        """How many searches a rollout has."""
        ...

    def environment(self, reference: str, count: Callable[[str], int] | None = None) -> Any:
        """What answers the searches of one rollout.

        Args:
            reference: The example's.
            count: The length of a text, in the unit of the task's limits: the policy's tokens; None for words.

        Returns:
            An object with ``search(query) -> str``, which never raises on what a model wrote, and
            ``reply(turn, room) -> str | None``: in the text protocol, what to append after a turn, at most ``room``
            by ``count``; None where the rollout ends.
        """
        ...

    def grade(
        self, reference: str, completion: str, *, finished: bool = True, turns: Sequence[Span] | None = None
    ) -> Grade:
        """Grades one completion; never raises on what the model wrote.

        Args:
            reference: The example's.
            completion: The exact text of the rollout, what the environment wrote included.
            finished: False where generation was cut by a length limit, or ended in a search that has no answer.
            turns: What the policy wrote: spans of ``completion`` in order; None for all of it.
        """
        ...
