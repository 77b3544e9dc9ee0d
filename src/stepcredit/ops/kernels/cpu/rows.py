"""Where each rollout's response tokens stand, and one number a rollout spread over them."""

import numpy as np
import torch
from torch import Tensor

from stepcredit.ops.kernels.cpu.compiling import Array, Kernel, array, over_rows
from stepcredit.ops.kernels.operands import Extents, Rows, Runs


def extents(mask: Tensor, begin: Tensor, end: Tensor, counted: Tensor | None) -> Extents:
    """`Rows.first`, `Rows.stop`, `Rows.length` and `Rows.runs`."""
    n, tokens = begin.numel(), mask.numel()
    first, stop, length = torch.zeros(3, n, dtype=torch.int64).unbind()
    of_row = torch.zeros(n + 1, dtype=torch.int64)
    all_count = torch.ones(n, dtype=torch.bool)
    counts, read = array(all_count if counted is None else counted), _bytes(mask)
    found = tuple(map(array, (first, stop, length)))
    if any(_extents.run(n, tokens, counts, _eights(read), read, array(begin), array(end), *found)):
        return extents(mask.view(torch.uint8) != 0, begin, end, counted)
    _count_runs.run(n, tokens, read, *found, array(of_row))
    of_row = of_row.cumsum(0)
    starts, stops = torch.empty(2, int(of_row[-1]), dtype=torch.int64).unbind()
    _find_runs.run(n, tokens, read, *found, *map(array, (of_row, starts, stops)))
    return first, stop, length, Runs(of_row, starts, stops)


def spread(values: Tensor, rows: Rows, out: Tensor) -> None:
    """Each row's number on its response tokens."""
    over_rows(_spread, rows, array(values), _bytes(rows.mask), array(out))


def _bytes(mask: Tensor) -> Array:
    """The mask as it is kept: 0 is False, and nearly always 1 is True."""
    return array(mask).view(np.uint8)


def _eights(mask: Array) -> Array:
    """The mask eight tokens at a time, uint64, without what is over at the end; none where it does not stand so."""
    whole = mask[: mask.size // 8 * 8] if mask.ctypes.data % 8 == 0 else mask[:0]
    return whole.view(np.uint64)


@Kernel
def _extents(lo, hi, counted, words, mask, begin, end, first, stop, length):  # type: ignore[no-untyped-def]
    bytes_, pairs, eighth = np.uint64(0x00FF00FF00FF00FF), np.uint64(0x0000FFFF0000FFFF), np.uint64(8)
    seen, ones = np.uint64(0), np.uint64(0x0101010101010101)  # all bits, to find bytes other than 0 and 1
    for r in range(lo, hi):
        a, b = begin[r], end[r]
        left, right = (a + 7) // 8, min(b // 8, words.size)
        head, tail = (left * 8, right * 8) if left < right else (b, b)
        n = np.int64(0)
        if counted[r]:
            for t in range(a, head):
                n += mask[t]
                seen |= np.uint64(mask[t])
            for t in range(tail, b):
                n += mask[t]
                seen |= np.uint64(mask[t])
            for at in range(left, right, 255):  # as many as a byte can count
                eight, some = np.uint64(0), words[at : min(at + 255, right)]
                for j in range(some.size):
                    eight += some[j]
                    seen |= some[j]
                four = (eight & bytes_) + ((eight >> eighth) & bytes_)
                two = (four & pairs) + ((four >> (eighth + eighth)) & pairs)
                n += np.int64(two & np.uint64(0xFFFF)) + np.int64(two >> np.uint64(32))
        length[r] = n
        if n == 0:
            first[r] = stop[r] = a
            continue
        while a % 8 and not mask[a]:
            a += 1
        if a % 8 == 0:
            w = a // 8
            while w < words.size and words[w] == 0:
                w += 1
            a = max(a, w * 8)
        while not mask[a]:
            a += 1
        while b % 8 and not mask[b - 1]:
            b -= 1
        if b % 8 == 0 and words.size:
            w = b // 8
            while words[w - 1] == 0:
                w -= 1
            b = w * 8
        while not mask[b - 1]:
            b -= 1
        first[r], stop[r] = a, b
    return (seen & ~ones) != 0


@Kernel
def _count_runs(lo, hi, mask, first, stop, length, of_row):  # type: ignore[no-untyped-def]
    for r in range(lo, hi):
        a, b, n = first[r], stop[r], np.int64(length[r] > 0)
        if b - a > length[r]:
            row, later = mask[a:b], mask[a + 1 : b]
            for j in range(later.size):
                n += later[j] > row[j]
        of_row[r + 1] = n


@Kernel
def _find_runs(lo, hi, mask, first, stop, length, of_row, starts, stops):  # type: ignore[no-untyped-def]
    longest = 0
    for r in range(lo, hi):
        longest = max(longest, stop[r] - first[r])
    edges = np.empty(longest + 1, np.int64)  # where a row changes: a stop, the next start, and so on
    for r in range(lo, hi):
        a, b, i = first[r], stop[r], of_row[r]
        n = of_row[r + 1] - i
        if n == 0:
            continue
        starts[i], stops[i + n - 1] = a, b
        if n == 1:
            continue
        row, later, n = mask[a:b], mask[a + 1 : b], 0
        for j in range(later.size):  # no branch: a coin toss a token would be guessed wrong half of the time
            edges[n] = a + j + 1
            n += later[j] != row[j]
        for j in range(n // 2):
            stops[i + j], starts[i + j + 1] = edges[2 * j], edges[2 * j + 1]


@Kernel
def _spread(lo, hi, values, mask, out, begin, end, length, runs, starts, stops):  # type: ignore[no-untyped-def]
    for r in range(lo, hi):
        at, value, n = begin[r], values[r], runs[r + 1] - runs[r]
        if end[r] - at < 32 * n:  # slices take longer to make than so few tokens to write
            here, line = mask[at : end[r]], out[at : end[r]]
            for j in range(line.size):
                line[j] = value if here[j] else 0
            continue
        for i in range(runs[r], runs[r + 1]):
            out[at : starts[i]] = 0
            out[starts[i] : stops[i]] = value
            at = stops[i]
        out[at : end[r]] = 0
