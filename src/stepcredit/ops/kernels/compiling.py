"""Compiling a kernel at its first call, and running it in parts on several threads."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, np.dtype[Any]]
_PARTS, _TOKENS = 4, 1 << 16  # parts a thread, so that ragged ones even out; tokens that are worth a thread


class Kernel:
    """A function over units ``lo..hi - 1`` (rows or groups) of flat arrays, compiled when it is first run.

    Args:
        plain: The function: loops over scalars, in the part of Python that Numba knows; it calls no other.
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
        cuts = [units * part // (threads * _PARTS) for part in range(threads * _PARTS + 1)]
        parts = iter(list(pairwise(cuts)))  # whoever is done takes the next

        def work() -> list[Any]:
            return [self.compiled(lo, hi, *arguments) for lo, hi in parts]

        with ThreadPoolExecutor(threads - 1) as pool:
            others = [pool.submit(work) for _ in range(threads - 1)]
            return work() + [one for other in others for one in other.result()]


def in_any_order(plain: Callable[..., Any]) -> Kernel:
    """Decorates a kernel whose sums may be taken in any order."""
    return Kernel(plain, any_order=True)


def flat(x: Tensor | None, missing: torch.dtype = torch.bool) -> Array:
    """A tensor's numbers as one axis, where they stand if they stand together; none for a tensor that is missing."""
    if x is None:
        return torch.empty(0, dtype=missing).numpy()
    return x.detach().resolve_neg().contiguous().view(-1).numpy()
