"""What is to be known of a row's returns-to-go before they are scaled."""

from stepcredit.ops.kernels.gpu.density import once
from stepcredit.ops.kernels.gpu.language import constexpr, jit, launch, tl
from stepcredit.ops.kernels.gpu.moments import covered, flags, signal_tensors
from stepcredit.ops.kernels.gpu.rows import responds, row_at, tensors
from stepcredit.ops.kernels.operands import Line, Returns, Rows, Signal


def returns(signal: Signal, line: Line, rows: Rows) -> Returns:
    """Of what `return_to_go_of_steps` would write."""
    reals = line.each.new_zeros(5, rows.n)
    count = rows.length.new_zeros(rows.n)
    given = (*signal_tensors(signal, rows), line.center, line.slope, line.each, *reals, count)
    launch(_returns, (rows.n,), *given, *tensors(rows), **flags(signal))
    mean, squares, least, greatest, whole = reals.unbind()
    return Returns(mean, squares, least, greatest, whole, count)


@jit
def _returns(  # type: ignore[no-untyped-def]
    x, steps, covers, center, slope, each, mean, squares, least, greatest, sums, count,
    mask, begin, end, first, stop, length, STEPS: constexpr, COVERS: constexpr, BLOCK: constexpr
):  # fmt: skip
    r = tl.program_id(0)
    a, f, s, n, gaps = row_at(r, begin, end, first, stop, length)
    c, d, so_far, last = tl.load(center + r), tl.load(slope + r), tl.load(each + r), f * 0 - 1
    low, high = so_far * 0.0 + float("inf"), so_far * 0.0 - float("inf")
    middle, apart, seen, summed = so_far * 0.0, so_far * 0.0, so_far * 0.0, f * 0
    for w0 in range(0, s - f, BLOCK):  # the walk of `stepcredit.ops.kernels.gpu.density`
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
        to_go = so_far + tl.cumsum(value, 0)
        so_far += tl.sum(value, 0)
        summed += tl.sum(on.to(tl.int32), 0)
        low = tl.minimum(low, tl.min(tl.where(here, to_go, float("inf")), 0))
        high = tl.maximum(high, tl.max(tl.where(here, to_go, float("-inf")), 0))
        more = tl.sum(here.to(tl.float64), 0)
        shift = tl.sum(tl.where(here, to_go, 0.0), 0) / tl.maximum(more, 1.0)
        within = tl.sum(tl.where(here, (to_go - shift) * (to_go - shift), 0.0), 0)
        all_seen = seen + more
        gap = tl.where(more > 0, shift - middle, 0.0)
        apart += within + gap * gap * seen * more / tl.maximum(all_seen, 1.0)
        middle += gap * more / tl.maximum(all_seen, 1.0)
        seen = all_seen
    if s > f:
        tl.store(mean + r, middle)
        tl.store(squares + r, apart)
        tl.store(least + r, low)
        tl.store(greatest + r, high)
        tl.store(sums + r, so_far)
        tl.store(count + r, summed.to(tl.int64))
