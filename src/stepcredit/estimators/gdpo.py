"""GDPO: every reward channel standardized on its own before they are summed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from stepcredit.estimators.base import Assignment, total
from stepcredit.estimators.compacted import Compacted
from stepcredit.estimators.in_place import InPlace, Kernel
from stepcredit.estimators.reward_sum import RewardSum
from stepcredit.estimators.rollout_view import RolloutView
from stepcredit.estimators.whitened import whitened_rows
from stepcredit.ops.groups import Pool
from stepcredit.ops.scaling import LinearMap, by_deviation, on_rollouts, standardizer
from stepcredit.options import option


@dataclass(frozen=True, kw_only=True)
class GDPO(RewardSum):
    """Group reward-decoupled policy optimization.

        a_i = sum over channels c of w_c (R_c,i - mean R_c) / (std R_c + std_eps) over i's group
        A[i, t] = (a_i - mean a) / (std a + std_eps) over the batch

    The reward R is that of `RewardSum`: ``w_outcome`` (1) and ``w_format`` (1) times outcome and format, plus each
    extra reward times its weight in ``w_extra`` (1 where it is not named). ``singletons``: what a group of one gets,
    "zero" or its "raw" reward.

    Attributes:
        w_format: Weight of the format channel, 1 by default: several channels are what the scheme is for.
        whiten_over: The batch's "rollouts" (as TRL, whose std_eps is 1e-4) or its response "tokens" (as verl, whose
            singletons are "raw").
        std_eps: Added to both standard deviations.
        correction: Delta degrees of freedom of both.

    Degenerate cases:
        A channel that is constant in a group adds 0 there; a batch of equal sums gets exactly 0.

    Example:
        >>> from stepcredit import RolloutBatch
        >>> batch = RolloutBatch.from_lists([1, 1], [0, 0], [1.0, 0.0], format_rewards=[1.0, 1.0])
        >>> GDPO(correction=0, std_eps=0.0)(batch).advantages.tolist()
        [[1.0], [-1.0]]

    Reference:
        Liu et al., GDPO, arXiv 2601.05242.
    """

    type: ClassVar[str] = "gdpo"
    w_format: float = 1.0
    whiten_over: Literal["rollouts", "tokens"] = "rollouts"
    std_eps: float = option(1e-6, at_least=0)
    correction: int = option(1, at_least=0)

    @property
    def exempt(self) -> Mapping[str, str]:
        """The sum of the channels is scaled over the batch."""
        return {**super().exempt, **dict.fromkeys(("alone", "leak"), "whitens over the batch")}

    @property
    def per_rollout(self) -> bool:
        """All tokens of a rollout get one number, unless they are weighed by their count."""
        return self.whiten_over == "rollouts"

    def assign(self, view: Compacted) -> Assignment:
        """The channels' z-scores summed, and the sum's z-score over the batch."""
        if self.whiten_over == "rollouts":
            return self._over_rollouts(view)
        channels = {name: view.rows.spread(x) for name, x in self._standardized(view).items()}
        return Assignment.linear(channels, self._scale(total(channels), view.token_groups.merged()))

    def kernel(self, place: InPlace) -> Kernel | str:
        """The same, of all rows where they stand."""
        if self.whiten_over == "rollouts":
            return place.refusal() or (lambda: self._over_rollouts(place).writing(place.spread))
        rule = by_deviation(self.std_eps)
        return place.refusal() or (lambda: whitened_rows(place, self._standardized(place), rule, self.correction))

    def _over_rollouts(self, view: RolloutView) -> Assignment:
        channels = self._standardized(view)
        return Assignment.linear(channels, self._scale(total(channels), view.groups.merged()))

    def _standardized(self, view: RolloutView) -> dict[str, Tensor]:
        """Each weighted channel's z-score in its group, float64 [R]."""
        channels = {}
        for name, weight in self.weights(view).items():
            x = view.channels[name]
            z = self._scale(x, view.groups)
            channels[name] = weight * on_rollouts(z, view.groups, self.singletons)(x)
        return channels

    def _scale(self, x: Tensor, pool: Pool) -> LinearMap:
        return standardizer(x, pool, std_eps=self.std_eps, correction=self.correction)
