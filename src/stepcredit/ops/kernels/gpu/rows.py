"""Where each rollout's response tokens stand, and one number a rollout spread over them."""

import torch
from torch import Tensor

from stepcredit.ops.kernels.gpu import language
from stepcredit.ops.kernels.gpu.language import cdiv, constexpr, jit, launch, tl
from stepcredit.ops.kernels.operands import Extents, Rows


def extents(mask: Tensor, begin: Tensor, end: Tensor, counted: Tensor | None) -> Extents:
    """`Rows.first`, `Rows.stop` and `Rows.length`; no runs."""
    found = begin.new_empty(3, begin.numel())
    given = mask if counted is None else counted
    launch(_extents, (begin.numel(),), octets(mask), begin, end, octets(given), *found, COUNTED=counted is not None)
    first, stop, length = found.unbind()
    return first, stop, length, None


def spread(values: Tensor, rows: Rows, out: Tensor) -> None:
    """Each row's number on its response tokens."""
    launch(_spread, (rows.n, splits(rows)), values, out, *tensors(rows))


def clear(rows: Rows, out: Tensor) -> None:
    """0 wherever there is no response token."""
    launch(_clear, (rows.n, splits(rows)), out, *tensors(rows))


def places(rows: Rows) -> Tensor:
    """int32 [tokens]: at a row's begin + p, how far from there response token p is; unwritten in rows without gaps."""
    found = torch.empty(rows.mask.shape, dtype=torch.int32, device=rows.mask.device)
    launch(_places, (rows.n,), found, *tensors(rows))
    return found


def tensors(rows: Rows) -> tuple[Tensor, ...]:
    """What every kernel over rows takes."""
    return octets(rows.mask), rows.begin, rows.end, rows.first, rows.stop, rows.length


def octets(flags: Tensor) -> Tensor:
    """A bool tensor as the bytes that it is."""
    return flags.view(torch.uint8)


def splits(rows: Rows) -> int:
    """Programs that share a row: about one for each block of a row that is as long as the others."""
    return min(64, cdiv(max(1, rows.mask.numel() // max(1, rows.n)), language.BLOCK))


@jit
def row_at(r, begin, end, first, stop, length):  # type: ignore[no-untyped-def]
    """Where row r begins; from there, its first response token, one beyond its last, its end; how many gaps it has."""
    a = tl.load(begin + r)
    f = (tl.load(first + r) - a).to(tl.int32)
    s = (tl.load(stop + r) - a).to(tl.int32)
    return a, f, s, (tl.load(end + r) - a).to(tl.int32), s - f - tl.load(length + r).to(tl.int32)


@jit
def responds(mask, a, j, inside, gaps):  # type: ignore[no-untyped-def]
    """Which of a row's places j, those inside, hold response tokens; the mask is read where the row has gaps."""
    gaps = j * 0 + gaps
    return inside & ((gaps == 0) | (tl.load(mask + a + j, mask=inside & (gaps > 0), other=0) != 0))


@jit
def place_of(places, a, f, p, inside, gaps):  # type: ignore[no-untyped-def]
    """Where a row's response tokens p, those inside, stand."""
    gaps = p * 0 + gaps
    return tl.where(gaps == 0, f + p, tl.load(places + a + p, mask=inside & (gaps > 0), other=0))


@jit
def _extents(mask, begin, end, counted, first, stop, length, COUNTED: constexpr, BLOCK: constexpr):  # type: ignore[no-untyped-def]
    r = tl.program_id(0)
    a = tl.load(begin + r)
    n = (tl.load(end + r) - a).to(tl.int32)
    if COUNTED:
        n = tl.where(tl.load(counted + r) != 0, n, 0)
    f, s = n, n * 0
    count = n * 0
    for j0 in range(0, n, BLOCK):
        j = j0 + tl.arange(0, BLOCK)
        on = tl.load(mask + a + j, mask=j < n, other=0) != 0
        count += tl.sum(on.to(tl.int32), 0)
        f = tl.minimum(f, tl.min(tl.where(on, j, n), 0))
        s = tl.maximum(s, tl.max(tl.where(on, j + 1, 0), 0))
    tl.store(first + r, a + tl.where(count == 0, 0, f))
    tl.store(stop + r, a + s)
    tl.store(length + r, count.to(tl.int64))


@jit
def _spread(values, out, mask, begin, end, first, stop, length, BLOCK: constexpr):  # type: ignore[no-untyped-def]
    r = tl.program_id(0)
    a, f, s, n, gaps = row_at(r, begin, end, first, stop, length)
    value = tl.load(values + r)
    for j0 in range(tl.program_id(1) * BLOCK, n, tl.num_programs(1) * BLOCK):
        j = j0 + tl.arange(0, BLOCK)
        on = responds(mask, a, j, (j >= f) & (j < s), gaps)
        tl.store(out + a + j, tl.where(on, value, 0.0), mask=j < n)


@jit
def _clear(out, mask, begin, end, first, stop, length, BLOCK: constexpr):  # type: ignore[no-untyped-def]
    r = tl.program_id(0)
    a, f, s, n, gaps = row_at(r, begin, end, first, stop, length)
    for j0 in range(tl.program_id(1) * BLOCK, n, tl.num_programs(1) * BLOCK):
        j = j0 + tl.arange(0, BLOCK)
        on = responds(mask, a, j, (j >= f) & (j < s), gaps)
        tl.store(out + a + j, tl.zeros([BLOCK], dtype=out.dtype.element_ty), mask=(j < n) & (on == 0))


@jit
def _places(places, mask, begin, end, first, stop, length, BLOCK: constexpr):  # type: ignore[no-untyped-def]
    r = tl.program_id(0)
    a, f, s, n, gaps = row_at(r, begin, end, first, stop, length)
    count = f * 0
    for j0 in range(tl.where(gaps == 0, s, f), s, BLOCK):
        j = j0 + tl.arange(0, BLOCK)
        on = responds(mask, a, j, j < s, gaps)
        p = count + tl.cumsum(on.to(tl.int32), 0) - 1
        tl.store(places + a + p, j, mask=on)
        count += tl.sum(on.to(tl.int32), 0)
