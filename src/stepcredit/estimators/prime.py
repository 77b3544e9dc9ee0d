"""PRIME: dense rewards from an implicit process reward model, with a leave-one-out baseline."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from stepcredit.estimators.base import Assignment, Estimator, total
from stepcredit.estimators.compacted import Compacted
from stepcredit.estimators.in_place import InPlace, Kernel, Writing
from stepcredit.estimators.whitened import whitened_returns
from stepcredit.ops.kernels.operands import Line
from stepcredit.ops.returns import return_to_go
from stepcredit.ops.scaling import by_whitening, leave_one_out, whitener
from stepcredit.shaping.token_baseline import TokenBaseline, baseline_of_means, token_leave_one_out

PROCESS_NORM_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class PRIME(Estimator):
    """Process reinforcement through implicit rewards: the estimator of the authors' public code.

    ``process_rewards`` holds the implicit reward of each token, beta (log pi_phi - log pi_ref). It is read token by
    token, with step ids too, which then only say what is covered.

        p = process_rewards, 0 at the response's last token, over the batch's max |reverse cumulative sum| + 1e-6
        b[i, t] = n / (n - 1) (p[i, t] - mean of the group's m_j),  m_j = mean of p over response j       ("code")
        A = whitened( return-to-go of b + leave-one-out outcome )  over the batch's response tokens

    Attributes:
        token_baseline: "code" as above, or "paper": p[i, t] minus the mean of the *other* responses' m_j.
        process_norm: "batch_max" as above, or None for the signal as it is.

    Degenerate cases:
        A group of one gets 0 from both sources, before whitening. Uncovered tokens have p = b = 0 and no part in m_j.

    Example:
        >>> from stepcredit import RolloutBatch
        >>> batch = RolloutBatch.from_lists([1, 1], [0, 0], [1.0, 0.0], process_rewards=[[0.3], [0.1]])
        >>> [round(a, 4) for [a] in PRIME()(batch).advantages.tolist()]
        [0.7071, -0.7071]

    Reference:
        Cui et al., PRIME, arXiv 2502.01456; "code" is its recipe for verl, which departs from the paper's equation.
    """

    type: ClassVar[str] = "prime"
    requires = frozenset({"rewards", "process_rewards"})
    token_baseline: TokenBaseline = "code"
    process_norm: Literal["batch_max"] | None = "batch_max"

    @property
    def exempt(self) -> Mapping[str, str]:
        """Whitening is over the batch, and the last token has no process reward."""
        whitened = dict.fromkeys(("alone", "leak", "unscored"), "whitens over the batch's tokens")
        return {**whitened, "edges": "sets the last token's process reward to 0"}

    def assign(self, view: Compacted) -> Assignment:
        """Both sources' returns, summed one to one and whitened."""
        outcome = leave_one_out(view.channels["outcome"], view.groups)
        returns = {
            "outcome": view.rows.spread(outcome),  # what stands on the last token comes back to all of them
            "process": return_to_go(self._centered_process(view), view.rows),
        }
        return Assignment.linear(returns, whitener(total(returns), view.token_groups.merged()))

    def kernel(self, place: InPlace) -> Kernel | str:
        """The same in three passes."""
        return place.refusal("process_rewards") or partial(self._whitened_returns, place)

    def _whitened_returns(self, place: InPlace) -> Writing:
        signal, rows = place.signal_with_last_0, place.rows
        nothing = torch.zeros_like(rows.length, dtype=torch.float64)
        raw = place.kernels.returns(signal, Line(nothing, nothing + 1, nothing), rows)
        norm = nothing + 1
        if self.process_norm == "batch_max":
            largest = torch.cat([nothing.new_zeros(1), raw.greatest, -raw.least]).max()
            norm = torch.where(largest > 0, norm / (largest + PROCESS_NORM_EPS), 0.0)
        scored = raw.count > 0
        means = torch.where(scored, raw.whole * norm / raw.count.clamp(min=1), 0.0)
        factor, baseline = baseline_of_means(means, scored, place.groups, self.token_baseline)
        slope = factor * norm
        process = Line(baseline / torch.where(norm > 0, norm, 1.0), slope, nothing)
        outcome = {"outcome": leave_one_out(place.channels["outcome"], place.groups)}
        return whitened_returns(place, signal, process, outcome, by_whitening, 1)

    def _centered_process(self, view: Compacted) -> Tensor:
        """b, float64 [N]: the scaled implicit reward minus its baseline, 0 where uncovered."""
        p = view.signal.index_fill(0, view.rows.last, 0.0)
        if self.process_norm == "batch_max":
            largest = view.token_groups.merged().max(return_to_go(p, view.rows).abs()).clamp(min=0)
            p = p / (largest + PROCESS_NORM_EPS)
        return token_leave_one_out(p, view.rows, view.groups, view.batch.covered, self.token_baseline)
