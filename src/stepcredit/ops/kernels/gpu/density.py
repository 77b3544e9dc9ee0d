"""Returns-to-go of a step signal, divided by the chunks to come or not, from each row's end to its start.

A program walks a row in blocks, and number w of a walk is the row's place ``s - 1 - w``: what lies ahead in time lies
behind in the walk, so that a sum so far is a return-to-go, and a block hands the next what it has summed.
"""

from torch import Tensor

from stepcredit.ops.kernels.gpu.language import constexpr, jit, launch, tl
from stepcredit.ops.kernels.gpu.moments import covered, flags, latest, signal_tensors
from stepcredit.ops.kernels.gpu.rows import clear, responds, row_at, tensors
from stepcredit.ops.kernels.operands import Line, Rows, Signal


def return_to_go_of_steps(signal: Signal, line: Line, rows: Rows, out: Tensor) -> None:
    """The return-to-go of ``(x - center) slope``, each step once, plus ``each``."""
    clear(rows, out)
    given = (*signal_tensors(signal, rows), line.center, line.slope, line.each, out)
    launch(_return_to_go, (rows.n,), *given, *tensors(rows), **flags(signal))


def divide_length_of_steps(signal: Signal, line: Line, divisors: Tensor, rows: Rows, out: Tensor) -> None:
    """`stepcredit.shaping.density.divide_length` of steps, and of runs between them."""
    clear(rows, out)
    given = (*signal_tensors(signal, rows), line.center, line.slope, line.each, divisors, out)
    launch(_divide_length, (rows.n,), *given, *tensors(rows), COVERS=signal.covers is not None)


@jit
def once(steps, covers, mask, a, f, s, gaps, w, on, last, COVERS: constexpr):  # type: ignore[no-untyped-def]
    """Of the covered tokens at numbers w of the walk, those at which a step counts: the first of it that is met."""
    i = s - w
    along = (i >= f) & (i < s)
    then = covered(steps, covers, a, i, responds(mask, a, i, along, gaps), True, COVERS)
    before = latest(w - 1, then, along, last)
    past = tl.load(steps + a + s - 1 - before, mask=on & (before >= 0), other=-1)
    return on & (past != tl.load(steps + a + s - 1 - w, mask=on, other=-1))


@jit
def _return_to_go(  # type: ignore[no-untyped-def]
    x, steps, covers, center, slope, each, out,
    mask, begin, end, first, stop, length, STEPS: constexpr, COVERS: constexpr, BLOCK: constexpr
):  # fmt: skip
    r = tl.program_id(0)
    a, f, s, n, gaps = row_at(r, begin, end, first, stop, length)
    c, d, so_far, last = tl.load(center + r), tl.load(slope + r), tl.load(each + r), f * 0 - 1
    for w0 in range(0, s - f, BLOCK):
        w = w0 + tl.arange(0, BLOCK)
        j = s - 1 - w
        here = responds(mask, a, j, j >= f, gaps)
        on = covered(steps, covers, a, j, here, STEPS, COVERS)
        if STEPS:
            new = once(steps, covers, mask, a, f, s, gaps, w, on, last, COVERS)
            last = tl.maximum(last, tl.max(tl.where(on, w, -1), 0))
            on = new
        value = (tl.load(x + a + j, mask=on, other=0.0).to(tl.float64) - c) * d
        value = tl.where(on, value, 0.0)
        tl.store(out + a + j, so_far + tl.cumsum(value, 0), mask=here)
        so_far += tl.sum(value, 0)


@jit
def _divide_length(  # type: ignore[no-untyped-def]
    x, steps, covers, center, slope, each, divisors, out,
    mask, begin, end, first, stop, length, COVERS: constexpr, BLOCK: constexpr
):  # fmt: skip
    r = tl.program_id(0)
    a, f, s, n, gaps = row_at(r, begin, end, first, stop, length)
    c, d, e = tl.load(center + r), tl.load(slope + r), tl.load(each + r)
    to_go, left, last = e * 0.0, f * 0, f * 0 - 1
    for w0 in range(0, s - f, BLOCK):
        w = w0 + tl.arange(0, BLOCK)
        j = s - 1 - w
        here = responds(mask, a, j, j >= f, gaps)
        on = covered(steps, covers, a, j, here, True, COVERS)
        i = j + 1
        along = (i >= f) & (i < s)
        before = latest(w - 1, responds(mask, a, i, along, gaps), along, last)
        last = tl.maximum(last, tl.max(tl.where(here, w, -1), 0))
        i = s - 1 - before
        past_on = covered(steps, covers, a, i, here & (before >= 0), True, COVERS)
        past = tl.load(steps + a + i, mask=past_on, other=-1)
        closes = here & ((before < 0) | (tl.load(steps + a + j, mask=on, other=-1) != past))
        value = (tl.load(x + a + j, mask=closes & on, other=0.0).to(tl.float64) - c) * d
        value = tl.where(closes, tl.where(on, value + e, e), 0.0)
        chunks = left + tl.cumsum(closes.to(tl.int32), 0)
        credit = (to_go + tl.cumsum(value, 0)) / tl.load(divisors + chunks, mask=here, other=1.0)
        tl.store(out + a + j, credit, mask=here)
        to_go += tl.sum(value, 0)
        left += tl.sum(closes.to(tl.int32), 0)
