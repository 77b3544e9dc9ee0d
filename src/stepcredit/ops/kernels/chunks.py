"""PASS on a token-level signal: chunks by the group's average, and their divided returns-to-go."""

import numpy as np
from torch import Tensor

from stepcredit.ops.kernels.compiling import Kernel, flat
from stepcredit.ops.kernels.density import Line
from stepcredit.ops.kernels.grouped import Grouped
from stepcredit.ops.kernels.moments import Signal


def divide_length_of_chunks(
    signal: Signal, line: Line, cut: Tensor, divisors: Tensor, grouped: Grouped, out: Tensor, *, eta: float
) -> None:
    """`chunk_by_value` of the `group_average`, then `divide_length`, of `stepcredit.shaping`.

    Args:
        signal: Its steps are not given.
        line: A chunk's value, at its last token.
        cut: float64 [batch]; the average that cuts is that of ``(x - center) cut``.
        divisors: float64 [longest row + 1], by how many chunks are left, this one included.
        grouped: The rows, group by group.
        out: Written to; 0 off the response tokens.
        eta: As in `chunk_by_value`.
    """
    given = map(flat, (line.center, line.slope, line.each, cut, divisors))
    grouped.run(_chunks, signal.x, signal.covers, *given, eta, flat(out))


@Kernel
def _chunks(  # type: ignore[no-untyped-def]
    lo, hi, x, covers, center, slope, each, cut, divisors, eta, out, order, edges, mask, begin, end, first, stop, length
):
    longest = 0
    for place in range(edges[lo], edges[hi]):
        longest = max(longest, stop[order[place]] - first[order[place]])
    average, to_go, chunk, on = np.empty(longest), np.empty(longest), np.empty(longest, np.int64), np.empty(longest)
    falling = divisors[:0:-1].copy()
    for g in range(lo, hi):
        size, longest = max(1, edges[g + 1] - edges[g]), 0
        average[:] = 0.0
        for place in range(edges[g], edges[g + 1]):
            r = order[place]
            a, b, c, s = first[r], stop[r], center[r], cut[r]
            row = x[a:b]
            if covers.size == 0 and b - a == length[r]:
                longest = max(longest, b - a)
                for j in range(row.size):
                    average[j] += (row[j] - c) * s
                continue
            j = 0
            for t in range(a, b):
                if mask[t]:
                    if covers.size == 0 or covers[t]:
                        average[j] += (x[t] - c) * s
                    j += 1
        for j in range(average.size):
            average[j] /= size
        shared = False  # whether chunk holds that of each position, as in every row that is covered throughout
        for place in range(edges[g], edges[g + 1]):
            r = order[place]
            a, b, n, c, s, e = first[r], stop[r], length[r], center[r], slope[r], each[r]
            row, credit = x[a:b], out[a:b]
            out[begin[r] : a] = 0
            out[b : end[r]] = 0
            if n == 0:
                continue
            if covers.size == 0 and b - a == n:
                if not shared:
                    shared, value, chunk[0] = True, average[0], 0
                    for j in range(1, longest):
                        opens = abs(average[j] - value) > eta
                        chunk[j] = chunk[j - 1] + opens
                        value = average[j] if opens else value
                chunks, total = chunk[n - 1] + 1, 0.0
                if chunks == n:
                    for j in range(row.size):
                        to_go[j] = (row[j] - c) * s + e
                    for j in range(n - 1, -1, -1):
                        total += to_go[j]
                        to_go[j] = total
                    back = falling[falling.size - n :]
                    for j in range(credit.size):
                        credit[j] = to_go[j] / back[j]
                    continue
                last = chunks
                for j in range(n - 1, -1, -1):
                    if chunk[j] != last:  # its last token, as this goes backward
                        last = chunk[j]
                        total += (row[j] - c) * s + e
                        to_go[last] = total / divisors[chunks - last]
                for j in range(credit.size):
                    credit[j] = to_go[chunk[j]]
                continue
            shared, j, value, last = False, 0, 0.0, 0
            for t in range(b - a):
                if not mask[a + t]:
                    continue
                on[j] = covers.size == 0 or covers[a + t]
                here = average[j] if on[j] else 0.0
                if j == 0:
                    value, chunk[0] = here, 0
                else:
                    opens = on[j] != on[j - 1] or abs(here - value) > eta
                    chunk[j] = chunk[j - 1] + opens
                    value = here if opens else value
                j += 1
            chunks, total, last, amount = chunk[j - 1] + 1, 0.0, -1, 0.0
            for t in range(b - a - 1, -1, -1):
                credit[t] = 0
                if mask[a + t]:
                    j -= 1
                    if chunk[j] != last:
                        last = chunk[j]
                        total += (row[t] - c) * s + e if on[j] else e
                        amount = total / divisors[chunks - last]
                    credit[t] = amount
