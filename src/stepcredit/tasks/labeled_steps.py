"""Solutions with a label a step: what process reward models are trained on and held against."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from stepcredit.errors import InputError
from stepcredit.tasks.rows import Row

_WRONG = 0.5  # a step is wrong where its label is below


@dataclass(frozen=True)
class LabeledSteps:
    """One solution, its steps and what is known of them.

    Attributes:
        id: Names the solution; what joins it with raw scores.
        problem: The problem's text.
        steps: The steps' texts, in order.
        labels: For each step how right it is, in [0, 1] (1 right, 0 wrong); None where nobody knows.
        group: What solutions to one problem share, so that a split keeps them together; the problem's text by default.

    Raises:
        InputError: Labels and steps differ in number, there are none, or a label is out of its range.

    Example:
        >>> solution = LabeledSteps("a", "1+1-1?", ("1+1=2", "2-1=2", "So 2"), (1.0, 0.0, None))
        >>> solution.first_error, solution.labels
        (1, (1.0, 0.0, None))
    """

    id: str
    problem: str
    steps: tuple[str, ...]
    labels: tuple[float | None, ...]
    group: str = ""

    def __post_init__(self) -> None:
        """Checks numbers and ranges."""
        if not self.group:
            object.__setattr__(self, "group", self.problem)
        if not self.steps or len(self.labels) != len(self.steps):
            raise InputError(
                f"`labels` must be one a step, of one step or more; got {len(self.labels)} for {len(self.steps)} "
                f"steps of {self.id!r}."
            )
        for label in self.labels:
            if label is not None and not 0.0 <= label <= 1.0:
                raise InputError(f"`labels` must be from 0 to 1, or None; got {label} in {self.id!r}.")

    @property
    def first_error(self) -> int:
        """The first step whose label is below 0.5, counted from 0; -1 where there is none."""
        wrong = (k for k, label in enumerate(self.labels) if label is not None and label < _WRONG)
        return next(wrong, -1)

    @property
    def settled(self) -> bool:
        """Whether the labels say where the first error is: all are known up to it, or all where there is none."""
        first = self.first_error
        return None not in (self.labels if first < 0 else self.labels[:first])


def split_groups(
    solutions: Sequence[LabeledSteps], share: float
) -> tuple[tuple[LabeledSteps, ...], tuple[LabeledSteps, ...]]:
    """Sets a part of the problems aside, the same ones on every machine and in every file that has them.

    A solution is set aside where ``int(blake2b(group)[:8]) / 2**64 < share``: by its group, so that no problem is on
    both sides.

    Args:
        solutions: In any order.
        share: Of the groups, in [0, 1], about; a larger share sets more aside, never others.

    Returns:
        ``(aside, rest)``, each in the order given.

    Raises:
        InputError: ``share`` is out of its range.

    Example:
        >>> solutions = [LabeledSteps(str(k), f"problem {k}", ("x",), (1.0,)) for k in range(1000)]
        >>> [len(part) for part in split_groups(solutions, 0.1)]
        [109, 891]
    """
    if not 0.0 <= share <= 1.0:
        raise InputError(f"`share` must be from 0 to 1; got {share}.")
    aside: list[LabeledSteps] = []
    rest: list[LabeledSteps] = []
    for solution in solutions:
        digest = hashlib.blake2b(solution.group.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        (aside if int.from_bytes(digest, "big") < share * 2**64 else rest).append(solution)
    return tuple(aside), tuple(rest)


def labeled_rows(solutions: Sequence[LabeledSteps]) -> list[Row]:
    """The solutions as rows of one's own format, for `stepcredit.files.write_rows`."""
    fields = ("id", "problem", "steps", "labels", "group")
    return [
        {name: list(value) if isinstance(value := getattr(row, name), tuple) else value for name in fields}
        for row in solutions
    ]
