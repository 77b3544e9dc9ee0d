"""Returns-to-go of a step signal, divided by the chunks to come or not, from each row's end to its start."""

from dataclasses import dataclass

from torch import Tensor

from stepcredit.ops.kernels.compiling import Kernel, flat
from stepcredit.ops.kernels.moments import Signal
from stepcredit.ops.kernels.rows import Rows


@dataclass(frozen=True, eq=False)
class Line:
    """What a token's signal x becomes: ``(x - center) slope + each``, and ``each`` where the signal does not cover it.

    Attributes:
        center: float64 [batch].
        slope: float64 [batch].
        each: float64 [batch].
    """

    center: Tensor
    slope: Tensor
    each: Tensor


def return_to_go_of_steps(signal: Signal, line: Line, rows: Rows, out: Tensor) -> None:
    """``A[t] = each + sum over the steps that end at t or later of (x - center) slope``; 0 off the response tokens."""
    rows.run(_return_to_go, *signal.arrays, *map(flat, (line.center, line.slope, line.each)), flat(out))


def divide_length_of_steps(signal: Signal, line: Line, divisors: Tensor, rows: Rows, out: Tensor) -> None:
    """`stepcredit.shaping.density.divide_length` where a chunk is a run of response tokens of one step, or of none.

    Args:
        signal: Its steps are given.
        line: A chunk's value.
        divisors: float64 [longest row + 1], by how many chunks are left, this one included.
        rows: The rows.
        out: Written to; 0 off the response tokens.
    """
    given = map(flat, (line.center, line.slope, line.each, divisors))
    rows.run(_divide_length, *signal.arrays, *given, flat(out))


@Kernel
def _return_to_go(lo, hi, x, steps, covers, center, slope, each, out, mask, begin, end, first, stop, length):  # type: ignore[no-untyped-def]
    for r in range(lo, hi):
        a, b = first[r], stop[r]
        out[begin[r] : a] = 0
        out[b : end[r]] = 0
        whole = b - a == length[r]
        c, s, credit, step = center[r], slope[r], each[r], -1
        if whole and steps.size and covers.size == 0:
            row, ids, line, stops = x[a:b], steps[a:b], out[a:b], b - a
            while stops > 0:
                k = ids[stops - 1]
                starts = stops - 1
                while starts > 0 and ids[starts - 1] == k:
                    starts -= 1
                if k >= 0 and k != step:
                    credit += (row[stops - 1] - c) * s
                    step = k
                line[starts:stops] = credit
                stops = starts
            continue
        for t in range(b - 1, a - 1, -1):
            if not (whole or mask[t]):
                out[t] = 0
                continue
            if steps.size:
                k = steps[t]
                if k != step and k >= 0 and (covers.size == 0 or covers[t]):
                    credit += (x[t] - c) * s
                    step = k
            elif covers.size == 0 or covers[t]:
                credit += (x[t] - c) * s
            out[t] = credit


@Kernel
def _divide_length(  # type: ignore[no-untyped-def]
    lo, hi, x, steps, covers, center, slope, each, divisors, out, mask, begin, end, first, stop, length
):
    for r in range(lo, hi):
        a, b = first[r], stop[r]
        out[begin[r] : a] = 0
        out[b : end[r]] = 0
        whole = b - a == length[r]
        c, s, e = center[r], slope[r], each[r]
        to_go, left, credit, step = 0.0, 0, 0.0, -2
        if whole and covers.size == 0:
            row, ids, line, stops = x[a:b], steps[a:b], out[a:b], b - a
            while stops > 0:
                k = ids[stops - 1]
                starts = stops - 1
                while starts > 0 and ids[starts - 1] == k:
                    starts -= 1
                to_go += (row[stops - 1] - c) * s + e if k >= 0 else e
                left += 1
                line[starts:stops] = to_go / divisors[left]
                stops = starts
            continue
        for t in range(b - 1, a - 1, -1):
            if not (whole or mask[t]):
                out[t] = 0
                continue
            k = steps[t]
            if k < 0 or (covers.size and not covers[t]):
                k = -1
            if k != step:
                to_go += (x[t] - c) * s + e if k >= 0 else e
                left += 1
                credit = to_go / divisors[left]
                step = k
            out[t] = credit
