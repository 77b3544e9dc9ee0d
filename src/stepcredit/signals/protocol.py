"""What a process signal is to those who use one."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

from stepcredit.batch import RolloutBatch, Rollouts, ScoredSpan

Scores = Sequence[Sequence[ScoredSpan]] | Sequence[Sequence[float]]
"""A row a rollout: scored spans of its text, in order, or one number a completion token."""


@runtime_checkable
class Signal(Protocol):
    """Says how good the steps, or the tokens, of rollouts are.

    Attributes:
        name: What configs and the command line call it.
        unit: What its numbers are.
        requires: The `Rollouts` fields that it reads beside prompts and completions; a trainer makes no others.
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    requires: ClassVar[frozenset[str]]

    def score(self, rollouts: Rollouts) -> Scores:
        """Spans with a score, in order; or one number a token. A span left out has no score: it is not covered."""
        ...


@runtime_checkable
class TensorSignal(Signal, Protocol):
    """A signal that reads tensors of the batch as well: with one of these, no text need be made."""

    def __call__(self, batch: RolloutBatch) -> RolloutBatch:
        """The batch with this signal as its process rewards."""
        ...


@runtime_checkable
class LearningSignal(Signal, Protocol):
    """A signal that goes on learning from the rollouts of the run that it is part of.

    Every process of a distributed run calls `update` with the rollouts of all of them, in the same order: what is
    learned must follow from its arguments and the signal's state alone, so that all hold the same.
    """

    def update(self, rollouts: Rollouts, outcomes: Sequence[float]) -> Mapping[str, float]:
        """Learns from rollouts and their outcome rewards, one each; gives numbers to log."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that `update` has changed: tensors and plain values, nested in dicts and lists."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state_dict`, to the numbers that its owner would have had."""
        ...


@runtime_checkable
class LogProbSource(Protocol):
    """Another model's view of sampled tokens: what a teacher or a base model of distillation may be."""

    def logprobs(self, rollouts: Rollouts) -> Sequence[Sequence[float]]:
        """The log-probability of each completion token, nats; masked tokens may hold anything finite."""
        ...
