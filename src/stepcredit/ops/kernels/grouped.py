"""The rows of a batch group by group, for what is compared position by position."""

from dataclasses import dataclass

import torch
from torch import Tensor

from stepcredit.ops.groups import Pool
from stepcredit.ops.kernels.compiling import Array, Kernel, flat
from stepcredit.ops.kernels.rows import Rows


@dataclass(frozen=True, eq=False)
class Grouped:
    """The groups' rows.

    Attributes:
        rows: The rows.
        order: int64 [batch], the rows in the order of their groups; those that do not count come last.
        edges: int64 [groups + 2], group g's rows are ``order[edges[g]:edges[g + 1]]``, and then those without one.
    """

    rows: Rows
    order: Array
    edges: Array

    @classmethod
    def of(cls, rows: Rows, live: Tensor, groups: Pool) -> "Grouped":
        """From the rows that count (int64 [live]) and their groups."""
        index = torch.full((rows.length.size,), groups.n)
        index[live] = groups.index
        edges = torch.cat([index.new_zeros(1), torch.bincount(index, minlength=groups.n + 1).cumsum(0)])
        return cls(rows, flat(torch.argsort(index, stable=True)), flat(edges))

    def run(self, kernel: Kernel, *arguments: object) -> None:
        """Runs a kernel whose units are the groups, and then the rows without one as if they were a group."""
        kernel.run(self.edges.size - 1, self.rows.mask.size, *arguments, self.order, self.edges, *self.rows.arrays)
