"""What is to be known of a row's returns-to-go before they are scaled."""

import numpy as np
import torch

from stepcredit.ops.kernels.cpu.compiling import array, in_any_order, over_rows, signal_arrays
from stepcredit.ops.kernels.operands import Line, Returns, Rows, Signal


def returns(signal: Signal, line: Line, rows: Rows) -> Returns:
    """Of what `return_to_go_of_steps` would write."""
    reals = torch.zeros(5, rows.n, dtype=torch.float64)
    count = torch.zeros(rows.n, dtype=torch.int64)
    given = map(array, (line.center, line.slope, line.each, *reals, count))
    over_rows(_returns, rows, *signal_arrays(signal), *given)
    mean, squares, least, greatest, whole = reals.unbind()
    return Returns(mean, squares, least, greatest, whole, count)


@in_any_order
def _returns(  # type: ignore[no-untyped-def]
    lo, hi, x, steps, covers, center, slope, each, mean, squares, least, greatest, sums, count,
    begin, end, length, runs, starts, stops,
):  # fmt: skip
    longest = 0
    for r in range(lo, hi):
        longest = max(longest, length[r])
    room = np.empty(longest, np.float64)
    for r in range(hi - 1, lo - 1, -1):
        if length[r] == 0:
            continue
        c, s, to_go, step, n, summed = center[r], slope[r], each[r], -1, 0, 0
        for i in range(runs[r + 1] - 1, runs[r] - 1, -1):
            for t in range(stops[i] - 1, starts[i] - 1, -1):
                on = covers.size == 0 or covers[t]
                if steps.size:
                    k = steps[t]
                    on = on and k >= 0 and k != step
                    step = k if on else step
                if on:
                    to_go += (x[t] - c) * s
                    summed += 1
                room[n] = to_go
                n += 1
        values, total, low, high, apart = room[:n], 0.0, room[0], room[0], 0.0
        for j in range(values.size):
            total += values[j]
        for j in range(values.size):
            low = min(low, values[j])
            high = max(high, values[j])
        for j in range(values.size):
            apart += (values[j] - total / n) * (values[j] - total / n)
        mean[r], squares[r], least[r], greatest[r], sums[r], count[r] = total / n, apart, low, high, to_go, summed
