"""SPRO: process credit from the policy itself, without a reward model."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from stepcredit.estimators.base import Assignment, Estimator
from stepcredit.estimators.compacted import Compacted
from stepcredit.estimators.in_place import InPlace, Kernel, Writing
from stepcredit.estimators.rollout_view import RolloutView
from stepcredit.ops.kernels.operands import flat
from stepcredit.ops.logprobs import log_ratio
from stepcredit.ops.scaling import Singletons, on_rollouts, standardizer
from stepcredit.options import option
from stepcredit.shaping.step_advantage import Attribution, masked_step_advantage, process_return


@dataclass(frozen=True, kw_only=True)
class SPRO(Estimator):
    """Self-guided process reward optimization: outcome z-score plus masked step advantage.

        A[i, t] = N(r_i; group) + MSA[i, t]
        MSA[i, t] = CPR[i, t] - mean of CPR[., t] over the group's rollouts still alive at t
        CPR[i, t] = sum over j <= t of beta (log pi_old - log pi_ref)[i, j]

    On-policy its expected gradient raises the KL to the reference, so watch that KL; on long responses beta = 0.05 can
    diverge where 0.01 does not.

    Attributes:
        beta: Temperature of the max-entropy problem. Not published for SPRO; PRIME's value.
        attribution: "prefix" (the paper's cumulative reward), "token" (the token's own log-ratio; same expectation,
            less variance) or "return_to_go".
        column_std: Also divide MSA by the standard deviation of its column.
        clip: Largest |MSA|, applied before adding; None for no limit.
        std_eps: Added to standard deviations.
        correction: Delta degrees of freedom of standard deviations.
        singletons: What the outcome of a group of one becomes: "zero" or "raw".

    Degenerate cases:
        Policy and reference equal: exactly GRPO. A lone survivor of its group: MSA is 0.

    Example:
        >>> from stepcredit import RolloutBatch
        >>> batch = RolloutBatch.from_lists([1, 1], [0, 0], [1.0, 1.0], old_logprobs=[[-1.0], [-2.0]],
        ...                                 ref_logprobs=[[-2.0], [-2.0]])
        >>> SPRO(beta=0.5)(batch).advantages.tolist()
        [[0.25], [-0.25]]

    Reference:
        SPRO, arXiv 2507.01551, eq. 11-13. ``attribution`` beyond "prefix", ``column_std`` and ``clip`` are additions.
    """

    type: ClassVar[str] = "spro"
    requires = frozenset({"rewards", "old_logprobs", "ref_logprobs"})
    beta: float = option(0.05, at_least=0)
    attribution: Attribution = "prefix"
    column_std: bool = False
    clip: float | None = option(None, above=0)
    std_eps: float = option(1e-6, at_least=0)
    correction: int = option(1, at_least=0)
    singletons: Singletons = "zero"

    @property
    def exempt(self) -> Mapping[str, str]:
        """A group of one that keeps its raw reward has no baseline; a limit hides what is beyond it."""
        raw = {"constant": "a group of one keeps its raw reward"} if self.singletons == "raw" else {}
        return raw if self.clip is None else {**raw, "place": "a limit hides what is beyond it"}

    def assign(self, view: Compacted) -> Assignment:
        """The outcome's z-score on every token, plus the masked step advantage."""
        ratios = log_ratio(view.per_token("old_logprobs"), view.per_token("ref_logprobs"))
        msa = masked_step_advantage(
            process_return(ratios, view.rows, beta=self.beta, attribution=self.attribution),
            view.positions,
            column_std=self.column_std,
            std_eps=self.std_eps,
            correction=self.correction,
            clip=self.clip,
        )
        terms = {"outcome": view.rows.spread(self._outcome(view)), "process": msa}
        return Assignment.linear(terms, lambda x: x)

    def kernel(self, place: InPlace) -> Kernel | str:
        """The same in two passes over each group's rows."""
        known = {"attribution": (self.attribution, "prefix"), "column_std": (self.column_std, False)}
        why = place.refusal("old_logprobs", "ref_logprobs", **known, clip=(self.clip, None))
        return why or partial(self._writing, place)

    def _writing(self, place: InPlace) -> Writing:
        policy, ref = (flat(getattr(place.batch, name)) for name in ("old_logprobs", "ref_logprobs"))
        outcome = self._outcome(place)
        streams = {"outcome": (outcome, 0.0), "process": (torch.zeros_like(outcome), self.beta)}

        def write(of: tuple[Tensor, float], out: Tensor) -> None:
            each, beta = of
            place.kernels.prefix_step_advantage(policy, ref, each, place.grouped, out, beta=beta)

        return Writing((outcome, self.beta), lambda: streams, write)

    def _outcome(self, view: RolloutView) -> Tensor:
        """The outcome's z-score, float64 [R]."""
        r = view.channels["outcome"]
        z = standardizer(r, view.groups, std_eps=self.std_eps, correction=self.correction)
        return on_rollouts(z, view.groups, self.singletons)(r)
