"""Statistics of pools, and values brought against them."""

import torch
from torch import Tensor

from stepcredit.ops.kernels.choosing import LEAST_TOKENS, interpreted, readable
from stepcredit.ops.kernels.cpu.compiling import Kernel, array


def reads(x: Tensor, index: Tensor, *, small: bool) -> bool:
    """Whether kernels take values (float [M]) and their pools (int64 [M]): on the CPU, and many, or ``small`` too."""
    graph = torch.is_grad_enabled() and x.requires_grad
    if x.ndim != 1 or x.shape != index.shape or index.dtype != torch.int64 or graph:
        return False
    if x.device.type != "cpu" or index.device.type != "cpu" or interpreted():
        return False
    return readable(LEAST_TOKENS if small else x.numel(), x.device, x) is None


def centered(x: Tensor, index: Tensor, n: int) -> Tensor:
    """`stepcredit.ops.scaling.center` of x (float [M]) in n pools (``index``: int64 [M])."""
    out = torch.empty_like(x)
    _centered.compiled(array(x), array(index), array(x.new_zeros(n)), array(index.new_zeros(n)), array(out))
    return out


def squares(x: Tensor, index: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Of each pool the sum of squared distances from its mean, float [n], and whether two values differ, bool [n]."""
    sums, first, found = x.new_zeros(3, n).unbind()
    varied = torch.zeros(n, dtype=torch.bool)
    _squares.compiled(*map(array, (x, index, sums, first, index.new_zeros(n), found, varied)))
    return found, varied


@Kernel
def _centered(x, index, sums, counts, out):  # type: ignore[no-untyped-def]
    for i in range(x.size):
        sums[index[i]] += x[i]
        counts[index[i]] += 1
    for g in range(sums.size):
        sums[g] /= max(counts[g], 1)
    for i in range(x.size):
        out[i] = x[i] - sums[index[i]]


@Kernel
def _squares(x, index, sums, first, counts, found, varied):  # type: ignore[no-untyped-def]
    for i in range(x.size):
        g = index[i]
        if counts[g] == 0:
            first[g] = x[i]
        varied[g] |= x[i] != first[g]
        counts[g] += 1
        sums[g] += x[i]
    for g in range(sums.size):
        sums[g] /= max(counts[g], 1)
    for i in range(x.size):
        g = index[i]
        found[g] += (x[i] - sums[g]) * (x[i] - sums[g])
