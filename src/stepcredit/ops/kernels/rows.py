"""Where each rollout's response tokens stand, and one number a rollout spread over them."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from stepcredit.ops.kernels.compiling import Array, Kernel, flat


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of a batch on its flattened token tensors, in one process, on the CPU.

    Attributes:
        mask: bool [tokens], which are response tokens.
        begin: int64 [batch], where each row begins.
        end: int64 [batch], where it ends.
        first: int64 [batch], its first response token.
        stop: int64 [batch], one beyond its last response token.
        length: int64 [batch], how many response tokens it has; 0 for a row that does not count.
    """

    mask: Array
    begin: Array
    end: Array
    first: Array
    stop: Array
    length: Array

    @classmethod
    def of(cls, response_mask: Tensor, row_mask: Tensor | None, cu_seqlens: Tensor | None) -> "Rows":
        """From the fields of a batch of the same names."""
        if cu_seqlens is None:
            n, width = response_mask.shape
            edges = np.arange(n + 1, dtype=np.int64) * width
        else:
            edges = flat(cu_seqlens)
            n = edges.size - 1
        counted = np.ones(n, dtype=np.bool_) if row_mask is None else flat(row_mask)
        found = [np.zeros(n, dtype=np.int64) for _ in range(3)]
        rows = cls(flat(response_mask), edges[:-1].copy(), edges[1:].copy(), *found)
        _extents.run(n, rows.mask.size, counted, *rows.arrays)
        return rows

    @property
    def arrays(self) -> tuple[Array, ...]:
        """What every kernel over rows takes, in the order of the attributes."""
        return self.mask, self.begin, self.end, self.first, self.stop, self.length

    def run(self, kernel: Kernel, *arguments: object) -> list[object]:
        """Runs a kernel whose units are the rows."""
        return kernel.run(self.length.size, self.mask.size, *arguments, *self.arrays)

    def spread(self, values: Tensor, out: Tensor) -> None:
        """Each row's number (float [batch]) on its response tokens, 0 elsewhere; written to ``out``."""
        self.run(_spread, flat(values.to(out.dtype)), flat(out))


@Kernel
def _extents(lo, hi, counted, mask, begin, end, first, stop, length):  # type: ignore[no-untyped-def]
    for r in range(lo, hi):
        a, b = begin[r], end[r]
        n = 0
        if counted[r]:
            for t in range(a, b):
                n += mask[t]
        length[r] = n
        if n == 0:
            first[r] = stop[r] = a
            continue
        while not mask[a]:
            a += 1
        while not mask[b - 1]:
            b -= 1
        first[r], stop[r] = a, b


@Kernel
def _spread(lo, hi, values, out, mask, begin, end, first, stop, length):  # type: ignore[no-untyped-def]
    for r in range(lo, hi):
        a, b, value = first[r], stop[r], values[r]
        out[begin[r] : a] = 0
        if b - a == length[r]:
            out[a:b] = value
        else:
            for t in range(a, b):
                out[t] = value if mask[t] else 0
        out[b : end[r]] = 0
