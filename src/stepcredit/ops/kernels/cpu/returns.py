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
    mask, begin, end, first, stop, length,
):  # fmt: skip
    longest = 0
    for r in range(lo, hi):
        longest = max(longest, stop[r] - first[r])
    room = np.empty(longest, np.float64)
    for r in range(lo, hi):
        a, b, c, s = first[r], stop[r], center[r], slope[r]
        if a == b:
            continue
        whole, to_go, step, n, summed = b - a == length[r], each[r], -1, 0, 0
        for t in range(b - 1, a - 1, -1):
            if not (whole or mask[t]):
                continue
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
        if n == 0:  # the mask has changed since
            continue
        values, total, low, high, apart = room[:n], 0.0, room[0], room[0], 0.0
        for j in range(values.size):
            total += values[j]
        for j in range(values.size):
            low = min(low, values[j])
            high = max(high, values[j])
        for j in range(values.size):
            apart += (values[j] - total / n) * (values[j] - total / n)
        mean[r], squares[r], least[r], greatest[r], sums[r], count[r] = total / n, apart, low, high, to_go, summed
