"""Process signals that are read from log-probabilities: each maps a batch to one with `process_rewards`."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from stepcredit.batch import RolloutBatch, Rollouts
from stepcredit.errors import InputError
from stepcredit.ops import logprobs
from stepcredit.options import Options
from stepcredit.signals.scores import with_token_signal


@dataclass(frozen=True)
class LogProbSignal(Options, ABC):
    """A token signal from log-probabilities; in step mode a step's signal is the sum over its tokens.

    Attributes:
        name: What configs and the command line call it.
        unit: What its numbers are.
        requires: The fields of the batch, or of the rollouts, that it reads.
    """

    name: ClassVar[str]
    unit: ClassVar[str] = "nats"
    requires: ClassVar[frozenset[str]]

    def __call__(self, batch: RolloutBatch) -> RolloutBatch:
        """The batch with this signal as its `process_rewards`.

        Raises:
            InputError: A log-probability field that the signal reads is missing.
        """
        if not isinstance(batch, RolloutBatch):
            raise InputError(f"`batch` must be a RolloutBatch; got {type(batch).__name__}.")
        self._check(batch, "batch")
        read = {field: batch.layout.pack(getattr(batch, field)).double() for field in self.requires}
        wide = any(getattr(batch, field).dtype == torch.float64 for field in self.requires)
        return with_token_signal(batch, self.token_signal(**read), torch.float64 if wide else torch.float32)

    def score(self, rollouts: Rollouts) -> list[list[float]]:
        """The signal of each completion token.

        Raises:
            InputError: A log-probability field that the signal reads is missing.
        """
        self._check(rollouts, "rollouts")
        fields = sorted(self.requires)
        rows = zip(*(getattr(rollouts, field) for field in fields), strict=True)
        read = ((torch.tensor(x, dtype=torch.float64) for x in row) for row in rows)
        return [self.token_signal(**dict(zip(fields, row, strict=True))).tolist() for row in read]

    def _check(self, source: RolloutBatch | Rollouts, name: str) -> None:
        for field in sorted(self.requires):
            if getattr(source, field) is None:
                raise InputError(f"`{field}` must be in the {name} for {type(self).__name__}; got None.")

    @abstractmethod
    def token_signal(self, **fields: Tensor) -> Tensor:
        """float64 [N] from the packed log-probabilities named in ``requires``, float64 [N] each."""


@dataclass(frozen=True)
class OPD(LogProbSignal):
    """On-policy distillation: ``log pi_T - log pi_old`` of each sampled token, nats.

    Example:
        >>> batch = RolloutBatch.from_lists([2], [0], old_logprobs=[[-1.0, -2.0]], teacher_logprobs=[[-0.5, -2.5]])
        >>> OPD()(batch).process_rewards.tolist()
        [[0.5, -0.5]]

    Reference:
        PASS, arXiv 2606.29296, section 3.
    """

    name: ClassVar[str] = "opd"
    requires = frozenset({"old_logprobs", "teacher_logprobs"})

    def token_signal(self, **fields: Tensor) -> Tensor:
        """`stepcredit.functional.opd`."""
        return logprobs.opd(fields["old_logprobs"], fields["teacher_logprobs"])


@dataclass(frozen=True)
class GOPD(LogProbSignal):
    """Generalized on-policy distillation: ``-[(l_old - l_base) - lam (l_T - l_base)]``, nats.

    Attributes:
        lam: How far to extrapolate from the base model toward the teacher; 1 is OPD, 1.25 the papers' setting.

    Example:
        >>> batch = RolloutBatch.from_lists([1], [0], old_logprobs=[[-1.0]], teacher_logprobs=[[-0.5]],
        ...                                 base_logprobs=[[-1.5]])
        >>> GOPD(lam=2.0)(batch).process_rewards.tolist()
        [[1.5]]

    Reference:
        G-OPD, arXiv 2602.12125; PASS, arXiv 2606.29296, eq. 5.
    """

    name: ClassVar[str] = "gopd"
    requires = frozenset({"old_logprobs", "teacher_logprobs", "base_logprobs"})
    lam: float = 1.25

    def token_signal(self, **fields: Tensor) -> Tensor:
        """`stepcredit.functional.gopd`."""
        return logprobs.gopd(fields["old_logprobs"], fields["teacher_logprobs"], fields["base_logprobs"], self.lam)


@dataclass(frozen=True)
class LogRatio(LogProbSignal):
    """The policy's own log-ratio to its reference, ``beta (log pi_old - log pi_ref)``, nats times beta.

    Attributes:
        beta: Scale of the ratio.

    Example:
        >>> batch = RolloutBatch.from_lists([1], [0], old_logprobs=[[-1.0]], ref_logprobs=[[-2.0]])
        >>> LogRatio(beta=0.5)(batch).process_rewards.tolist()
        [[0.5]]

    Reference:
        The implicit reward of PRIME (arXiv 2502.01456) and of SPRO (arXiv 2507.01551, eq. 11).
    """

    name: ClassVar[str] = "log_ratio"
    requires = frozenset({"old_logprobs", "ref_logprobs"})
    beta: float = 1.0

    def token_signal(self, **fields: Tensor) -> Tensor:
        """`stepcredit.functional.log_ratio` times beta."""
        return self.beta * logprobs.log_ratio(fields["old_logprobs"], fields["ref_logprobs"])
