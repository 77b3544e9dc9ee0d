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
def _moments(lo, hi, x, steps, covers, reals, counts, mask, begin, end, first, stop, length):  # type: ignore[no-untyped-def]
    longest = 0
    for r in range(lo, hi):
        longest = max(longest, stop[r] - first[r])
    values = np.empty(longest, np.float64)  # room for one row's steps
    for r in range(lo, hi):
        a, b, n, changes = first[r], stop[r], 0, 0
        if a == b:
            continue
        whole = b - a == length[r]
        total, squares = 0.0, 0.0
        if whole and steps.size == 0 and covers.size == 0:
            row, later = x[a:b], x[a + 1 : b]  # slices: an index that cannot be negative lets loops run on vectors
            for j in range(row.size):
                total += row[j]
            mean = total / row.size
            for j in range(row.size):
                squares += (row[j] - mean) * (row[j] - mean)
            for j in range(later.size):
                changes += row[j] != later[j]
            reals[r, 0], reals[r, 1], reals[r, 2], reals[r, 3] = mean, squares, x[a], x[a]
            counts[r, 0], counts[r, 1], counts[r, 2] = b - a, changes > 0, changes
            continue
        if steps.size:
            step, row, ids = -1, x[a:b], steps[a:b]
            for j in range(ids.size):
                k = ids[j]
                if k != step and k >= 0 and (whole or mask[a + j]) and (covers.size == 0 or covers[a + j]):
                    values[n] = row[j]
                    n += 1
                    step = k
        else:
            before, seen = 0.0, False
            for t in range(a, b):
                if not mask[t]:
                    continue
                on = covers.size == 0 or covers[t]
                here = 0.0
                if on:
                    here = x[t]
                    values[n] = here
                    n += 1
                if not seen:
                    reals[r, 3] = here
                elif here != before:
                    changes += 1
                before, seen = here, True
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
