"""Options shared by the schemes that bring process, outcome and format streams together."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from stepcredit.estimators.base import Estimator
from stepcredit.estimators.compacted import Compacted
from stepcredit.estimators.rollout_view import RolloutView
from stepcredit.ops.scaling import Singletons, on_rollouts
from stepcredit.options import option
from stepcredit.shaping.fusion import Norm, Scaler, scaler


@dataclass(frozen=True, kw_only=True)
class StreamScheme(Estimator):
    """Three streams, each with an operator and a weight.

    Attributes:
        norm: The operator of the process stream: "masked_norm" (z-score) or "abs_max".
        norm_scope: "process": outcome and format keep Masked-Norm. "all": every stream takes ``norm``.
        w_process: Weight of the process stream.
        w_outcome: Weight of the outcome stream.
        w_format: Weight of the format stream.
        std_eps: Added to standard deviations.
        correction: Delta degrees of freedom of standard deviations.
        singletons: What outcome and format of a one-rollout group become in their own pools: "zero" or "raw".
    """

    requires = frozenset({"process_rewards"})
    norm: Norm = "masked_norm"
    norm_scope: Literal["process", "all"] = "process"
    w_process: float = 1.0
    w_outcome: float = 1.0
    w_format: float = 1.0
    std_eps: float = option(1e-6, at_least=0)
    correction: int = option(1, at_least=0)
    singletons: Singletons = "zero"

    @property
    def exempt(self) -> Mapping[str, str]:
        """What a group of one keeps raw, and what Abs-Max scales, has no baseline."""
        found = {"constant": "a group of one keeps its raw reward"} if self.singletons == "raw" else {}
        if self.norm == "abs_max":
            summed = getattr(self, "fusion", None) == "summed"
            if summed or self.norm_scope == "all":
                found |= dict.fromkeys(("constant", "equal"), "Abs-Max subtracts no baseline")
            if not summed:
                found["coverage"] = "Abs-Max keeps a signal of 0"
        return found

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each stream by name."""
        return {"process": self.w_process, "outcome": self.w_outcome, "format": self.w_format}

    def scaler_of(self, stream: str) -> Scaler:
        """The operator of a stream by name."""
        norm = self.norm if stream == "process" or self.norm_scope == "all" else "masked_norm"
        return scaler(norm, std_eps=self.std_eps, correction=self.correction)

    def scaled_steps(self, view: Compacted) -> Tensor:
        """The step signal scaled over its group's steps, float64 [M]."""
        return self.scaler_of("process")(view.step_signal, view.step_groups)(view.step_signal)

    def scaled_channels(self, view: RolloutView) -> dict[str, Tensor]:
        """Outcome and format, those that the batch has, each scaled in its own pool; float64 [R]."""
        named = {name: view.channels[name] for name in ("outcome", "format") if name in view.channels}
        return {
            name: on_rollouts(self.scaler_of(name)(x, view.groups), view.groups, self.singletons)(x)
            for name, x in named.items()
        }

    def summed_on_steps(self, view: Compacted) -> dict[str, Tensor]:
        """Reward shaping: the raw weighted sum of the streams on every step, scaled as one; its parts, float64 [M]."""
        raw = {"process": self.w_process * view.step_signal}
        for name in ("outcome", "format"):
            if name in view.channels:
                raw[name] = self.weights[name] * view.channels[name][view.step_rows]
        scale = self.scaler_of("process")(sum(raw.values(), start=0 * view.step_signal), view.step_groups)
        return {name: scale(x) for name, x in raw.items()}
