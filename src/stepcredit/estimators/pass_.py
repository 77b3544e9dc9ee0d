"""PASS: Advantage Fusion, Chunk-by-Value, Divide-Length."""

import warnings
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from stepcredit.errors import StepCreditWarning
from stepcredit.estimators.base import Assignment, Estimator, option, total
from stepcredit.estimators.compacted import Compacted
from stepcredit.estimators.grpo_process import raw_on_steps
from stepcredit.ops.scaling import LinearMap, Singletons, on_rollouts
from stepcredit.ops.segments import Segments
from stepcredit.shaping.chunks import change_points, chunk_by_value, group_average
from stepcredit.shaping.density import ChunkValue, chunk_values, divide_length
from stepcredit.shaping.fusion import Norm, gate_violators, scaler


@dataclass(frozen=True, kw_only=True)
class PASS(Estimator):
    """The middleware between any process signal and GRPO's clipped surrogate.

    1. Advantage Fusion: process, outcome and format streams are scaled in three pools apart and summed with weights;
       a response that violates the format gets its format advantage alone, at the full weight W.
    2. Chunk-by-Value: the response is cut where the signal changes (step mode: at the steps; token mode: where its
       group average changes). A chunk's value is the fused value at its last token.
    3. Divide-Length: ``A[chunk j] = sum over j' >= j of values[j'] / (K - j + 1)^k``.

    Attributes:
        k: Exponent of the division: 0 is off, 1 the mean of the remaining chunks. The paper's math tables use 1.
        norm: The operator of the process stream: "masked_norm" (z-score) or "abs_max".
        norm_scope: "process": outcome and format keep Masked-Norm. "all": the printed algorithm; under "abs_max" a
            violator with f = 0 then gets credit 0.
        w_process: Weight of the process stream.
        w_outcome: Weight of the outcome stream.
        w_format: Weight of the format stream. W is the sum of the weights of the streams that the batch has.
        fusion: "separate" (the paper), or "summed": the raw weighted sum is scaled as one stream, without a gate
            (table 3's "reward shaping" is ``PASS(fusion="summed", k=1)``).
        chunking: "value" (the paper), or "token": one token, one chunk.
        chunk_value: "last" token's fused value (the paper), or the chunk's "mean" or "sum".
        dl_scope: "fused" (the paper): all streams go through step 3. "process": outcome and format are added after it.
        eta: Tolerance of the value test in token mode, in the scaled signal's unit.
        eta_float32: The least tolerance for a signal that comes in float32 or narrower: the paper's eta lies under
            their resolution, where equal group averages differ by rounding.
        min_chunk: Fewest tokens that the value test may close a chunk at.
        std_eps: Added to standard deviations.
        correction: Delta degrees of freedom of standard deviations.
        singletons: What outcome and format of a one-rollout group become: "zero" or "raw".

    Degenerate cases:
        A stream of equal values keeps its weight in W. A stream that the batch lacks adds 0 and leaves W. A group whose
        rollouts all violate with equal f gets 0; `Credit.counts` reports it. Each run of tokens that the signal does
        not cover is a chunk of its own.

    Example:
        >>> from stepcredit import RolloutBatch
        >>> batch = RolloutBatch.from_lists([2, 1], [0, 0], step_ids=[[0, 1], [0]],
        ...                                 process_rewards=[[1.0, 1.0], [0.0]])
        >>> PASS(k=1.0, std_eps=0.0)(batch).advantages.round(decimals=3).tolist()
        [[0.577, 0.577], [-1.155, 0.0]]

    Reference:
        PASS, arXiv 2606.29296, eq. 4-7 and algorithms 1-3. ``norm_scope``, "token" chunking, ``chunk_value``,
        ``dl_scope``, ``eta_float32`` and ``min_chunk`` are additions.
    """

    type: ClassVar[str] = "pass"
    requires = frozenset({"process_rewards"})
    k: float = option(0.7, at_least=0)
    norm: Norm = "masked_norm"
    norm_scope: Literal["process", "all"] = "process"
    w_process: float = 1.0
    w_outcome: float = 1.0
    w_format: float = 1.0
    fusion: Literal["separate", "summed"] = "separate"
    chunking: Literal["value", "token"] = "value"
    chunk_value: ChunkValue = "last"
    dl_scope: Literal["fused", "process"] = "fused"
    eta: float = option(1e-8, at_least=0)
    eta_float32: float = option(1e-6, at_least=0)
    min_chunk: int = option(1, at_least=1)
    std_eps: float = option(1e-6, at_least=0)
    correction: int = option(1, at_least=0)
    singletons: Singletons = "zero"

    def assign(self, view: Compacted) -> Assignment:
        """Fuse, chunk, divide."""
        _warn_if_piecewise_constant(view)
        scale = scaler(self.norm, std_eps=self.std_eps, correction=self.correction)
        s = view.steps.spread(scale(view.step_signal, view.step_groups)(view.step_signal))
        streams = self._summed(view) if self.fusion == "summed" else self._separate(view, s)
        chunks = self._chunks(view, s)

        def divided(x: Tensor) -> Tensor:
            values = chunk_values(x, chunks, self.chunk_value)
            return chunks.spread(divide_length(values, chunks.within(view.rows), self.k))

        def shape(name: str) -> LinearMap:
            after = self.dl_scope == "process" and self.fusion == "separate" and name != "process"
            return (lambda x: x) if after else divided

        through = {name: x for name, x in streams.items() if shape(name) is divided}
        beside = {name: x for name, x in streams.items() if name not in through}
        advantages = total({"divided": divided(total(through)), **beside})
        return Assignment(
            advantages,
            lambda: {name: shape(name)(x) for name, x in streams.items()},
            segment_ids=lambda: chunks.spread(chunks.within(view.rows).positions),
            counts=lambda: {"violating_groups": 0 if self.fusion == "summed" else _violating_groups(view)},
        )

    def _separate(self, view: Compacted, s: Tensor) -> dict[str, Tensor]:
        """Advantage Fusion: the weighted streams on every token, format violators gated."""
        norm = self.norm if self.norm_scope == "all" else "masked_norm"
        scale = scaler(norm, std_eps=self.std_eps, correction=self.correction)
        weights = {"process": self.w_process, "outcome": self.w_outcome, "format": self.w_format}
        scaled = {"process": s}
        for name in ("outcome", "format"):
            if name in view.channels:
                x = view.channels[name]
                per_rollout = on_rollouts(scale(x, view.groups), view.groups, self.singletons)
                scaled[name] = view.rows.spread(per_rollout(x))
        weighted = {name: weights[name] * x for name, x in scaled.items()}
        if "format" not in scaled or view.violates is None:
            return weighted
        w_total = sum(weights[name] for name in scaled)
        return gate_violators(weighted, scaled["format"], w_total, view.rows.spread(view.violates))

    def _summed(self, view: Compacted) -> dict[str, Tensor]:
        """Reward shaping: the raw weighted sum on every step, scaled as one stream."""
        raw = raw_on_steps(view, self.w_process, self.w_outcome, self.w_format)
        scale = scaler(self.norm, std_eps=self.std_eps, correction=self.correction)(total(raw), view.step_groups)
        return {name: view.steps.spread(scale(x)) for name, x in raw.items()}

    def _chunks(self, view: Compacted, s: Tensor) -> Segments:
        """Chunk-by-Value, from the raw signal in step mode and its group average in token mode."""
        if self.chunking == "token":
            return Segments.from_starts(torch.ones_like(view.batch.covered))
        if view.batch.step_ids is not None:
            edges = change_points(view.steps.of_token, view.rows)
            return chunk_by_value(view.signal, edges, view.rows, eta=self.eta, min_chunk=self.min_chunk)
        exact = view.batch.process_rewards is not None and view.batch.process_rewards.dtype == torch.float64
        edges = change_points(view.batch.covered, view.rows)
        rollouts = view.token_groups.spread(view.groups.count)
        u = group_average(s, view.positions, rollouts)
        u = torch.where(view.batch.covered, u, 0.0)  # an uncovered run is one chunk, whatever its peers' signal
        eta = self.eta if exact else max(self.eta, self.eta_float32)
        return chunk_by_value(u, edges, view.rows, eta=eta, min_chunk=self.min_chunk)


def _violating_groups(view: Compacted) -> int:
    """How many groups hold format violators alone, all with the same format reward: their credit is 0."""
    if view.violates is None or "format" not in view.channels:
        return 0
    f, groups = view.channels["format"], view.groups
    silent = (groups.sum((~view.violates).double()) == 0) & (groups.max(f) == -groups.max(-f)) & (groups.count > 0)
    return int(silent.sum())


def _warn_if_piecewise_constant(view: Compacted) -> None:
    """Warns when a token-level signal looks like step scores spread over tokens."""
    if view.batch.step_ids is not None or view.rows.size == 0:
        return
    pairs = view.rows.size - len(view.rows)
    changes = int(change_points(view.signal, view.rows).sum()) - len(view.rows)
    if changes and changes < pairs / 2:
        warnings.warn(
            f"`process_rewards` changes at {changes} of {pairs} token boundaries, like step scores spread over tokens, "
            "but `step_ids` is None: every token counts as a step of its own. Pass `step_ids` for step scores.",
            StepCreditWarning,
            stacklevel=4,
        )
