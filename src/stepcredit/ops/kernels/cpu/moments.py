"""Count, mean and squares of each rollout's process signal, each step once."""

import numpy as np
import torch

from stepcredit.ops.kernels.cpu.compiling import in_any_order, over_rows, signal_arrays
from stepcredit.ops.kernels.operands import Moments, Rows, Signal


def moments(signal: Signal, rows: Rows) -> Moments:
    """Reads the signal once."""
    reals = torch.zeros(rows.n, 4, dtype=torch.float64)
    counts = torch.zeros(rows.n, 3, dtype=torch.int64)
    over_rows(_moments, rows, *signal_arrays(signal), reals.numpy(), counts.numpy())
    mean, squares, first, opening = reals.unbind(1)
    count, varied, changes = counts.unbind(1)
    return Moments(count, mean, squares, first, varied != 0, opening, changes)


@in_any_order
def _moments(lo, hi, x, steps, covers, reals, counts, begin, end, length, runs, starts, stops):  # type: ignore[no-untyped-def]
    longest = 0
    for r in range(lo, hi):
        longest = max(longest, length[r])
    values = np.empty(longest, np.float64)  # room for one row's steps
    for r in range(lo, hi):
        if length[r] == 0:
            continue
        n, changes, total, squares = 0, 0, 0.0, 0.0
        if steps.size == 0 and covers.size == 0:
            before = x[starts[runs[r]]]
            reals[r, 2], reals[r, 3] = before, before
            for i in range(runs[r], runs[r + 1]):
                run = x[starts[i] : stops[i]]
                for j in range(run.size):
                    total += run[j]
            mean = total / length[r]
            for i in range(runs[r], runs[r + 1]):
                run, later = x[starts[i] : stops[i]], x[starts[i] + 1 : stops[i]]
                for j in range(run.size):
                    squares += (run[j] - mean) * (run[j] - mean)
                changes += run[0] != before
                for j in range(later.size):
                    changes += run[j] != later[j]
                before = run[run.size - 1]
            reals[r, 0], reals[r, 1] = mean, squares
            counts[r, 0], counts[r, 1], counts[r, 2] = length[r], changes > 0, changes
            continue
        if steps.size:
            step = -1
            for i in range(runs[r], runs[r + 1]):
                run, ids = x[starts[i] : stops[i]], steps[starts[i] : stops[i]]
                for j in range(ids.size):
                    k = ids[j]
                    if k != step and k >= 0 and (covers.size == 0 or covers[starts[i] + j]):
                        values[n] = run[j]
                        n += 1
                        step = k
        else:
            before = 0.0
            for i in range(runs[r], runs[r + 1]):
                for t in range(starts[i], stops[i]):
                    here = 0.0
                    if covers[t]:
                        here = x[t]
                        values[n] = here
                        n += 1
                    if t == starts[runs[r]]:
                        reals[r, 3], before = here, here
                    changes += here != before
                    before = here
        if n == 0:
            counts[r, 2] = changes
            continue
        varied = 0
        for j in range(n):
            total += values[j]
            varied |= values[j] != values[0]
        mean = total / n
        for j in range(n):
            squares += (values[j] - mean) * (values[j] - mean)
        reals[r, 0], reals[r, 1], reals[r, 2] = mean, squares, values[0]
        counts[r, 0], counts[r, 1], counts[r, 2] = n, varied, changes
