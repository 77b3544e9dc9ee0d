"""Sums and cuts along the rows of a packed axis."""

import numpy as np
import torch
from torch import Tensor

from stepcredit.ops.kernels.choosing import interpreted, readable
from stepcredit.ops.kernels.cpu.compiling import Kernel, array


def reads(x: Tensor, n: int) -> bool:
    """Whether kernels take the values: float [n], many, of a known dtype, on the CPU, and no gradient is asked."""
    if x.shape != (n,) or (torch.is_grad_enabled() and x.requires_grad):
        return False
    return x.device.type == "cpu" and not interpreted() and readable(x.numel(), x.device, x) is None


def return_to_go(x: Tensor, offsets: Tensor, gamma: float) -> Tensor:
    """`stepcredit.ops.returns.return_to_go` of rows cut at ``offsets`` (int64 [rows + 1])."""
    return _along(_to_go, x, offsets, gamma)


def return_so_far(x: Tensor, offsets: Tensor) -> Tensor:
    """`stepcredit.ops.returns.return_so_far` of rows cut at ``offsets`` (int64 [rows + 1])."""
    return _along(_so_far, x, offsets)


def chunk_starts(u: Tensor, boundaries: Tensor, offsets: Tensor, eta: float, min_chunk: int) -> Tensor:
    """Where `stepcredit.shaping.chunks.chunk_by_value` opens a chunk, bool [N]."""
    starts = torch.empty_like(boundaries)
    _chunk_starts.run(
        len(offsets) - 1, len(u), array(u), array(boundaries), array(offsets), eta, min_chunk, array(starts)
    )
    return starts


def _along(kernel: Kernel, x: Tensor, offsets: Tensor, *options: float) -> Tensor:
    out = torch.empty_like(x)
    kernel.run(len(offsets) - 1, len(x), array(x), array(offsets), *options, array(out))
    return out


@Kernel
def _to_go(lo, hi, x, offsets, gamma, out):  # type: ignore[no-untyped-def]
    for r in range(hi - 1, lo - 1, -1):
        total = 0.0
        for j in range(offsets[r + 1] - 1, offsets[r] - 1, -1):
            total = x[j] + gamma * total
            out[j] = total


@Kernel
def _so_far(lo, hi, x, offsets, out):  # type: ignore[no-untyped-def]
    for r in range(lo, hi):
        total = 0.0
        for j in range(offsets[r], offsets[r + 1]):
            total += x[j]
            out[j] = total


@Kernel
def _chunk_starts(lo, hi, u, boundaries, offsets, eta, min_chunk, starts):  # type: ignore[no-untyped-def]
    for r in range(lo, hi):
        value, size = 0.0, 0
        for j in range(offsets[r], offsets[r + 1]):
            opens = size == 0 or boundaries[j] or (size >= min_chunk and np.abs(u[j] - value) > eta)
            starts[j] = opens
            value = u[j] if opens else value
            size = 1 if opens else size + 1
