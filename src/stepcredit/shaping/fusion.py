"""Bringing process, outcome and format streams to one scale without letting one contaminate another."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from stepcredit.ops.groups import Pool
from stepcredit.ops.scaling import LinearMap, abs_max_scaler, standardizer

Norm = Literal["masked_norm", "abs_max"]
Scaler = Callable[[Tensor, Pool], LinearMap]


def scaler(norm: Norm, *, std_eps: float, correction: int) -> Scaler:
    """The operator N of PASS by name: Masked-Norm (a z-score) or Abs-Max Scaling (sign and zero kept)."""
    if norm == "abs_max":
        return abs_max_scaler
    return partial(standardizer, std_eps=std_eps, correction=correction)


def scale_in_union(
    streams: Mapping[str, Tensor], pools: Mapping[str, Pool], scalers: Mapping[str, Scaler]
) -> dict[str, Tensor]:
    """Scales each stream with the statistics of all streams' values together: the pooled baseline of PASS 4.1.

    Args:
        streams: name -> float64 [M_name], the values of each stream that takes part (at least one).
        pools: name -> the pool of each value; the pools mean the same in every stream.
        scalers: name -> the operator for that stream, fitted on the union.

    Returns:
        name -> float64 [M_name].

    Example:
        >>> from stepcredit.ops.groups import Pool
        >>> steps, rewards = torch.tensor([1.0, 1.0]).double(), torch.tensor([0.0, 0.0]).double()
        >>> pool, z = Pool.of(torch.tensor([0, 0])), scaler("masked_norm", std_eps=0.0, correction=0)
        >>> scaled = scale_in_union({"s": steps, "r": rewards}, {"s": pool, "r": pool}, {"s": z, "r": z})
        >>> scaled["s"].tolist(), scaled["r"].tolist()
        ([1.0, 1.0], [-1.0, -1.0])

    Reference:
        PASS, arXiv 2606.29296, 4.1.
    """
    union = torch.cat(list(streams.values()))
    first = next(iter(pools.values()))
    pool = Pool(torch.cat([pools[name].index for name in streams]), first.n, first.process_group)
    scaled, start = {}, 0
    for name, x in streams.items():
        scaled[name] = scalers[name](union, pool)(union)[start : start + x.numel()]
        start += x.numel()
    return scaled


def gate_violators(
    weighted: Mapping[str, Tensor], format_scaled: Tensor, total_weight: float, violates: Tensor
) -> dict[str, Tensor]:
    """Advantage Fusion's format gate: a violator's credit is its format reward alone, at full weight.

        compliant: w_process s + w_outcome r + w_format f        violator: W f,  W = the sum of the weights

    Args:
        weighted: name -> float64 [N], each stream scaled and weighted; "format" among them.
        format_scaled: float64 [N], the scaled format stream, not weighted.
        total_weight: W, the sum of the weights of the streams that the batch has.
        violates: bool [N], tokens of responses that break the format.

    Returns:
        name -> float64 [N]; the fused value is their sum, and a violator's whole value is in "format".

    Reference:
        PASS, arXiv 2606.29296, eq. 4 and algorithm 1.
    """
    gated = {name: torch.where(violates, 0.0, x) for name, x in weighted.items()}
    gated["format"] = torch.where(violates, total_weight * format_scaled, gated["format"])
    return gated
