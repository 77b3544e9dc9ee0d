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
def _return_to_go(lo, hi, x, steps, covers, center, slope, each, out, begin, end, length, runs, starts, stops):  # type: ignore[no-untyped-def]
    every = covers.size == 0
    for r in range(hi - 1, lo - 1, -1):  # backward throughout, so that reading does not turn round at each row
        c, s, credit, step, behind = center[r], slope[r], each[r], -1, end[r]
        for i in range(runs[r + 1] - 1, runs[r] - 1, -1):
            a, b = starts[i], stops[i]
            out[b:behind] = 0
            run, line, at, behind = x[a:b], out[a:b], b - a, a
            if steps.size == 0:
                for j in range(b - a - 1, -1, -1):
                    if every or covers[a + j]:
                        credit += (run[j] - c) * s
                    line[j] = credit
                continue
            ids = steps[a:b]
            while at > 0:  # tokens of one step that are covered, or are not
                last, k, on = at, ids[at - 1], every or covers[a + at - 1]
                at -= 1
                while at > 0 and ids[at - 1] == k and (every or covers[a + at - 1] == on):
                    at -= 1
                if on and k >= 0 and k != step:
                    credit += (run[last - 1] - c) * s
                    step = k
                line[at:last] = credit
        out[begin[r] : behind] = 0


@Kernel
def _divide_length(  # type: ignore[no-untyped-def]
    lo, hi, x, steps, covers, center, slope, each, divisors, out, begin, end, length, runs, starts, stops
):
    every = covers.size == 0
    for r in range(hi - 1, lo - 1, -1):
        c, s, e, behind = center[r], slope[r], each[r], end[r]
        to_go, left, credit, step = 0.0, 0, 0.0, -2
        for i in range(runs[r + 1] - 1, runs[r] - 1, -1):
            a, b = starts[i], stops[i]
            out[b:behind] = 0
            run, ids, line, at, behind = x[a:b], steps[a:b], out[a:b], b - a, a
            while at > 0:
                last, k, on = at, ids[at - 1], every or covers[a + at - 1]
                at -= 1
                while at > 0 and ids[at - 1] == k and (every or covers[a + at - 1] == on):
                    at -= 1
                k = k if on else -1
                if k != step:
                    to_go += (run[last - 1] - c) * s + e if k >= 0 else e
                    left += 1
                    credit = to_go / divisors[left]
                    step = k
                line[at:last] = credit
        out[begin[r] : behind] = 0
