"""Returns-to-go of a step signal, divided by the chunks to come or not, from each row's end to its start."""

from torch import Tensor

from stepcredit.ops.kernels.cpu.compiling import Kernel, array, over_rows, signal_arrays
from stepcredit.ops.kernels.operands import Line, Rows, Signal


def return_to_go_of_steps(signal: Signal, line: Line, rows: Rows, out: Tensor) -> None:
    """The return-to-go of ``(x - center) slope``, each step once, plus ``each``."""
    given = map(array, (line.center, line.slope, line.each, out))
    over_rows(_return_to_go, rows, *signal_arrays(signal), *given)


def divide_length_of_steps(signal: Signal, line: Line, divisors: Tensor, rows: Rows, out: Tensor) -> None:
    """`stepcredit.shaping.density.divide_length` of steps, and of runs between them."""
    given = map(array, (line.center, line.slope, line.each, divisors, out))
    over_rows(_divide_length, rows, *signal_arrays(signal), *given)


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
