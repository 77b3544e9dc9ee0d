"""PASS on a token-level signal: chunks by the group's average, and their divided returns-to-go."""

import numpy as np
from torch import Tensor

from stepcredit.ops.kernels.cpu.compiling import Kernel, array, over_groups, signal_arrays
from stepcredit.ops.kernels.operands import Grouped, Line, Signal


def divide_length_of_chunks(
    signal: Signal, line: Line, cut: Tensor, divisors: Tensor, grouped: Grouped, out: Tensor, *, eta: float
) -> None:
    """`chunk_by_value` of the `group_average`, then `divide_length`."""
    x, _, covers = signal_arrays(signal)
    given = map(array, (line.center, line.slope, line.each, cut, divisors))
    over_groups(_chunks, grouped, x, covers, *given, eta, array(out))


@Kernel
def _chunks(  # type: ignore[no-untyped-def]
    lo, hi, x, covers, center, slope, each, cut, divisors, eta, out, order, edges,
    begin, end, length, runs, starts, stops,
):  # fmt: skip
    longest, every = 0, covers.size == 0
    for place in range(edges[lo], edges[hi]):
        longest = max(longest, length[order[place]])
    average, to_go, chunk, on = np.empty(longest), np.empty(longest), np.empty(longest, np.int64), np.empty(longest)
    values, written = np.empty(longest, x.dtype), np.empty(longest, out.dtype)  # of a row without its gaps
    falling = divisors[:0:-1].copy()
    for g in range(lo, hi):
        longest = 0
        for place in range(edges[g], edges[g + 1]):
            longest = max(longest, length[order[place]])
        average[:longest] = 0.0
        for place in range(edges[g], edges[g + 1]):
            r, n = order[place], 0
            c, s = center[r], cut[r]
            for i in range(runs[r], runs[r + 1]):
                run, sums = x[starts[i] : stops[i]], average[n:]
                if every:
                    for j in range(run.size):
                        sums[j] += (run[j] - c) * s
                else:
                    for j in range(run.size):
                        sums[j] += (run[j] - c) * s if covers[starts[i] + j] else 0.0
                n += run.size
        for j in range(longest):
            average[j] /= edges[g + 1] - edges[g]
        cuts = 0  # chunk holds that of so many positions, for every row that is covered throughout
        for place in range(edges[g], edges[g + 1]):
            r = order[place]
            c, s, e, n, at = center[r], slope[r], each[r], length[r], begin[r]
            if n == 0:
                out[at : end[r]] = 0
                continue
            a, b, in_place = starts[runs[r]], stops[runs[r + 1] - 1], every and runs[r + 1] - runs[r] == 1
            row, credit = x[a:b], out[a:b]
            if not in_place:
                row, credit, filled = values[:n], written[:n], 0
                for i in range(runs[r], runs[r + 1]):
                    run, ons = x[starts[i] : stops[i]], on[filled:]
                    values[filled : filled + run.size] = run
                    for j in range(0 if every else run.size):
                        ons[j] = covers[starts[i] + j]
                    filled += run.size
            if not every:
                cuts = 0
            if cuts == 0:
                cuts, value, chunk[0] = n if not every else longest, average[0] if every or on[0] else 0.0, 0
                for j in range(1, cuts):
                    here = average[j] if every or on[j] else 0.0
                    opens = abs(here - value) > eta or (not every and on[j] != on[j - 1])
                    chunk[j] = chunk[j - 1] + opens
                    value = here if opens else value
            chunks, total, last = chunk[n - 1] + 1, 0.0, -1
            if every and chunks == n:
                for j in range(row.size):
                    to_go[j] = (row[j] - c) * s + e
                for j in range(n - 1, -1, -1):
                    total += to_go[j]
                    to_go[j] = total
                back = falling[falling.size - n :]
                for j in range(credit.size):
                    credit[j] = to_go[j] / back[j]
            else:
                for j in range(n - 1, -1, -1):
                    if chunk[j] != last:  # its last token, as this goes backward
                        last = chunk[j]
                        total += (row[j] - c) * s + e if every or on[j] else e
                        to_go[last] = total / divisors[chunks - last]
                for j in range(credit.size):
                    credit[j] = to_go[chunk[j]]
            filled = 0
            for i in range(runs[r], runs[r + 1]):
                out[at : starts[i]] = 0
                at = stops[i]
                if not in_place:
                    out[starts[i] : at] = written[filled : filled + at - starts[i]]
                    filled += at - starts[i]
            out[at : end[r]] = 0
