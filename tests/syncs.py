"""Counts the operations for which a CPU would wait for a GPU, on the CPU alone."""

from collections import Counter
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

READS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount")
HANDED_OVER = ("tolist", "cpu", "numpy")
"""What Python methods do without an operator of their own on the CPU."""


class Syncs(TorchDispatchMode):
    """The operations that need a tensor's values, or a shape that depends on them: ``item`` and ``bool``, ``nonzero``
    and what is made of it (a boolean index, ``masked_select``), ``unique``, ``bincount``, ``repeat_interleave``
    without its size; with ``tolist``, ``cpu`` and ``numpy``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self._methods = _Methods(self.counts)

    @property
    def total(self) -> int:
        return self.counts.total()

    def __enter__(self) -> "Syncs":
        self._methods.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._methods.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in READS:
            self.counts[name] += 1
        elif name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            self.counts["boolean index"] += any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
        elif name == "repeat_interleave" and "output_size" not in (kwargs or {}):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in HANDED_OVER and args and isinstance(args[0], torch.Tensor):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))
