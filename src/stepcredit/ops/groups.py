"""Pools: which values are compared with each other, and the one road by which a statistic crosses rows and ranks."""

import zlib
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.distributed as dist
from torch import Tensor

from stepcredit.errors import InputError

ProcessGroup = dist.ProcessGroup


def all_reduce(x: Tensor, process_group: ProcessGroup | None, op: str = "sum") -> Tensor:
    """Reduces x over the ranks of ``process_group`` in place ("sum" or "max"); None leaves it as it is."""
    if process_group is not None:
        dist.all_reduce(x, {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}[op], process_group)
    return x


def check_ranks_agree(what: str, device: torch.device, process_group: ProcessGroup) -> None:
    """Refuses, on every rank alike, a text that is not the same on all ranks.

    Ranks that differ in fields or options would call different collectives: a hang, or one number read as another.

    Raises:
        InputError: The texts differ.
    """
    mark = zlib.crc32(what.encode())
    low, high = (-all_reduce(torch.tensor([-mark, mark], device=device), process_group, "max")).tolist()
    if low != -high:
        raise InputError(f"`process_group` must see the same fields and options on every rank; this one has {what}.")


@dataclass(frozen=True, eq=False)
class Pool:
    """Sorts M values into n pools; a pool's members are standardized together.

    A pool may hold values from several ranks: then each rank brings its own members, ``index`` and ``n`` mean the
    same on all of them, and every method is a collective that all ranks call alike. Sums, counts and maxima travel,
    never the values.

    Attributes:
        index: int64 [M], the pool of each value, in 0..n-1.
        n: The number of pools, over all ranks.
        process_group: The ranks that share the pools; None for this process alone.

    Example:
        >>> pool = Pool.of(torch.tensor([7, 3, 7]))
        >>> pool.mean(torch.tensor([1.0, 5.0, 2.0])).tolist(), pool.count.tolist()
        ([5.0, 1.5], [1, 2])
    """

    index: Tensor
    n: int
    process_group: ProcessGroup | None = None

    @classmethod
    def of(cls, labels: Tensor, process_group: ProcessGroup | None = None) -> "Pool":
        """One pool for each distinct label (int64 [M]) found on any rank, in the order of the labels."""
        unique = torch.unique(labels)
        if process_group is not None:
            unique = torch.unique(_gather_ragged(unique, process_group))
        return cls(torch.searchsorted(unique, labels), unique.numel(), process_group)

    def select(self, members: Tensor) -> "Pool":
        """The same pools for other values: ``members`` (int64 or bool index into M) names one of ours for each."""
        return Pool(self.index[members], self.n, self.process_group)

    def split(self, keys: Tensor, n_keys: int) -> "Pool":
        """Finer pools: pool p becomes n_keys pools, by the key (int64 [M], in 0..n_keys-1) of each value."""
        return Pool(self.index * n_keys + keys, self.n * n_keys, self.process_group)

    def merged(self) -> "Pool":
        """All values in one pool, over all ranks: the batch."""
        return Pool(torch.zeros_like(self.index), 1, self.process_group)

    @cached_property
    def count(self) -> Tensor:
        """int64 [n]: how many values each pool holds."""
        return all_reduce(torch.bincount(self.index, minlength=self.n), self.process_group)

    def sum(self, x: Tensor) -> Tensor:
        """[M] -> [n]: 0 for an empty pool."""
        return all_reduce(x.new_zeros(self.n).index_add_(0, self.index, x), self.process_group)

    def max(self, x: Tensor) -> Tensor:
        """[M] -> [n]: minus infinity for an empty pool."""
        empty = x.new_full((self.n,), -torch.inf)
        return all_reduce(empty.scatter_reduce_(0, self.index, x, "amax"), self.process_group, "max")

    def mean(self, x: Tensor) -> Tensor:
        """[M] -> [n]: 0 for an empty pool."""
        return self.sum(x) / self.count.clamp(min=1)

    def spread(self, statistic: Tensor) -> Tensor:
        """[n] -> [M]: each value gets its pool's statistic."""
        return statistic[self.index]


def _gather_ragged(x: Tensor, process_group: ProcessGroup) -> Tensor:
    """All ranks' int64 vectors, one after the other."""
    ranks = dist.get_world_size(process_group)
    sizes = [x.new_zeros(1) for _ in range(ranks)]
    dist.all_gather(sizes, x.new_tensor([x.numel()]), process_group)
    longest = max(int(size) for size in sizes)
    padded = torch.cat([x, x.new_zeros(longest - x.numel())])
    gathered = [torch.zeros_like(padded) for _ in range(ranks)]
    dist.all_gather(gathered, padded, process_group)
    return torch.cat([part[: int(size)] for part, size in zip(gathered, sizes, strict=True)])
