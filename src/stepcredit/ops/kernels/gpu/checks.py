"""Whether token fields keep their rules, in one pass; what breaks one is named by `stepcredit.batch.checks`."""

import torch
from torch import Tensor

from stepcredit.ops.kernels.gpu.language import constexpr, jit, launch, number, tl
from stepcredit.ops.kernels.gpu.moments import covered, flags, latest, signal_tensors
from stepcredit.ops.kernels.gpu.rows import responds, row_at, tensors
from stepcredit.ops.kernels.operands import Rows, Signal


def all_below(x: Tensor, largest: float, rows: Rows) -> bool:
    """Whether ``|x| < largest`` on every response token; waits for the device."""
    bad = torch.zeros(rows.n, dtype=torch.int32, device=x.device)
    launch(_all_below, (rows.n,), x, number(largest, x.device), bad, *tensors(rows))
    return not bool(bad.any())


def signal_is_sound(signal: Signal, largest: float, rows: Rows) -> bool:
    """Whether a process signal keeps its rules on the response tokens that it covers; waits for the device."""
    device = rows.mask.device
    bad = torch.zeros(rows.n, dtype=torch.int32, device=device)
    given = (*signal_tensors(signal, rows), number(largest, device), bad)
    launch(_signal_is_sound, (rows.n,), *given, *tensors(rows), **flags(signal), NUMBERS=signal.x is not None)
    return not bool(bad.any())


@jit
def _all_below(x, largest, bad, mask, begin, end, first, stop, length, BLOCK: constexpr):  # type: ignore[no-untyped-def]
    r = tl.program_id(0)
    a, f, s, n, gaps = row_at(r, begin, end, first, stop, length)
    bound, found = tl.load(largest), f * 0
    for j0 in range(f, s, BLOCK):
        j = j0 + tl.arange(0, BLOCK)
        here = responds(mask, a, j, j < s, gaps)
        value = tl.load(x + a + j, mask=here, other=0.0).to(tl.float64)
        found = found | tl.max(((tl.abs(value) < bound) == 0).to(tl.int32), 0)  # nan is not below either
    tl.store(bad + r, found)


@jit
def _signal_is_sound(  # type: ignore[no-untyped-def]
    x, steps, covers, largest, bad, mask, begin, end, first, stop, length,
    STEPS: constexpr, COVERS: constexpr, NUMBERS: constexpr, BLOCK: constexpr
):  # fmt: skip
    r = tl.program_id(0)
    a, f, s, n, gaps = row_at(r, begin, end, first, stop, length)
    bound, found, last = tl.load(largest), f * 0, f * 0 - 1
    for j0 in range(f, s, BLOCK):
        j = j0 + tl.arange(0, BLOCK)
        here = responds(mask, a, j, j < s, gaps)
        on = covered(steps, covers, a, j, here, STEPS, COVERS)
        wrong = here & (j < 0)
        if NUMBERS:
            value = tl.load(x + a + j, mask=on, other=0.0).to(tl.float64)
            wrong = wrong | ((tl.abs(value) < bound) == 0)
        if STEPS:
            i = j - 1
            along = (i >= f) & (i < s)
            then = covered(steps, covers, a, i, responds(mask, a, i, along, gaps), STEPS, COVERS)
            before = latest(i, then, along, last)
            last = tl.maximum(last, tl.max(tl.where(on, j, -1), 0))
            known = on & (before >= 0)
            step = tl.load(steps + a + j, mask=here, other=0)
            past = tl.load(steps + a + before, mask=known, other=0)
            wrong = wrong | (step < -1) | (known & (step < past))
            if NUMBERS:
                inside = known & (step == past)
                first_value = tl.load(x + a + before, mask=inside, other=0.0).to(tl.float64)
                wrong = wrong | (inside & (value != first_value))
        found = found | tl.max(wrong.to(tl.int32), 0)
    tl.store(bad + r, found)
