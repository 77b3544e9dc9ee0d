"""RLOO: each rollout's baseline is the mean reward of the others."""

from dataclasses import dataclass
from typing import ClassVar

from stepcredit.estimators.base import Assignment
from stepcredit.estimators.in_place import InPlace, Kernel
from stepcredit.estimators.reward_sum import RewardSum
from stepcredit.estimators.rollout_view import RolloutView
from stepcredit.ops.scaling import leave_one_out, on_rollouts


@dataclass(frozen=True, kw_only=True)
class RLOO(RewardSum):
    """REINFORCE with a leave-one-out baseline.

        A[i, t] = R_i - mean of the other rollouts' R = G / (G - 1) (R_i - mean R)

    The reward R is that of `RewardSum`: ``w_outcome`` (1) and ``w_format`` (0) times outcome and format, plus each
    extra reward times its weight in ``w_extra`` (1 where it is not named). ``singletons``: what a group of one gets,
    "zero" or its "raw" reward.

    Example:
        >>> from stepcredit import RolloutBatch
        >>> RLOO()(RolloutBatch.from_lists([1, 1], [0, 0], [1.0, 0.0])).advantages.tolist()
        [[1.0], [-1.0]]

    Reference:
        Ahmadian et al., arXiv 2402.14740.
    """

    type: ClassVar[str] = "rloo"

    @property
    def per_rollout(self) -> bool:
        """All tokens of a rollout get one number."""
        return True

    def assign(self, view: RolloutView) -> Assignment:
        """The reward minus its leave-one-out baseline, on every token."""
        per_rollout = on_rollouts(lambda x: leave_one_out(x, view.groups), view.groups, self.singletons)
        return Assignment.linear(self.weighted(view), per_rollout)

    def kernel(self, place: InPlace) -> Kernel | str:
        """The same, of all rows where they stand."""
        return place.refusal() or (lambda: self.assign(place).writing(place.spread))
