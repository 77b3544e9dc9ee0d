"""Count, mean and squares of each rollout's process signal, each step once."""

import torch
from torch import Tensor

from stepcredit.ops.kernels.gpu.language import constexpr, jit, launch, tl
from stepcredit.ops.kernels.gpu.rows import octets, responds, row_at, tensors
from stepcredit.ops.kernels.operands import Moments, Rows, Signal


def moments(signal: Signal, rows: Rows) -> Moments:
    """Reads the signal once: blocks are merged as they come, by the rule of Chan, Golub and LeVeque."""
    reals = torch.empty(4, rows.n, dtype=torch.float64, device=rows.mask.device)
    counts = rows.length.new_empty(3, rows.n)
    launch(_moments, (rows.n,), *signal_tensors(signal, rows), *reals, *counts, *tensors(rows), **flags(signal))
    mean, squares, first, opening = reals.unbind()
    count, varied, changes = counts.unbind()
    return Moments(count, mean, squares, first, varied != 0, opening, changes)


def signal_tensors(signal: Signal, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """What every kernel over a signal takes; the mask where there is nothing, which `flags` keep from being read."""
    x, steps, covers = (rows.mask if field is None else field for field in (signal.x, signal.steps, signal.covers))
    return (
        x if signal.x is not None else octets(x),
        steps if signal.steps is not None else octets(steps),
        octets(covers),
    )


def flags(signal: Signal) -> dict[str, bool]:
    """What every kernel over a signal knows of it as it is compiled."""
    return {"STEPS": signal.steps is not None, "COVERS": signal.covers is not None}


@jit
def larger(a, b):  # type: ignore[no-untyped-def]
    """The larger of two."""
    return tl.maximum(a, b)


@jit
def latest(w, among, along, last):  # type: ignore[no-untyped-def]
    """At each number w of a walk, the last so far that is ``among`` some; ``last`` is that of the blocks before.

    Most rows miss none of those ``along`` the walk, and then it is w itself.
    """
    if tl.min((among | (along == 0)).to(tl.int32), 0) > 0:
        found = tl.where(among, w, last)
    else:
        found = tl.maximum(last, tl.associative_scan(tl.where(among, w, -1), 0, larger))
    return found


@jit
def covered(steps, covers, a, j, on, STEPS: constexpr, COVERS: constexpr):  # type: ignore[no-untyped-def]
    """Which of a row's response tokens at places j the signal covers."""
    if COVERS:
        on = on & (tl.load(covers + a + j, mask=on, other=0) != 0)
    if STEPS:
        on = on & (tl.load(steps + a + j, mask=on, other=-1) >= 0)
    return on


@jit
def _moments(  # type: ignore[no-untyped-def]
    x, steps, covers, means, squared, firsts, openings, counts, varying, changing,
    mask, begin, end, first, stop, length, STEPS: constexpr, COVERS: constexpr, BLOCK: constexpr
):  # fmt: skip
    r = tl.program_id(0)
    a, f, s, n, gaps = row_at(r, begin, end, first, stop, length)
    count, varied, changes, last = f * 0, f * 0, f * 0, f * 0 - 1
    mean = tl.full([], 0.0, tl.float64)
    squares, head, opening = mean, mean, mean
    for j0 in range(f, s, BLOCK):
        j = j0 + tl.arange(0, BLOCK)
        here = responds(mask, a, j, j < s, gaps)
        on = covered(steps, covers, a, j, here, STEPS, COVERS)
        # the token before: the last that is covered, where steps are counted, else the last that responds
        i = j - 1
        along = (i >= f) & (i < s)
        then = responds(mask, a, i, along, gaps)
        if STEPS:
            then = covered(steps, covers, a, i, then, STEPS, COVERS)
        before = latest(i, then, along, last)
        if STEPS:
            known = on & (before >= 0)
            step = tl.load(steps + a + j, mask=on, other=-1)
            fresh = on & ((before < 0) | (step != tl.load(steps + a + before, mask=known, other=-1)))
            last = tl.maximum(last, tl.max(tl.where(on, j, -1), 0))
            value = tl.load(x + a + j, mask=fresh, other=0.0).to(tl.float64)
        else:
            fresh = on
            value = tl.load(x + a + j, mask=on, other=0.0).to(tl.float64)
            known = here & (before >= 0)
            known_on = covered(steps, covers, a, before, known, STEPS, COVERS)
            past = tl.load(x + a + before, mask=known_on, other=0.0).to(tl.float64)
            changes += tl.sum((known & (value != past)).to(tl.int32), 0)
            opening += tl.sum(tl.where(here & (j == f), value, 0.0), 0)
            last = tl.maximum(last, tl.max(tl.where(here, j, -1), 0))
        found = tl.sum(fresh.to(tl.int32), 0)
        opens = tl.min(tl.where(fresh, j, s), 0)
        head = tl.where(count == 0, tl.sum(tl.where(fresh & (j == opens), value, 0.0), 0), head)
        varied = varied | tl.max((fresh & (value != head)).to(tl.int32), 0)
        share = tl.sum(tl.where(fresh, value, 0.0), 0) / tl.maximum(found, 1).to(tl.float64)
        off = tl.where(fresh, value - share, 0.0)
        weight = found.to(tl.float64) / tl.maximum(count + found, 1).to(tl.float64)
        squares += tl.sum(off * off, 0) + (share - mean) * (share - mean) * weight * count.to(tl.float64)
        mean += (share - mean) * weight
        count += found
    tl.store(means + r, mean)
    tl.store(squared + r, squares)
    tl.store(firsts + r, head)
    tl.store(openings + r, opening)
    tl.store(counts + r, count.to(tl.int64))
    tl.store(varying + r, varied.to(tl.int64))
    tl.store(changing + r, changes.to(tl.int64))
