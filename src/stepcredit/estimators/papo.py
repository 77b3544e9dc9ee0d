"""PAPO: among correct rollouts, the better-reasoned ones get more."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from stepcredit.estimators.base import Assignment, Estimator
from stepcredit.estimators.compacted import Compacted
from stepcredit.ops.scaling import Singletons, on_rollouts, standardize, standardizer
from stepcredit.options import option


@dataclass(frozen=True, kw_only=True)
class PAPO(Estimator):
    """Decoupled process and outcome advantages, both per response.

        A[i, t] = N(r_i; group) + w_process N(p_i; the group's correct rollouts)   for a correct rollout i
        A[i, t] = N(r_i; group)                                                    otherwise
        p_i = mean of the rollout's step signals, each step once

    Attributes:
        w_process: Weight of the process advantage.
        std_eps: Added to both standard deviations.
        correction: Delta degrees of freedom of both.
        singletons: What the outcome advantage of a group of one is: "zero", or the "raw" reward.

    Degenerate cases:
        With fewer than two correct rollouts that have a covered step, the process advantage is 0.

    Example:
        >>> from stepcredit import RolloutBatch
        >>> batch = RolloutBatch.from_lists([1, 1, 1], [0, 0, 0], [1.0, 1.0, 0.0],
        ...                                 process_rewards=[[1.0], [0.0], [9.0]])
        >>> PAPO(correction=0, std_eps=0.0)(batch).terms()["process"].tolist()
        [[1.0], [-1.0], [0.0]]

    Reference:
        PAPO (decoupled), arXiv 2603.26535. It has one rubric score a response; the mean over steps stands in for it.
    """

    type: ClassVar[str] = "papo"
    requires = frozenset({"rewards", "process_rewards"})
    w_process: float = 1.0
    std_eps: float = option(1e-6, at_least=0)
    correction: int = option(1, at_least=0)
    singletons: Singletons = "zero"

    @property
    def exempt(self) -> Mapping[str, str]:
        """A response has one process score, and a group of one that keeps its raw reward has no baseline."""
        raw = {"constant": "a group of one keeps its raw reward"} if self.singletons == "raw" else {}
        return {**raw, "shift": "a response's process score is the mean over its steps"}

    @property
    def per_rollout(self) -> bool:
        """All tokens of a rollout get one number."""
        return True

    def assign(self, view: Compacted) -> Assignment:
        """The outcome's z-score plus, for correct rollouts, the process score's."""
        r = view.channels["outcome"]
        z = standardizer(r, view.groups, std_eps=self.std_eps, correction=self.correction)
        terms = {
            "outcome": on_rollouts(z, view.groups, self.singletons)(r),
            "process": self.w_process * self._among_correct(view),
        }
        return Assignment.linear(terms, lambda x: x)

    def _among_correct(self, view: Compacted) -> torch.Tensor:
        counts = torch.bincount(view.step_rows, minlength=len(view.rows))
        means = torch.zeros_like(view.channels["outcome"]).index_add_(0, view.step_rows, view.step_signal)
        chosen = (view.correct & (counts > 0)).nonzero().squeeze(1)
        scores = means[chosen] / counts[chosen]
        z = standardize(scores, view.groups.select(chosen), std_eps=self.std_eps, correction=self.correction)
        return torch.zeros_like(means).index_copy_(0, chosen, z)
