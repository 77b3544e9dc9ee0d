"""GRPO with outcome rewards: every token of a response gets its reward's z-score in the group."""

from dataclasses import dataclass
from typing import ClassVar

from stepcredit.estimators.base import Assignment, total
from stepcredit.estimators.in_place import InPlace, Kernel
from stepcredit.estimators.reward_sum import RewardSum
from stepcredit.estimators.rollout_view import RolloutView
from stepcredit.ops.scaling import on_rollouts, standardizer
from stepcredit.options import option


@dataclass(frozen=True, kw_only=True)
class GRPO(RewardSum):
    """Group-relative policy optimization, outcome supervision.

        A[i, t] = (R_i - mean R) / (std R + std_eps) over the rollouts of i's group

    The reward R is that of `RewardSum`: ``w_outcome`` (1) and ``w_format`` (0) times outcome and format, plus each
    extra reward times its weight in ``w_extra`` (1 where it is not named). ``singletons``: what a group of one gets,
    "zero" or its "raw" reward.

    Attributes:
        std_eps: Added to the standard deviation.
        correction: Delta degrees of freedom of the standard deviation.

    Degenerate cases:
        A group whose rewards are all equal gets exactly 0.

    Example:
        >>> from stepcredit import RolloutBatch
        >>> batch = RolloutBatch.from_lists([2, 1], [0, 0], [1.0, 0.0])
        >>> GRPO(correction=0, std_eps=0.0)(batch).advantages.tolist()
        [[1.0, 1.0], [-1.0, 0.0]]

    Reference:
        Shao et al., DeepSeekMath, arXiv 2402.03300, 4.1.2. Weights and ``singletons`` are additions.
    """

    type: ClassVar[str] = "grpo"
    std_eps: float = option(1e-6, at_least=0)
    correction: int = option(1, at_least=0)

    @property
    def per_rollout(self) -> bool:
        """All tokens of a rollout get one number."""
        return True

    def assign(self, view: RolloutView) -> Assignment:
        """The standardized reward, on every token."""
        rewards = self.weighted(view)
        z = standardizer(total(rewards), view.groups, std_eps=self.std_eps, correction=self.correction)
        per_rollout = on_rollouts(z, view.groups, self.singletons)
        return Assignment.linear(rewards, per_rollout)

    def kernel(self, place: InPlace) -> Kernel | str:
        """The same, of all rows where they stand."""
        return place.refusal() or (lambda: self.assign(place).writing(place.spread))
