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


def scaler(norm: Norm, *, std_eps: float = 1e-6, correction: int = 1) -> Scaler:
    """The operator N of PASS by name.

    Args:
        norm: "masked_norm" (a z-score) or "abs_max" (Abs-Max Scaling: sign and zero kept).
        std_eps: Of Masked-Norm.
        correction: Of Masked-Norm.

    Returns:
        A maker like `standardizer`: values and their pool in, a linear map with its scale fixed out.
    """
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
    by_scaler = {made: made(union, pool)(union) for made in dict.fromkeys(scalers[name] for name in streams)}
    sizes = [x.numel() for x in streams.values()]
    return {name: torch.split(by_scaler[scalers[name]], sizes)[place] for place, name in enumerate(streams)}


def advantage_fusion(
    scaled: Mapping[str, Tensor], weights: Mapping[str, float], violates: Tensor | None = None
) -> dict[str, Tensor]:
    """PASS's Advantage Fusion: a weighted sum of streams scaled apart, with a gate for the format.

        compliant: w_process s + w_outcome r + w_format f        violator: W f,  W = the sum of the weights

    Args:
        scaled: name -> float64 [N], each stream scaled in its own pool. A stream that is not there adds 0, and its
            weight is not in W.
        weights: name -> weight, for at least the streams in ``scaled``.
        violates: bool [N], True where the response breaks the format; needs a "format" stream. None: no gate.

    Returns:
        name -> float64 [N]; the fused value is their sum, and a violator's whole value is in "format".

    Example:
        >>> scaled = {"process": torch.tensor([0.5, 2.0]), "format": torch.tensor([1.0, -1.0])}
        >>> fused = advantage_fusion(scaled, {"process": 3.0, "format": 1.0}, torch.tensor([False, True]))
        >>> {name: x.tolist() for name, x in fused.items()}
        {'process': [1.5, 0.0], 'format': [1.0, -4.0]}

    Reference:
        PASS, arXiv 2606.29296, eq. 4 and algorithm 1.
    """
    weighted = {name: weights[name] * x for name, x in scaled.items()}
    if violates is None:
        return weighted
    total_weight = sum(weights[name] for name in scaled)
    gated = {name: torch.where(violates, 0.0, x) for name, x in weighted.items()}
    gated["format"] = torch.where(violates, total_weight * scaled["format"], weighted["format"])
    return gated
