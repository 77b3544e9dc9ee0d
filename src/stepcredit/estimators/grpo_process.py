"""GRPO with process rewards: the return-to-go of standardized step signals, in the four ways people mix it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from stepcredit.estimators.base import Assignment, Estimator, option, total
from stepcredit.estimators.compacted import Compacted
from stepcredit.ops.returns import return_to_go
from stepcredit.ops.scaling import Singletons, on_rollouts
from stepcredit.shaping.fusion import Norm, Scaler, scale_in_union, scaler


@dataclass(frozen=True, kw_only=True)
class GRPOProcess(Estimator):
    """Group-relative policy optimization, process supervision.

        A[i, t] = sum over the steps j of rollout i that end at t or later of s~(i, j)

    where s~ is the step signal scaled over all steps of the group, each step once. With the outcome and format streams
    beside it, ``fusion`` says how they meet; they land on the response's last token, so that the return-to-go brings
    each to every token exactly once.

    Attributes:
        fusion: "process": the process stream alone (DeepSeekMath). "pooled": one set holds the group's step signals,
            outcomes and formats, each is scaled with the union's statistics. "summed": the raw weighted sum on every
            step is scaled over the group's steps (reward shaping). "separate": each stream in its own pool.
        norm: The operator: "masked_norm" (z-score) or "abs_max".
        norm_scope: "process": outcome and format keep Masked-Norm; "all": every stream takes ``norm``.
        w_process: Weight of the process stream, after scaling (before it in "summed").
        w_outcome: Weight of the outcome stream; 0 takes it out of the union.
        w_format: Weight of the format stream; 0 takes it out of the union.
        std_eps: Added to standard deviations.
        correction: Delta degrees of freedom of standard deviations.
        singletons: What outcome and format of a one-rollout group become under "separate": "zero" or "raw".

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
    requires = frozenset({"process_rewards"})
    fusion: Literal["process", "pooled", "summed", "separate"] = "process"
    norm: Norm = "masked_norm"
    norm_scope: Literal["process", "all"] = "process"
    w_process: float = 1.0
    w_outcome: float = 1.0
    w_format: float = 1.0
    std_eps: float = option(1e-6, at_least=0)
    correction: int = option(1, at_least=0)
    singletons: Singletons = "zero"

    def assign(self, view: Compacted) -> Assignment:
        """Return-to-go of the fused streams."""
        fuse: dict[str, Callable[[Compacted], dict[str, Tensor]]] = {
            "process": self._process,
            "pooled": self._pooled,
            "summed": self._summed,
            "separate": self._separate,
        }
        return Assignment.linear(
            fuse[self.fusion](view),
            lambda x: return_to_go(x, view.rows),
            segment_ids=lambda: token_steps(view),
        )

    def _process(self, view: Compacted) -> dict[str, Tensor]:
        s = self._scaler("process")(view.step_signal, view.step_groups)(view.step_signal)
        return {"process": view.steps.place(self.w_process * s)}

    def _pooled(self, view: Compacted) -> dict[str, Tensor]:
        weights = {"process": self.w_process, "outcome": self.w_outcome, "format": self.w_format}
        streams = {"process": view.step_signal, **view.channels}
        streams = {name: streams[name] for name, w in weights.items() if name in streams and w != 0}
        if not streams:
            return {"process": 0 * view.signal}
        pools = {name: view.step_groups if name == "process" else view.groups for name in streams}
        scaled = scale_in_union(streams, pools, {name: self._scaler(name) for name in streams})
        placed = {}
        for name, x in scaled.items():
            place = view.steps.place if name == "process" else view.at_last_token
            placed[name] = place(weights[name] * x)
        return placed

    def _summed(self, view: Compacted) -> dict[str, Tensor]:
        raw = raw_on_steps(view, self.w_process, self.w_outcome, self.w_format)
        scale = self._scaler("process")(total(raw), view.step_groups)
        return {name: view.steps.place(scale(x)) for name, x in raw.items()}

    def _separate(self, view: Compacted) -> dict[str, Tensor]:
        placed = self._process(view)
        for name, weight in (("outcome", self.w_outcome), ("format", self.w_format)):
            if name in view.channels:
                x = view.channels[name]
                scaled = on_rollouts(self._scaler(name)(x, view.groups), view.groups, self.singletons)(x)
                placed[name] = view.at_last_token(weight * scaled)
        return placed

    def _scaler(self, stream: str) -> Scaler:
        norm = self.norm if stream == "process" or self.norm_scope == "all" else "masked_norm"
        return scaler(norm, std_eps=self.std_eps, correction=self.correction)


def raw_on_steps(view: Compacted, w_process: float, w_outcome: float, w_format: float) -> dict[str, Tensor]:
    """The raw weighted streams on every step, name -> float64 [M]: what reward shaping sums."""
    raw = {"process": w_process * view.step_signal}
    for name, weight in (("outcome", w_outcome), ("format", w_format)):
        if name in view.channels:
            raw[name] = weight * view.channels[name][view.step_rows]
    return raw


def token_steps(view: Compacted) -> Tensor:
    """int64 [N]: the batch's step ids; 0 everywhere when the signal is token-level."""
    if view.batch.step_ids is None:
        return view.rows.ids * 0
    return view.batch.layout.pack(view.batch.step_ids)
