"""Ranks in one process, one after the other: a credit function is called again until its collectives are complete."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from stepcredit.errors import StepCreditError

T = TypeVar("T")


class _Waits(BaseException):
    """A collective that the other ranks have not come to: the call is left, and made again later."""


class _Done:
    def wait(self, *_: Any) -> bool:
        return True


class ReplayedRank:
    """One rank's view of a process group, to which `torch.distributed` hands all_reduce and all_gather on.

    A call is made again from its beginning each time that one more of its collectives can be answered, which takes a
    function that does the same on every call. Threads would not do: a lock that one rank holds while it waits, as
    Python 3.11's ``cached_property`` has, is never given back to the other.
    """

    def __init__(self, rank: int, sent: list[list[Tensor]]) -> None:
        self._rank, self._sent, self._calls = rank, sent, 0

    def size(self) -> int:
        """How many ranks there are."""
        return len(self._sent)

    def rank(self) -> int:
        """This one."""
        return self._rank

    def allreduce(self, tensors: list[Tensor], options: Any = None) -> _Done:
        """Sum, maximum or minimum over the ranks, in place."""
        everyone = torch.stack(self._exchange(tensors[0]))
        operation = getattr(options, "reduceOp", dist.ReduceOp.SUM)
        if operation == dist.ReduceOp.MAX:
            tensors[0].copy_(everyone.amax(0))
        elif operation == dist.ReduceOp.MIN:
            tensors[0].copy_(everyone.amin(0))
        elif operation == dist.ReduceOp.SUM:
            tensors[0].copy_(everyone.sum(0))
        else:
            raise StepCreditError(f"replayed ranks reduce by sum, maximum or minimum; got {operation}.")
        return _Done()

    def allgather(self, outputs: list[list[Tensor]], inputs: list[Tensor], _options: Any = None) -> _Done:
        """Every rank's tensor on every rank."""
        for mine, theirs in zip(outputs[0], self._exchange(inputs[0]), strict=True):
            mine.copy_(theirs)
        return _Done()

    def _exchange(self, mine: Tensor) -> list[Tensor]:
        number, self._calls = self._calls, self._calls + 1
        if len(self._sent[self._rank]) == number:
            self._sent[self._rank].append(mine.clone())
        if any(len(sent) <= number for sent in self._sent):
            raise _Waits
        return [sent[number] for sent in self._sent]


def on_ranks(ranks: int, work: Callable[[int, Any], T]) -> list[T]:
    """Calls ``work(rank, process_group)`` for every rank until all have returned.

    Raises:
        StepCreditError: A rank waits for a collective that another never makes: the hang of a real run.
        Exception: The first that a rank raises.
    """
    sent: list[list[Tensor]] = [[] for _ in range(ranks)]
    found: dict[int, T] = {}
    while len(found) < ranks:
        before = [*map(len, sent)], len(found)
        for rank in set(range(ranks)) - set(found):
            try:
                found[rank] = work(rank, ReplayedRank(rank, sent))
            except _Waits:
                continue
        if before == ([*map(len, sent)], len(found)):
            raise StepCreditError(f"the ranks wait for each other: they made {before[0]} collectives")
    return [found[rank] for rank in range(ranks)]
