"""What a task is to those who train and evaluate on it."""

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

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
    """

    name: ClassVar[str]
    endless: ClassVar[bool]
    kinds: ClassVar[tuple[str, ...]]

    @property
    def instruction(self) -> str:
        """The system message for policies with a chat template; empty for none."""
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
