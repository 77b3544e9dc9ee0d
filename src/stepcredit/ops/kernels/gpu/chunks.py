"""PASS on a token-level signal: chunks by the group's average, and their divided returns-to-go."""

import torch
from torch import Tensor

from stepcredit.ops.kernels.gpu.language import constexpr, jit, launch, number, tl
from stepcredit.ops.kernels.gpu.moments import signal_tensors
from stepcredit.ops.kernels.gpu.rows import clear, place_of, places, row_at, splits, tensors
from stepcredit.ops.kernels.operands import Grouped, Line, Signal


def divide_length_of_chunks(
    signal: Signal, line: Line, cut: Tensor, divisors: Tensor, grouped: Grouped, out: Tensor, *, eta: float
) -> None:
    """`chunk_by_value` of the `group_average`, then `divide_length`.

    Positions of a group are kept where the tokens of its rows would be, were the rows packed group by group: the
    longest row is no longer than they are together, and so none of this is as large as groups times the longest row.
    """
    rows, groups, device = grouped.rows, grouped.groups, out.device
    x, _, covers = signal_tensors(signal, rows)
    covered, found = signal.covers is not None, places(rows)
    lengths = rows.length[grouped.order]
    before = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    starts, longest = before[grouped.edges[:-1]], groups.max(rows.length.double()).clamp(min=0).long()
    average = torch.empty(rows.mask.shape, dtype=torch.float64, device=device)
    opens = torch.empty(rows.mask.shape, dtype=torch.uint8, device=device)
    given = (x, covers, found, line.center, cut, starts, longest, grouped.order, grouped.edges, average)
    launch(_average, (groups.n - 1, splits(rows)), *given, *tensors(rows), COVERS=covered)
    of_row = groups.spread(starts)
    cuts = (average, covers, found, opens, number(eta, device))
    if covered:  # a row is cut at its own edges too
        launch(_open, (rows.n,), *cuts, of_row, rows.begin, rows.length, *tensors(rows), BY_ROW=True)
    else:
        launch(_open, (groups.n - 1,), *cuts, starts, starts, longest, *tensors(rows), BY_ROW=False)
    clear(rows, out)
    flags = (opens, rows.begin if covered else of_row)
    given = (x, covers, found, *flags, line.center, line.slope, line.each, divisors, out)
    launch(_divide_length, (rows.n,), *given, *tensors(rows), COVERS=covered)


@jit
def covered_at(covers, a, j, inside, COVERS: constexpr):  # type: ignore[no-untyped-def]
    """Which of a row's response tokens at places j the signal covers."""
    if COVERS:
        inside = inside & (tl.load(covers + a + j, mask=inside, other=0) != 0)
    return inside


@jit
def _average(  # type: ignore[no-untyped-def]
    x, covers, places, center, cut, starts, longest, order, edges, average,
    mask, begin, end, first, stop, length, COVERS: constexpr, BLOCK: constexpr
):  # fmt: skip
    g = tl.program_id(0)
    n, at = tl.load(longest + g).to(tl.int32), average + tl.load(starts + g)
    lo, hi = tl.load(edges + g), tl.load(edges + g + 1)
    for p0 in range(tl.program_id(1) * BLOCK, n, tl.num_programs(1) * BLOCK):
        p = p0 + tl.arange(0, BLOCK)
        total = tl.zeros([BLOCK], dtype=tl.float64)
        for turn in range(lo, hi):
            r = tl.load(order + turn)
            a, f, s, _n, gaps = row_at(r, begin, end, first, stop, length)
            inside = p < tl.load(length + r)
            j = place_of(places, a, f, p, inside, gaps)
            on = covered_at(covers, a, j, inside, COVERS)
            value = (tl.load(x + a + j, mask=on, other=0.0).to(tl.float64) - tl.load(center + r)) * tl.load(cut + r)
            total += tl.where(on, value, 0.0)
        tl.store(at + p, total / (hi - lo).to(tl.float64), mask=p < n)


@jit
def average_at(average, covers, places, a, f, p, inside, gaps, COVERS: constexpr):  # type: ignore[no-untyped-def]
    """What cuts at positions p, and whether the row is covered there."""
    on = inside
    if COVERS:
        on = covered_at(covers, a, place_of(places, a, f, p, inside, gaps), inside, COVERS)
    return tl.load(average + p, mask=on, other=0.0), on


@jit
def _open(  # type: ignore[no-untyped-def]
    average, covers, places, opens, eta, sources, targets, sizes,
    mask, begin, end, first, stop, length, BY_ROW: constexpr, BLOCK: constexpr
):  # fmt: skip
    # Whether a token opens a chunk hangs on the value that the chunk before was opened with, and so on the token
    # before: a walk in time, of which a GPU could run one a group. But where neighbors are equal or more than eta
    # apart, comparing neighbors is comparing with that value, and needs no walk. So a block is cut all at once, and
    # walked only if it holds neighbors in between, or if a walk before it left off inside a chunk that has drifted.
    unit = tl.program_id(0)
    n, u = tl.load(sizes + unit).to(tl.int32), average + tl.load(sources + unit)
    flags, tolerance = opens + tl.load(targets + unit), tl.load(eta)
    a, f, gaps = tl.load(begin) * 0, n * 0, n * 0
    if BY_ROW:
        a, f, _s, _n, gaps = row_at(unit, begin, end, first, stop, length)
    value, drifted = tolerance * 0.0, n * 0
    for p0 in range(0, n, BLOCK):
        p = p0 + tl.arange(0, BLOCK)
        here, after = p < n, (p > 0) & (p < n)
        now, on = average_at(u, covers, places, a, f, p, here, gaps, BY_ROW)
        past, past_on = average_at(u, covers, places, a, f, p - 1, after, gaps, BY_ROW)
        edge = here & ((p == 0) | (on != past_on))
        jump = tl.abs(now - past)
        between = here & (edge == 0) & (jump > 0.0) & (jump <= tolerance)
        if tl.max(between.to(tl.int32), 0) + drifted > 0:
            drifted = n * 0
            for at in range(p0, tl.minimum(p0 + BLOCK, n)):
                q = n * 0 + at
                x, x_on = average_at(u, covers, places, a, f, q, q < n, gaps, BY_ROW)
                _y, y_on = average_at(u, covers, places, a, f, q - 1, q > 0, gaps, BY_ROW)
                cuts = (q == 0) | (x_on != y_on) | (tl.abs(x - value) > tolerance)
                value = tl.where(cuts, x, value)
                tl.store(flags + q, cuts.to(tl.uint8))
                drifted = (x != value).to(tl.int32)
        else:
            tl.store(flags + p, (edge | (jump > tolerance)).to(tl.uint8), mask=here)
            value = tl.sum(tl.where(p == tl.minimum(p0 + BLOCK, n) - 1, now, 0.0), 0)


@jit
def _divide_length(  # type: ignore[no-untyped-def]
    x, covers, places, opens, targets, center, slope, each, divisors, out,
    mask, begin, end, first, stop, length, COVERS: constexpr, BLOCK: constexpr
):  # fmt: skip
    r = tl.program_id(0)
    a, f, s, _n, gaps = row_at(r, begin, end, first, stop, length)
    n, flags = tl.load(length + r).to(tl.int32), opens + tl.load(targets + r)
    c, d, e = tl.load(center + r), tl.load(slope + r), tl.load(each + r)
    to_go, left = e * 0.0, n * 0
    for w0 in range(0, n, BLOCK):
        p = n - 1 - w0 - tl.arange(0, BLOCK)
        here = p >= 0
        closes = here & ((p == n - 1) | (tl.load(flags + p + 1, mask=here & (p < n - 1), other=0) != 0))
        j = place_of(places, a, f, p, here, gaps)
        on = covered_at(covers, a, j, closes, COVERS)
        value = (tl.load(x + a + j, mask=on, other=0.0).to(tl.float64) - c) * d
        value = tl.where(closes, tl.where(on, value + e, e), 0.0)
        chunks = left + tl.cumsum(closes.to(tl.int32), 0)
        credit = (to_go + tl.cumsum(value, 0)) / tl.load(divisors + chunks, mask=here, other=1.0)
        tl.store(out + a + j, credit, mask=here)
        to_go += tl.sum(value, 0)
        left += tl.sum(closes.to(tl.int32), 0)
