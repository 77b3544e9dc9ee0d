"""What a task says of one completion: outcome, format, and a ground-truth score a step where the task has one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite

from stepcredit.batch import ScoredSpan
from stepcredit.errors import InputError


@dataclass(frozen=True)
class Grade:
    """The verdict of a task on one completion. Grading never raises on model text: it grades.

    Attributes:
        outcome: Reward of the final answer: 1.0 where it is right, 0.0 where it is absent or unreadable; a wrong one
            has 0.0, or less than 1.0 in a task that rewards an answer in part.
        format_reward: Reward of the form alone, in [0, 1].
        format_ok: True where the form is exactly the one the task asks for.
        steps: Ground-truth process scores, as spans of the exact completion in order; empty where the task
            grades only the answer.
        kinds: One word a step, in the task's own vocabulary; empty, or as long as ``steps``.
        parsed: False where no answer could be read. Such a completion never has a positive outcome.
        reason: A short word on how the verdict came about, for counting.
        measures: Further numbers by name, for averaging: those that the task names, each in every grade.
        correct: Whether the final answer is right; where the task does not say, whether ``outcome`` is positive.

    Raises:
        InputError: ``kinds`` and ``steps`` differ in length, an unread answer is rewarded, an answer without a reward
            is correct, or a measure is not finite.

    Degenerate cases:
        An empty completion has no steps.

    Example:
        >>> grade = Grade(1.0, steps=(ScoredSpan(0, 4, 1.0), ScoredSpan(4, 9, 0.0)), kinds=("one", "merged"))
        >>> grade.first_error, Grade(1.0).first_error
        (1, None)
        >>> Grade(1.0).correct, Grade(0.5).correct, Grade(0.5, correct=False).correct
        (True, True, False)
    """

    outcome: float
    format_reward: float = 0.0
    format_ok: bool = False
    steps: Sequence[ScoredSpan] = ()
    kinds: tuple[str, ...] = ()
    parsed: bool = True
    reason: str = ""
    measures: Mapping[str, float] = field(default_factory=dict, hash=False)
    correct: bool = None  # type: ignore[assignment]  # settled below

    def __post_init__(self) -> None:
        """Settles the verdict; checks the invariants that readers of a grade rely on."""
        if self.correct is None:
            object.__setattr__(self, "correct", self.outcome > 0)
        if self.kinds and len(self.kinds) != len(self.steps):
            raise InputError(f"`kinds` must have one word a step; got {len(self.kinds)} for {len(self.steps)} steps.")
        if self.outcome > 0 and not self.parsed:
            raise InputError(f"`outcome` must be 0 where no answer was parsed; got {self.outcome}.")
        if self.correct and not self.outcome > 0:
            raise InputError(f"`correct` must be False where the outcome earns nothing; got {self.outcome}.")
        for name, value in self.measures.items():
            if not isfinite(value):
                raise InputError(f"`measures` must be finite; got {value} for {name!r}.")

    @property
    def first_error(self) -> int | None:
        """Index of the first step scored 0; None where every step is right (or there is none)."""
        return next((index for index, step in enumerate(self.steps) if step.score == 0.0), None)
