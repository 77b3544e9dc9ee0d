"""What a process signal is to those who use one."""

from collections.abc import Sequence
from typing import ClassVar, Protocol, runtime_checkable

from stepcredit.batch import RolloutBatch, Rollouts, ScoredSpan


@runtime_checkable
class TextSignal(Protocol):
    """Scores the text of rollouts: character spans in, a score each out.

    Attributes:
        name: What configs and the command line call it.
        unit: What its numbers are.
        requires: The `Rollouts` fields that it reads beside the texts.
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    requires: ClassVar[frozenset[str]]

    def score(self, rollouts: Rollouts) -> Sequence[Sequence[ScoredSpan]]:
        """The scored spans of each completion, in order; what has no score is left out."""
        ...


@runtime_checkable
class TensorSignal(Protocol):
    """Reads tensors of a batch: maps it to one with `process_rewards`.

    Attributes:
        name: What configs and the command line call it.
        unit: What its numbers are.
        requires: The `RolloutBatch` fields that it reads.
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    requires: ClassVar[frozenset[str]]

    def __call__(self, batch: RolloutBatch) -> RolloutBatch:
        """The batch with this signal as its process rewards."""
        ...


Signal = TextSignal | TensorSignal
