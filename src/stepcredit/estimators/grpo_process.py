"""GRPO with process rewards: the return-to-go of standardized step signals, in the four ways people mix it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from torch import Tensor

from stepcredit.estimators.base import Assignment
from stepcredit.estimators.compacted import Compacted
from stepcredit.estimators.in_place import InPlace, Kernel, Writing
from stepcredit.estimators.streams import StreamScheme
from stepcredit.ops.returns import return_to_go
from stepcredit.shaping.fusion import scale_in_union


@dataclass(frozen=True, kw_only=True)
class GRPOProcess(StreamScheme):
    """Group-relative policy optimization, process supervision.

        A[i, t] = sum over the steps j of rollout i that end at t or later of s~(i, j)

    where s~ is the step signal scaled over all steps of the group, each step once. With the outcome and format streams
    beside it, ``fusion`` says how they meet; they land on the response's last token, so that the return-to-go brings
    each to every token exactly once.

    Attributes:
        fusion: "process": the process stream alone (DeepSeekMath). "pooled": one set holds the group's step signals,
            outcomes and formats, and each is scaled with the union's statistics; a weight of 0 takes a stream out.
            "summed": the raw weighted sum on every step is scaled over the group's steps (reward shaping).
            "separate": each stream in its own pool.

    The other options are those of `StreamScheme`: ``norm`` ("masked_norm", a z-score, or "abs_max"), ``norm_scope``
    ("process": outcome and format keep the z-score; "all"), the weights ``w_process``, ``w_outcome``, ``w_format``,
    ``std_eps`` and ``correction`` of the z-score, and ``singletons`` (what outcome and format of a group of one become
    in their own pools, "zero" or "raw").

    Degenerate cases:
        A pool of equal values gives 0. A token after its rollout's last step gets no process credit.

    Example:
        >>> from stepcredit import RolloutBatch
        >>> batch = RolloutBatch.from_lists([2], [0], step_ids=[[0, 1]], process_rewards=[[1.0, 0.0]])
        >>> GRPOProcess(correction=0, std_eps=0.0)(batch).advantages.tolist()
        [[0.0, -1.0]]

    Reference:
        Shao et al., DeepSeekMath, arXiv 2402.03300, 4.1.3; PASS, arXiv 2606.29296, eq. 1-3, 4.1 and table 3. PASS calls
        both "pooled" and "summed" the default recipe.
    """

    type: ClassVar[str] = "grpo_process"
    fusion: Literal["process", "pooled", "summed", "separate"] = "process"

    @property
    def exempt(self) -> Mapping[str, str]:
        """In a union of streams none has a baseline of its own."""
        if self.fusion == "pooled":
            return dict.fromkeys(("constant", "equal", "unscored"), "one mean for all streams")
        laws = super().exempt
        return laws if self.fusion != "process" else {law: why for law, why in laws.items() if law == "coverage"}

    def assign(self, view: Compacted) -> Assignment:
        """Return-to-go of the fused streams."""
        on_steps, on_rollouts = self._fused(view)
        streams = {name: view.steps.place(x) for name, x in on_steps.items()}
        for name, x in on_rollouts.items():
            streams[name] = view.at_last_token(x)
        view.warn_if_piecewise_constant()
        return Assignment.linear(streams, lambda x: return_to_go(x, view.rows), segment_ids=lambda: view.step_ids)

    def kernel(self, place: InPlace) -> Kernel | str:
        """The same in two passes, where each stream has its own pool."""
        fusion = "separate" if self.fusion == "process" else self.fusion
        known = {"norm": (self.norm, "masked_norm"), "fusion": (fusion, "separate")}
        return place.refusal("process_rewards", **known) or partial(self._writing, place)

    def _writing(self, place: InPlace) -> Writing:
        center, scale = place.moments.scale(place.groups, std_eps=self.std_eps, correction=self.correction)
        streams = {"process": self.w_process * scale}
        if self.fusion == "separate":
            streams |= {name: self.weights[name] * x for name, x in self.scaled_channels(place).items()}
        place.warn_if_piecewise_constant()
        return place.lines(center, streams, place.kernels.return_to_go_of_steps)

    def _fused(self, view: Compacted) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The weighted streams that live on steps, float64 [M], and those that live on rollouts, float64 [R]."""
        if self.fusion == "pooled":
            return self._pooled(view)
        if self.fusion == "summed":
            return self.summed_on_steps(view), {}
        process = {"process": self.w_process * self.scaled_steps(view)}
        if self.fusion == "process":
            return process, {}
        return process, {name: self.weights[name] * x for name, x in self.scaled_channels(view).items()}

    def _pooled(self, view: Compacted) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        values = {"process": view.step_signal, **view.channels}
        streams = {name: values[name] for name, w in self.weights.items() if name in values and w != 0}
        if not streams:
            return {"process": 0 * view.step_signal}, {}
        pools = {name: view.step_groups if name == "process" else view.groups for name in streams}
        scaled = scale_in_union(streams, pools, {name: self.scaler_of(name) for name in streams})
        weighted = {name: self.weights[name] * x for name, x in scaled.items()}
        on_steps = {name: x for name, x in weighted.items() if name == "process"}
        return on_steps, {name: x for name, x in weighted.items() if name != "process"}
