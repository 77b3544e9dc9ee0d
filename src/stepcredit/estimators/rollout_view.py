"""What an estimator reads of each rollout: its rewards, its group, and what is said of it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from stepcredit.batch import RolloutBatch
from stepcredit.errors import InputError
from stepcredit.ops.groups import Pool, ProcessGroup


@dataclass(frozen=True, eq=False)
class RolloutView(ABC):
    """A batch as numbers a rollout, of R rollouts.

    Attributes:
        batch: The validated batch.
        process_group: The ranks that share groups, or None.
    """

    batch: RolloutBatch
    process_group: ProcessGroup | None = None

    @property
    @abstractmethod
    def groups(self) -> Pool:
        """The group of each of the R rollouts, over all ranks of the process group."""

    @abstractmethod
    def of_rollouts(self, x: Tensor) -> Tensor:
        """[batch] -> [R], with nothing of the rows that do not count."""

    @cached_property
    def channels(self) -> dict[str, Tensor]:
        """The reward channels that the batch has: "outcome", "format", the extra ones by name; float64 [R] each.

        Extra ones are sorted, so that ranks whose dicts were filled in another order reduce the same things.
        """
        batch = self.batch
        extra = sorted((batch.extra_rewards or {}).items())
        named = {"outcome": batch.rewards, "format": batch.format_rewards, **dict(extra)}
        return {name: self.of_rollouts(x).double() for name, x in named.items() if x is not None}

    @cached_property
    def correct(self) -> Tensor:
        """Which rollouts are correct, bool [R]; by default those with a positive outcome reward."""
        if self.batch.correct is not None:
            return self.of_rollouts(self.batch.correct)
        if self.batch.rewards is None:
            raise InputError("`correct` must be given when the batch has no `rewards` to read it from; got None.")
        return self.of_rollouts(self.batch.rewards > 0)

    @cached_property
    def violates(self) -> Tensor | None:
        """Which rollouts break the format, bool [R]; None if the batch does not say."""
        if self.batch.format_ok is not None:
            return self.of_rollouts(~self.batch.format_ok)
        return None if self.batch.format_rewards is None else self.of_rollouts(~(self.batch.format_rewards > 0))
