"""Pools: which values are compared with each other, and the one road by which a statistic crosses rows and ranks.

What a rank hands to collectives, in bytes, for n pools:

    a check that ranks agree    24
    the labels of `Pool.of`     8, then 8 times the most labels that one rank holds
    sum, max                    8 n
    mean                        8 n, and its count
    varies                      16 n
    count                       8 n, once a pool; 4 n where `Pool.count_dtype` is int32

Nothing else travels: no value, and nothing that grows with tokens except the number of positions, of which only those
of groups that several ranks hold are reduced. A ring all-reduce of b bytes sends 2 (W - 1) / W b from each of W ranks.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.distributed as dist
from torch import Tensor

from stepcredit.errors import InputError
from stepcredit.ops.kernels.choosing import interpreted

ProcessGroup = dist.ProcessGroup


def all_reduce(x: Tensor, process_group: ProcessGroup | None, op: str = "sum") -> Tensor:
    """Reduces x over the ranks of ``process_group`` in place ("sum" or "max"); None leaves it as it is."""
    if process_group is not None:
        dist.all_reduce(x, {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}[op], process_group)
    return x


def check_ranks_agree(
    what: str, device: torch.device | None, process_group: ProcessGroup, problem: Exception | None = None
) -> None:
    """Refuses, on every rank alike, a text that is not the same on all ranks, or what one rank refuses on its own.

    Ranks that differ in fields or options would call different collectives: a hang, or one number read as another.

    Args:
        what: The text.
        device: Where the ranks' tensors are; None: where the backend takes them.
        process_group: The ranks, which all call this.
        problem: What this rank refuses on its own, if anything. It is raised here, and told to the others.

    Raises:
        InputError: The texts differ, or another rank has a problem.
    """
    mark = zlib.crc32(what.encode())
    if device is None:
        device = torch.device("cuda" if dist.get_backend(process_group) == "nccl" else "cpu")
    found = torch.tensor([-mark, mark, int(problem is not None)], device=device)
    low, high, refused = all_reduce(found, process_group, "max").tolist()
    if problem is not None:
        raise problem
    if refused:
        raise InputError(
            "`process_group` must get a valid batch from every rank; got none from another one. Its own error says why."
        )
    if low != -high:
        raise InputError(f"`process_group` must see the same fields and options on every rank; this one has {what}.")


@contextmanager
def refusing_alike(process_group: ProcessGroup | None, device: torch.device | None = None) -> Iterator[None]:
    """What one rank refuses in the block, every rank refuses at its end: none is left waiting in a later collective.

    Args:
        process_group: The ranks, which all run the block; there is no collective in it. None: the block as it is.
        device: Where the ranks' tensors are; None: where the backend takes them.

    Raises:
        InputError: Another rank raised in its block; a rank that raised itself raises its own error.

    Example:
        >>> with refusing_alike(process_group=None):
        ...     batch = torch.ones(3)  # where a rank makes its RolloutBatch
    """
    problem: Exception | None = None
    try:
        yield
    except Exception as error:  # noqa: BLE001 - raised again below, once the other ranks know
        problem = error
    if process_group is not None:
        check_ranks_agree("", device, process_group, problem)
    elif problem is not None:
        raise problem


@dataclass(frozen=True, eq=False)
class Pool:
    """Sorts M values into n pools; a pool's members are standardized together.

    A pool may hold values from several ranks: then each rank brings its own members, a pool that is reduced has one
    number on all of them, and every method is a collective that all ranks call alike. Sums, counts and maxima travel,
    never the values.

    Attributes:
        index: int64 [M], the pool of each value, in 0..n-1.
        n: The number of pools, over all ranks.
        process_group: The ranks that share the pools; None for this process alone.
        count_dtype: What counts travel as between ranks: int32 where no pool can hold 2^31 values.
        shared: bool [n], the pools that several ranks hold values of; None if that was not asked.
        n_shared: The first so many pools are reduced over the ranks, and mean the same on all of them. The others hold
            values of this rank alone. None: all are reduced.
        rest: Whether the last pool holds the values that do not count: it has numbers, which mean nothing.

    Example:
        >>> pool = Pool.of(torch.tensor([7, 3, 7]))
        >>> pool.mean(torch.tensor([1.0, 5.0, 2.0])).tolist(), pool.count.tolist()
        ([5.0, 1.5], [1, 2])
    """

    index: Tensor
    n: int
    process_group: ProcessGroup | None = None
    count_dtype: torch.dtype = torch.int64
    shared: Tensor | None = None
    n_shared: int | None = None
    rest: bool = False

    @classmethod
    def of(cls, labels: Tensor, process_group: ProcessGroup | None = None) -> "Pool":
        """One pool for each distinct label (int64 [M]) found on any rank, in the order of the labels."""
        if process_group is None:
            rises = labels[1:] != labels[:-1]
            if labels.numel() and bool((labels[1:] >= labels[:-1]).all()):  # as they mostly come: no need to sort
                index = torch.cat([rises.new_zeros(1), rises]).cumsum(0)
                return cls(index, int(index[-1]) + 1)
            unique, index = torch.unique(labels, return_inverse=True)
            return cls(index, unique.numel())
        gathered = _gather_ragged(torch.unique(labels), process_group)
        unique, holders = torch.unique(gathered, return_counts=True)
        return cls(torch.searchsorted(unique, labels), unique.numel(), process_group, shared=holders > 1)

    @classmethod
    def unread(cls, labels: Tensor, counts: Tensor) -> "Pool":
        """One pool for each distinct label, without waiting for the device to say how many there are.

        Args:
            labels: int64 [M].
            counts: bool [M]; where it is False, a value is in the `rest`.

        Returns:
            As many pools as labels and the `rest`; where that would be waited for, M + 1, of which those after the
            last label's are empty, except the last.
        """
        if labels.device.type == "cpu" and not interpreted():
            pool = cls.of(labels)
            return cls(torch.where(counts, pool.index, pool.n), pool.n + 1, rest=True)
        ascending, order = torch.sort(labels)
        ranks = torch.zeros_like(order)
        ranks[1:] = (ascending[1:] != ascending[:-1]).cumsum(0)
        index = torch.empty_like(order).scatter_(0, order, ranks)
        return cls(torch.where(counts, index, labels.numel()), labels.numel() + 1, rest=True)

    def only(self, members: Tensor) -> "Pool":
        """The same pools without the values that are no members (bool [M]): they go to the `rest`, which there is."""
        return replace(self, index=torch.where(members, self.index, self.n - 1))

    def select(self, members: Tensor) -> "Pool":
        """The same pools for other values: ``members`` (int64 or bool index into M) names one of ours for each."""
        return replace(self, index=self.index[members])

    def split(self, keys: Tensor, n_keys: Tensor, count_dtype: torch.dtype = torch.int64) -> "Pool":
        """Finer pools: pool p becomes n_keys[p] pools, by the key of each value.

        The pools of those that several ranks hold come first, and of the others only this rank's own are made.

        Args:
            keys: int64 [M], in 0..n_keys[p] - 1 for a value of pool p.
            n_keys: int64 [n], the same on all ranks.
            count_dtype: Of the finer pools.
        """
        if self.shared is None:
            first = n_keys.cumsum(0) - n_keys
            return Pool(first[self.index] + keys, int(n_keys.sum()), self.process_group, count_dtype)
        held = self.shared.index_fill(0, self.index, True)
        sizes = torch.where(held, n_keys, 0)
        order = torch.argsort(self.shared.long(), descending=True, stable=True)
        first = torch.empty_like(sizes)
        first[order] = sizes[order].cumsum(0) - sizes[order]
        n, n_shared = torch.stack([sizes.sum(), sizes[self.shared].sum()]).tolist()
        return Pool(first[self.index] + keys, n, self.process_group, count_dtype, n_shared=n_shared)

    def merged(self) -> "Pool":
        """All values that count in one pool, over all ranks: the batch."""
        if self.rest:
            return Pool((self.index == self.n - 1).long(), 2, rest=True)
        return Pool(torch.zeros_like(self.index), 1, self.process_group)

    @cached_property
    def count(self) -> Tensor:
        """int64 [n]: how many values each pool holds."""
        if self.index.is_cuda or self.rest:  # bincount waits for the device, to read the largest index
            here = self.index.new_zeros(self.n).index_add_(0, self.index, torch.ones_like(self.index))
        else:
            here = torch.bincount(self.index, minlength=self.n)
        if self.process_group is None:
            return here
        return self._reduced(here.to(self.count_dtype)).long()

    def sum(self, x: Tensor) -> Tensor:
        """[M] -> [n]: 0 for an empty pool."""
        return self._reduced(x.new_zeros(self.n).index_add_(0, self.index, x))

    def max(self, x: Tensor) -> Tensor:
        """[M] -> [n]: minus infinity for an empty pool."""
        return self._reduced(self._max_here(x), "max")

    def varies(self, x: Tensor) -> Tensor:
        """[M] -> bool [n]: whether the pool holds two different values, by comparison alone; False for an empty one."""
        largest, smallest = self._reduced(torch.stack([self._max_here(x), self._max_here(-x)], 1), "max").unbind(1)
        return largest > -smallest

    def mean(self, x: Tensor) -> Tensor:
        """[M] -> [n]: 0 for an empty pool."""
        return self.sum(x) / self.count.clamp(min=1)

    def spread(self, statistic: Tensor) -> Tensor:
        """[n] -> [M]: each value gets its pool's statistic."""
        return statistic.index_select(0, self.index)

    def _reduced(self, statistic: Tensor, op: str = "sum") -> Tensor:
        """A statistic [n, ...] of this rank's values, made that of all ranks' in place."""
        travels = statistic[: self.n_shared]
        if travels.numel():
            all_reduce(travels, self.process_group, op)
        return statistic

    def _max_here(self, x: Tensor) -> Tensor:
        return x.new_full((self.n,), -torch.inf).scatter_reduce_(0, self.index, x, "amax")


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
