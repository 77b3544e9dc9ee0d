"""PASS: Advantage Fusion, Chunk-by-Value, Divide-Length."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from stepcredit.estimators.base import Assignment, total
from stepcredit.estimators.compacted import Compacted
from stepcredit.estimators.in_place import InPlace, Kernel, Writing
from stepcredit.estimators.rollout_view import RolloutView
from stepcredit.estimators.streams import StreamScheme
from stepcredit.ops.kernels.operands import Line, Rows, Signal
from stepcredit.ops.segments import Segments
from stepcredit.options import option
from stepcredit.shaping.chunks import change_points, chunk_by_value, group_average
from stepcredit.shaping.density import ChunkValue, chunk_values, divide_length
from stepcredit.shaping.fusion import advantage_fusion


@dataclass(frozen=True, kw_only=True)
class PASS(StreamScheme):
    """The middleware between any process signal and GRPO's clipped surrogate.

    1. Advantage Fusion: process, outcome and format streams are scaled in three pools apart and summed with weights;
       a response that violates the format gets its format advantage alone, at the full weight W.
    2. Chunk-by-Value: the response is cut where the signal changes (step mode: at the steps; token mode: where its
       group average changes). A chunk's value is the fused value at its last token.
    3. Divide-Length: ``A[chunk j] = sum over j' >= j of values[j'] / (K - j + 1)^k``.

    Attributes:
        k: Exponent of the division: 0 is off, 1 the mean of the remaining chunks. The paper's math tables use 1.
        fusion: "separate" (the paper), or "summed": the raw weighted sum is scaled as one stream, without a gate
            (table 3's "reward shaping" is ``PASS(fusion="summed", k=1)``).
        chunking: "value" (the paper), or "token": one token, one chunk.
        chunk_value: "last" token's fused value (the paper), or the chunk's "mean" or "sum".
        dl_scope: "fused" (the paper): all streams go through step 3. "process": outcome and format are added after it.
        eta: Tolerance of the value test in token mode, in the scaled signal's unit.
        eta_float32: The least tolerance for a signal that comes in float32 or narrower: the paper's eta lies under
            their resolution, where equal group averages differ by rounding.
        min_chunk: Fewest tokens that the value test may close a chunk at.

    The other options are those of `StreamScheme`: ``norm`` ("masked_norm", a z-score, or "abs_max"), ``norm_scope``
    ("process": outcome and format keep the z-score; "all"), the weights ``w_process``, ``w_outcome``, ``w_format``,
    ``std_eps`` and ``correction`` of the z-score, and ``singletons`` (what outcome and format of a group of one become
    in their own pools, "zero" or "raw"). ``norm_scope="all"`` is the printed algorithm: under "abs_max" a violator with
    f = 0 then gets credit 0. W is the sum of the weights of the streams that the batch has.

    Degenerate cases:
        A stream of equal values keeps its weight in W. A stream that the batch lacks adds 0 and leaves W;
        ``extra_rewards`` are not read. A group whose rollouts all violate with equal f gets 0; `Credit.counts` reports
        it. Each run of tokens that the signal does not cover is a chunk of its own.

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
    k: float = option(0.7, at_least=0)
    fusion: Literal["separate", "summed"] = "separate"
    chunking: Literal["value", "token"] = "value"
    chunk_value: ChunkValue = "last"
    dl_scope: Literal["fused", "process"] = "fused"
    eta: float = option(1e-8, at_least=0)
    eta_float32: float = option(1e-6, at_least=0)
    min_chunk: int = option(1, at_least=1)

    @property
    def exempt(self) -> Mapping[str, str]:
        """Tokens that share a chunk by a tolerance of one's own share their credit."""
        wide = self.chunking == "value" and (self.min_chunk > 1 or self.eta > 1e-6)
        return {**super().exempt, **({"place": "a chunk's tokens share credit"} if wide else {})}

    def assign(self, view: Compacted) -> Assignment:
        """Fuse, chunk, divide."""
        s = view.steps.spread(self.scaled_steps(view))
        of_rollouts = self.scaled_channels(view) if self.fusion == "separate" else {}
        scaled = {name: view.rows.spread(x) for name, x in of_rollouts.items()}
        if self.fusion == "summed":
            streams = {name: view.steps.spread(x) for name, x in self.summed_on_steps(view).items()}
        else:
            violates = None if view.violates is None else view.rows.spread(view.violates)
            gated = violates if "format" in scaled else None
            streams = advantage_fusion({"process": s, **scaled}, self.weights, gated)
        chunks = self._chunks(view, s)
        view.warn_if_piecewise_constant()

        def divide(x: Tensor) -> Tensor:
            values = chunk_values(x, chunks, self.chunk_value)
            return chunks.spread(divide_length(values, chunks.within(view.rows), self.k))

        added_after = self.dl_scope == "process" and self.fusion == "separate"
        beside = {name: x for name, x in streams.items() if added_after and name != "process"}
        through = {name: x for name, x in streams.items() if name not in beside}
        return Assignment(
            total({"through": divide(total(through)), **beside}),
            lambda: {name: x if name in beside else divide(x) for name, x in streams.items()},
            segment_ids=lambda: chunks.spread(chunks.within(view.rows).positions),
            counts=_violating_groups(view, of_rollouts),
        )

    def kernel(self, place: InPlace) -> Kernel | str:
        """The same in two passes."""
        known: dict[str, tuple[object, object]] = {"norm": (self.norm, "masked_norm")}
        known |= {"fusion": (self.fusion, "separate"), "chunking": (self.chunking, "value")}
        known |= {"chunk_value": (self.chunk_value, "last")}
        known |= {"dl_scope": (self.dl_scope, "fused")}
        if place.batch.step_ids is None:
            known["min_chunk"] = (self.min_chunk, 1)
        return place.refusal("process_rewards", **known) or partial(self._writing, place)

    def _writing(self, place: InPlace) -> Writing:
        center, scale = place.moments.scale(place.groups, std_eps=self.std_eps, correction=self.correction)
        scaled = self.scaled_channels(place)
        gated = place.violates if "format" in scaled else None
        streams = advantage_fusion({"process": scale, **scaled}, self.weights, gated)
        kernels, divisors = place.kernels, place.divisors(self.k)
        place.warn_if_piecewise_constant()

        def write(signal: Signal, line: Line, rows: Rows, out: Tensor) -> None:
            if signal.steps is not None:
                kernels.divide_length_of_steps(signal, line, divisors, rows, out)
            else:
                eta = self._tolerance(place)
                kernels.divide_length_of_chunks(signal, line, scale, divisors, place.grouped, out, eta=eta)

        return place.lines(center, streams, write, counts=_violating_groups(place, scaled))

    def _chunks(self, view: Compacted, s: Tensor) -> Segments:
        """Chunk-by-Value, from the raw signal in step mode and its group average in token mode."""
        if self.chunking == "token":
            return Segments.from_starts(torch.ones_like(view.batch.covered))
        if view.batch.step_ids is not None:  # the signal is constant within a step, so chunks are steps
            return Segments.from_starts(change_points(view.steps.of_token, view.rows))
        edges = change_points(view.batch.covered, view.rows)
        rollouts = view.token_groups.spread(view.groups.count)
        u = group_average(s, view.positions, rollouts)
        u = torch.where(view.batch.covered, u, 0.0)  # an uncovered run is one chunk, whatever its peers' signal
        return chunk_by_value(u, edges, view.rows, eta=self._tolerance(view), min_chunk=self.min_chunk)

    def _tolerance(self, view: RolloutView) -> float:
        exact = view.batch.process_rewards is not None and view.batch.process_rewards.dtype == torch.float64
        return self.eta if exact else max(self.eta, self.eta_float32)


def _violating_groups(view: RolloutView, scaled: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """int64 []: groups that hold format violators alone, with scaled format rewards of 0: nothing pushes them back."""
    if "format" not in scaled:
        return {}
    groups, violates = view.groups, view.violates
    if violates is None:
        return {"violating_groups": torch.zeros((), dtype=torch.int64)}
    loud = ~violates | (scaled["format"] != 0)
    return {"violating_groups": ((groups.count > 0) & (groups.sum(loud.double()) == 0)).sum()}
