"""SPRO's masked step advantage over raw log-probabilities, and the outcome beside it."""

import torch
from torch import Tensor

from stepcredit.ops.kernels.gpu import language
from stepcredit.ops.kernels.gpu.language import constexpr, jit, launch, number, tl
from stepcredit.ops.kernels.gpu.rows import clear, place_of, places, row_at, splits, tensors
from stepcredit.ops.kernels.operands import Grouped


def prefix_step_advantage(
    policy_logprobs: Tensor, ref_logprobs: Tensor, each: Tensor, grouped: Grouped, out: Tensor, *, beta: float
) -> None:
    """`masked_step_advantage` of the "prefix" `process_return`, plus ``each``.

    The first pass sums each row block by block. In the second a program has a block of one group's positions. It starts
    each row from the sums, and reads it twice, for the mean and for the credit; a cache should answer the second time.
    """
    rows, device = grouped.rows, out.device
    found, scale = places(rows), number(beta, device)
    so_far = torch.empty(rows.mask.numel() // language.BLOCK + rows.n, dtype=torch.float64, device=device)
    ratios = (policy_logprobs, ref_logprobs, scale, found, so_far)
    launch(_sums, (rows.n,), *ratios, *tensors(rows))
    clear(rows, out)
    longest = grouped.groups.max(rows.length.double()).clamp(min=0).long()
    given = (each, longest, grouped.order, grouped.edges, out)
    launch(_prefix, (grouped.groups.n - 1, splits(rows)), *ratios, *given, *tensors(rows))


@jit
def log_ratios(policy, ref, scale, places, a, f, p, inside, gaps):  # type: ignore[no-untyped-def]
    """Of a row's response tokens p, those inside, and where they stand."""
    j = place_of(places, a, f, p, inside, gaps)
    x = tl.load(policy + a + j, mask=inside, other=0.0).to(tl.float64)
    return scale * (x - tl.load(ref + a + j, mask=inside, other=0.0).to(tl.float64)), j


@jit
def _sums(policy, ref, beta, places, so_far, mask, begin, end, first, stop, length, BLOCK: constexpr):  # type: ignore[no-untyped-def]
    r = tl.program_id(0)
    a, f, s, _n, gaps = row_at(r, begin, end, first, stop, length)
    n, scale = tl.load(length + r).to(tl.int32), tl.load(beta)
    total, at = scale * 0.0, so_far + a // BLOCK + r  # a row has at most as many blocks as there are to the next one's
    for p0 in range(0, n, BLOCK):
        p = p0 + tl.arange(0, BLOCK)
        tl.store(at + p0 // BLOCK, total)
        ratios, _j = log_ratios(policy, ref, scale, places, a, f, p, p < n, gaps)
        total += tl.sum(ratios, 0)


@jit
def _prefix(  # type: ignore[no-untyped-def]
    policy, ref, beta, places, so_far, each, longest, order, edges, out,
    mask, begin, end, first, stop, length, BLOCK: constexpr
):  # fmt: skip
    g = tl.program_id(0)
    n, scale = tl.load(longest + g).to(tl.int32), tl.load(beta)
    lo, hi = tl.load(edges + g), tl.load(edges + g + 1)
    for p0 in range(tl.program_id(1) * BLOCK, n, tl.num_programs(1) * BLOCK):
        p = p0 + tl.arange(0, BLOCK)
        total = tl.zeros([BLOCK], dtype=tl.float64)
        alive = tl.zeros([BLOCK], dtype=tl.int32)
        for turn in range(lo, hi):
            r = tl.load(order + turn)
            a, f, s, _n, gaps = row_at(r, begin, end, first, stop, length)
            here = p < tl.load(length + r)
            ratios, _j = log_ratios(policy, ref, scale, places, a, f, p, here, gaps)
            start = tl.load(so_far + a // BLOCK + r + p0 // BLOCK, mask=p0 < tl.load(length + r), other=0.0)
            total += tl.where(here, start + tl.cumsum(ratios, 0), 0.0)
            alive += here.to(tl.int32)
        mean = total / tl.maximum(alive, 1).to(tl.float64)
        for turn in range(lo, hi):
            r = tl.load(order + turn)
            a, f, s, _n, gaps = row_at(r, begin, end, first, stop, length)
            here = p < tl.load(length + r)
            ratios, j = log_ratios(policy, ref, scale, places, a, f, p, here, gaps)
            start = tl.load(so_far + a // BLOCK + r + p0 // BLOCK, mask=p0 < tl.load(length + r), other=0.0)
            ahead = tl.where(alive > 1, start + tl.cumsum(ratios, 0) - mean, 0.0)  # alone: exactly, however sums round
            tl.store(out + a + j, tl.load(each + r) + ahead, mask=here)
