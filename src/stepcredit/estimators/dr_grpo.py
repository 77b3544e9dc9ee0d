"""Dr. GRPO: GRPO's advantage without the division by the standard deviation."""

from dataclasses import dataclass
from typing import ClassVar

from stepcredit.estimators.base import Assignment
from stepcredit.estimators.in_place import InPlace, Kernel
from stepcredit.estimators.reward_sum import RewardSum
from stepcredit.estimators.rollout_view import RolloutView
from stepcredit.ops.scaling import center, on_rollouts


@dataclass(frozen=True, kw_only=True)
class DrGRPO(RewardSum):
    """The reward minus its group's mean, on every token.

        A[i, t] = R_i - mean R

    The other half of the method, a loss without the division by the response's length, is the trainer's.

    The reward R is that of `RewardSum`: ``w_outcome`` (1) and ``w_format`` (0) times outcome and format, plus each
    extra reward times its weight in ``w_extra`` (1 where it is not named). ``singletons``: what a group of one gets,
    "zero" or its "raw" reward.

    Example:
        >>> from stepcredit import RolloutBatch
        >>> DrGRPO()(RolloutBatch.from_lists([1, 1], [0, 0], [1.0, 0.0])).advantages.tolist()
        [[0.5], [-0.5]]

    Reference:
        Liu et al., arXiv 2503.20783.
    """

    type: ClassVar[str] = "dr_grpo"

    @property
    def per_rollout(self) -> bool:
        """All tokens of a rollout get one number."""
        return True

    def assign(self, view: RolloutView) -> Assignment:
        """The centered reward, on every token."""
        per_rollout = on_rollouts(lambda x: center(x, view.groups), view.groups, self.singletons)
        return Assignment.linear(self.weighted(view), per_rollout)

    def kernel(self, place: InPlace) -> Kernel | str:
        """The same, of all rows where they stand."""
        return place.refusal() or (lambda: self.assign(place).writing(place.spread))
