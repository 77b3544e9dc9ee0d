"""Triton's language, where it is installed, and the launch of a kernel."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
    from triton.language import constexpr
except ImportError:  # the modules can be imported all the same, to be read and documented
    triton, tl, constexpr = None, None, int

BLOCK = 1024
"""Tokens that a program looks at at once."""

__all__ = ["BLOCK", "cdiv", "constexpr", "jit", "launch", "number", "tl"]


def jit(plain: Callable[..., Any]) -> Any:
    """The function as Triton makes it, compiled when it is first launched; as it is where there is no Triton."""
    return plain if triton is None else triton.jit(plain)


def launch(kernel: Any, grid: tuple[int, ...], *given: Tensor, **constants: Any) -> None:
    """Runs a kernel's programs on the device of its first argument, without waiting for them.

    Args:
        kernel: Whose last parameter is ``BLOCK``.
        grid: How many programs along each axis.
        given: Tensors. Numbers travel as tensors too, see `number`.
        constants: What each of whose values makes a kernel of its own.
    """
    if 0 in grid:
        return
    device = given[0].device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[grid](*given, BLOCK=BLOCK, **constants)


def number(value: float, device: torch.device) -> Tensor:
    """float64 [1], filled on the device: a number that a kernel is given as such is one of float32 there."""
    return torch.full((1,), value, dtype=torch.float64, device=device)


def cdiv(tokens: int, block: int) -> int:
    """Blocks that hold so many tokens."""
    return -(-tokens // block)
