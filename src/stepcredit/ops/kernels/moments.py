"""Count, mean and squares of each rollout's process signal, each step once."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stepcredit.ops.groups import Pool
from stepcredit.ops.kernels.compiling import Array, flat, in_any_order
from stepcredit.ops.kernels.rows import Rows


@dataclass(frozen=True, eq=False)
class Signal:
    """A process signal on flattened token tensors.

    Attributes:
        x: float [tokens]; empty where there are steps alone.
        steps: int [tokens], the step of each token, -1 where it is not covered; empty for a token-level signal.
        covers: bool [tokens], which tokens it covers; empty where it covers all.
    """

    x: Array
    steps: Array
    covers: Array

    @classmethod
    def of(cls, x: Tensor | None, step_ids: Tensor | None, process_mask: Tensor | None) -> "Signal":
        """From the fields of a batch."""
        return cls(flat(x, torch.float32), flat(step_ids, torch.int64), flat(process_mask))

    @property
    def arrays(self) -> tuple[Array, Array, Array]:
        """What every kernel over a signal takes."""
        return self.x, self.steps, self.covers


@dataclass(frozen=True, eq=False)
class Moments:
    """Of each row's values, a step counting once.

    Attributes:
        count: int64 [rows].
        mean: float64 [rows]; 0 without values, as all below.
        squares: float64 [rows], the sum of squared distances from the mean.
        first: float64 [rows], the first value.
        varied: bool [rows], whether two of them differ.
        opening: float64 [rows], the signal at the first response token, 0 where it does not cover that.
        changes: int64 [rows], of a token-level signal: response tokens whose signal is not that of the one before.
    """

    count: Tensor
    mean: Tensor
    squares: Tensor
    first: Tensor
    varied: Tensor
    opening: Tensor
    changes: Tensor

    @classmethod
    def of(cls, signal: Signal, rows: Rows) -> "Moments":
        """Reads the signal once."""
        reals = torch.zeros(rows.length.size, 4, dtype=torch.float64)
        counts = torch.zeros(rows.length.size, 3, dtype=torch.int64)
        rows.run(_moments, *signal.arrays, reals.numpy(), counts.numpy())
        mean, squares, first, opening = reals.unbind(1)
        count, varied, changes = counts.unbind(1)
        return cls(count, mean, squares, first, varied != 0, opening, changes)

    def __getitem__(self, rows: Tensor) -> "Moments":
        """Those of some rows (int64 or bool index)."""
        return Moments(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def scale(self, pool: Pool, *, std_eps: float, correction: int) -> tuple[Tensor, Tensor]:
        """The mean of each row's pool, and one over its standard deviation plus std_eps: those of `standardize`.

        Args:
            pool: The pool of each row.
            std_eps: As in `stepcredit.ops.scaling.standardize`.
            correction: As there.

        Returns:
            Two float64 [rows]; the second is 0 where the pool's values are all equal, or no more than ``correction``.
        """
        total = pool.sum(self.count)
        mean = pool.sum(self.count * self.mean) / total.clamp(min=1)
        squares = pool.sum(self.squares + self.count * (self.mean - pool.spread(mean)).square())
        some = self.count > 0
        varied = (pool.sum(self.varied.long()) > 0) | pool.select(some).varies(self.first[some])
        varied &= total > correction
        variance = torch.where(varied, squares / (total - correction).clamp(min=1), 1.0)
        scale = torch.where(varied, 1 / (variance.pow(0.5) + std_eps), 0.0)
        return pool.spread(mean), pool.spread(scale)


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
