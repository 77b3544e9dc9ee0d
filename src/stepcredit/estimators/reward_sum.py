"""Options shared by the schemes whose reward is one number a rollout: a weighted sum of its channels."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from stepcredit.errors import InputError
from stepcredit.estimators.base import Estimator
from stepcredit.estimators.rollout_view import RolloutView
from stepcredit.ops.scaling import Singletons
from stepcredit.options import check_option


@dataclass(frozen=True, kw_only=True)
class RewardSum(Estimator):
    """The reward ``R = w_outcome r + w_format f + weighted extra rewards``.

    Attributes:
        w_outcome: Weight of the outcome reward.
        w_format: Weight of the format reward.
        w_extra: Weight of each extra reward by name; 1 where it is not named.
        singletons: What a group of one rollout gets: "zero", or its "raw" reward.
    """

    requires = frozenset({"rewards"})
    w_outcome: float = 1.0
    w_format: float = 0.0
    w_extra: Mapping[str, float] = field(default_factory=dict, hash=False)
    singletons: Singletons = "zero"

    @property
    def exempt(self) -> Mapping[str, str]:
        """A group of one that keeps its raw reward has no baseline."""
        return {"constant": "a group of one keeps its raw reward"} if self.singletons == "raw" else {}

    def __post_init__(self) -> None:
        """Checks every option, the weights of extra rewards among them."""
        super().__post_init__()
        if not isinstance(self.w_extra, Mapping):
            raise InputError(f"`w_extra` must be a mapping of channel names to weights; got {self.w_extra!r}.")
        for name, weight in self.w_extra.items():
            check_option(type(self).__name__, f"w_extra[{name!r}]", weight, float, {})
        object.__setattr__(self, "w_extra", dict(self.w_extra))

    def weights(self, view: RolloutView) -> dict[str, float]:
        """The weight of each reward channel that takes part: those of weight 0 do not, unless all are 0."""
        unknown = sorted(set(self.w_extra) - set(view.batch.extra_rewards or {}))
        if unknown:
            raise InputError(f"`w_extra` must name channels of `extra_rewards`; got {unknown[0]!r}.")
        given = {"outcome": self.w_outcome, "format": self.w_format, **self.w_extra}
        weights = {name: given.get(name, 1.0) for name in view.channels}
        return {name: w for name, w in weights.items() if w != 0} or {"outcome": 0.0}

    def weighted(self, view: RolloutView) -> dict[str, Tensor]:
        """The weighted reward channels that take part, float64 [R] each; R_i is their sum."""
        return {name: w * view.channels[name] for name, w in self.weights(view).items()}
