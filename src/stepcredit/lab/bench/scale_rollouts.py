"""Ragged rollouts of any number of tokens, with what each scheme reads, to time the advantage stage on."""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stepcredit.batch import RolloutBatch
from stepcredit.errors import InputError
from stepcredit.estimators import GRPO, PASS, SPRO, Estimator
from stepcredit.ops.segments import Segments

MEAN, LONGEST, STEP = 2048, 16_384, 64
SCHEMES: dict[str, Estimator] = {"grpo": GRPO(), "pass-steps": PASS(), "pass-tokens": PASS(), "spro": SPRO()}


def ragged_lengths(tokens: int, group: int, seed: int = 0) -> Tensor:
    """Log-normal lengths of whole groups: 2,048 tokens on average, 16,384 at most, ``tokens`` in all but for rounding.

    Args:
        tokens: Response tokens in all.
        group: Rollouts a group.
        seed: Chooses them.

    Returns:
        int64 [rollouts], each at least 1.

    Raises:
        InputError: ``tokens`` are fewer than one a rollout of one group.
    """
    if group < 1 or tokens < group:
        raise InputError(f"`tokens` must be at least one a rollout of a group of {group}; got {tokens}.")
    rollouts = group * max(1, round(tokens / (MEAN * group)))
    drawn = torch.randn(rollouts, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul(0.7).exp()
    longest = max(LONGEST, math.ceil(tokens / rollouts))
    for _ in range(8):  # what the limits take away, the others share
        drawn = (drawn * (tokens / drawn.sum())).clamp(1, longest)
    return drawn.round().long()


def packed_fields(scheme: str, lengths: Tensor, groups: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """What the scheme reads of such rollouts, packed; random float32 numbers, steps of 64 tokens.

    Args:
        scheme: One of `SCHEMES`.
        lengths: int64 [rollouts].
        groups: int64 [rollouts], the group of each.
        seed: Chooses the numbers.

    Returns:
        The fields of a packed `RolloutBatch` by name.
    """
    g = torch.Generator().manual_seed(seed)
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    n = int(offsets[-1])
    fields = {"cu_seqlens": offsets, "group_ids": groups, "response_mask": torch.ones(n, dtype=torch.bool)}
    fields["rewards"] = (torch.rand(lengths.numel(), generator=g) < 0.5).float()
    if scheme == "spro":
        fields |= {name: torch.rand(n, generator=g).add_(1e-6).log_() for name in ("old_logprobs", "ref_logprobs")}
    elif scheme == "pass-tokens":
        fields["process_rewards"] = torch.randn(n, generator=g)
    elif scheme == "pass-steps":
        rows = Segments(offsets, n)
        step = rows.positions.div_(STEP, rounding_mode="floor")
        fields["step_ids"] = step
        shade = torch.rand(997, generator=g)
        fields["process_rewards"] = shade[step.add(rows.ids * 31).remainder_(997)]
    return fields


def padded_fields(fields: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same rollouts as [batch, time] tensors, padded to the longest."""
    offsets = fields["cu_seqlens"]
    rows = Segments(offsets, int(offsets[-1]))
    rest = {name: x for name, x in fields.items() if name != "cu_seqlens"}
    return {name: rows.pad(x) if x.numel() == rows.size else x for name, x in rest.items()}


def size_in_bytes(fields: dict[str, Tensor]) -> int:
    """What the tensors hold."""
    return sum(x.numel() * x.element_size() for x in fields.values())


def advantage_stage(scheme: str, tokens: int, group: int, repeats: int, layout: str) -> Callable[[], dict[str, Any]]:
    """What is watched: rollouts are made, and the stage runs once for nothing on few; then it is timed on all.

    Args:
        scheme: One of `SCHEMES`.
        tokens: Response tokens.
        group: Rollouts a group.
        repeats: Times to take.
        layout: "packed" or "padded".

    Returns:
        A function that gives ``rollouts``, ``tokens``, ``input_bytes``, ``output_bytes`` and, each as a list,
        ``batch_seconds`` (the checks of `RolloutBatch`), ``credit_seconds`` (the estimator) and ``cpu_seconds`` (both,
        the processor's time).
    """

    def fields_of(size: int) -> dict[str, Tensor]:
        lengths = ragged_lengths(size, group)
        made = packed_fields(scheme, lengths, torch.arange(lengths.numel()) // group)
        return made if layout == "packed" else padded_fields(made)

    torch.set_num_threads(1)
    estimator, few = SCHEMES[scheme], fields_of(group * 16)
    estimator(RolloutBatch(**few))  # type: ignore[arg-type]
    fields = fields_of(tokens)

    def run() -> dict[str, Any]:
        checking, crediting, cpu = [], [], []
        for _ in range(repeats):
            begun, used = time.perf_counter(), time.process_time()
            batch = RolloutBatch(**fields)  # type: ignore[arg-type]
            checked = time.perf_counter()
            advantages = estimator(batch).advantages
            checking.append(checked - begun)
            crediting.append(time.perf_counter() - checked)
            cpu.append(time.process_time() - used)
            output = advantages.numel() * advantages.element_size()
            n = batch.layout.rows.size
            del batch, advantages
        found = {"rollouts": fields["group_ids"].numel(), "tokens": n, "input_bytes": size_in_bytes(fields)}
        seconds = {"batch_seconds": checking, "credit_seconds": crediting, "cpu_seconds": cpu}
        return {**found, "output_bytes": output, **seconds}

    return run
