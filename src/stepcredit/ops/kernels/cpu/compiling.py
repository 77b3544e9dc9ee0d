"""Compiling a kernel at its first call, and running it in parts on several threads."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache, cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stepcredit.ops.kernels.operands import Grouped, Rows, Signal, flat

Array = np.ndarray[Any, np.dtype[Any]]
_PARTS, _PART = 16, 1 << 18  # the most parts a thread, so that ragged ones even out; tokens of a part, were they fewer
_TOKENS = 1 << 16  # that are worth a thread


class Kernel:
    """A function over units ``lo..hi - 1`` (rows or groups) of flat arrays, compiled when it is first run.

    Args:
        plain: The function: loops over scalars, in the part of Python that Numba knows; it calls no other. Where it
            can it loops over slices: an index that cannot be negative lets a loop run on vector registers.
        any_order: Whether its sums may be taken in any order, which lets them run on vector registers.
    """

    def __init__(self, plain: Callable[..., Any], *, any_order: bool = False) -> None:
        self.plain, self.any_order = plain, any_order

    @cached_property
    def compiled(self) -> Callable[..., Any]:
        """The function as Numba makes it: without the interpreter's lock, kept on disk where there is a place."""
        import numba

        options: dict[str, Any] = {
            "nogil": True,
            "error_model": "numpy",
            "fastmath": {"reassoc", "nsz"} if self.any_order else False,
        }
        try:
            made: Callable[..., Any] = numba.njit(cache=True, **options)(self.plain)
        except RuntimeError:  # no directory for a cache can be written
            made = numba.njit(**options)(self.plain)
        return made

    def run(self, units: int, tokens: int, *arguments: Any) -> list[Any]:
        """Runs all units, on threads where there is work for them; what each part returned."""
        threads = min(torch.get_num_threads(), units, 1 + tokens // _TOKENS)
        if threads <= 1:
            return [self.compiled(0, units, *arguments)]
        parted = threads * min(_PARTS, max(4, tokens // (threads * _PART)))
        cuts = [units * part // parted for part in range(parted + 1)]
        parts = iter(list(pairwise(cuts)))  # whoever is done takes the next

        def work() -> list[Any]:
            return [self.compiled(lo, hi, *arguments) for lo, hi in parts]

        helpers = _helpers(torch.get_num_threads() - 1)
        others = [helpers.submit(work) for _ in range(threads - 1)]
        try:
            mine = work()
        finally:  # whatever happened here, nobody writes on; those that have not begun are not waited for
            begun = [other for other in others if not other.cancel()]
            wait(begun)
        return mine + [one for other in begun for one in other.result()]


@cache
def _helpers(n: int) -> ThreadPoolExecutor:
    """Threads that stay: to start one takes longer than to wake one."""
    return ThreadPoolExecutor(n, "stepcredit")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_helpers.cache_clear)  # threads stay behind in the parent


def in_any_order(plain: Callable[..., Any]) -> Kernel:
    """Decorates a kernel whose sums may be taken in any order."""
    return Kernel(plain, any_order=True)


def array(x: Tensor | None, missing: torch.dtype = torch.bool) -> Array:
    """A tensor's numbers as one axis, where they stand if they stand together; none for a tensor that is missing."""
    if x is None:
        x = torch.empty(0, dtype=missing)
    plain = x.is_contiguous() and not x.requires_grad and not x.is_neg()
    return (x if plain else flat(x)).numpy().reshape(-1)  # NumPy's reshape takes less time than torch's way to one axis


def over_rows(kernel: Kernel, rows: Rows, *arguments: Any) -> list[Any]:
    """Runs a kernel whose units are the rows."""
    return kernel.run(rows.n, rows.mask.numel(), *arguments, *_arrays(rows))


def over_groups(kernel: Kernel, grouped: Grouped, *arguments: Any) -> None:
    """Runs a kernel whose units are the groups that have rows; those that do not count are the last of them."""
    edges, rows = array(grouped.edges), grouped.rows
    edges = edges[np.concatenate([[True], edges[1:] != edges[:-1]])]
    kernel.run(edges.size - 1, rows.mask.numel(), *arguments, array(grouped.order), edges, *_arrays(rows))


def signal_arrays(signal: Signal) -> tuple[Array, Array, Array]:
    """What every kernel over a signal takes; empty where there is none."""
    return array(signal.x, torch.float32), array(signal.steps, torch.int64), array(signal.covers)


def _arrays(rows: Rows) -> tuple[Array, ...]:
    """What every kernel over rows takes; none reads the mask."""
    runs = rows.runs
    assert runs is not None  # of rows that were found by these kernels
    return tuple(map(array, (rows.begin, rows.end, rows.length, runs.of_row, runs.starts, runs.stops)))
