"""Kernels for the CPU, in Numba: loops over a row's tokens, rows or groups on threads."""

import torch

from stepcredit.ops.kernels.cpu.checks import all_below, signal_is_sound
from stepcredit.ops.kernels.cpu.chunks import divide_length_of_chunks
from stepcredit.ops.kernels.cpu.density import divide_length_of_steps, return_to_go_of_steps
from stepcredit.ops.kernels.cpu.moments import moments
from stepcredit.ops.kernels.cpu.returns import returns
from stepcredit.ops.kernels.cpu.rows import extents, spread
from stepcredit.ops.kernels.cpu.step_advantage import prefix_step_advantage

DTYPES = (torch.float32, torch.float64)

__all__ = [
    "DTYPES",
    "all_below",
    "divide_length_of_chunks",
    "divide_length_of_steps",
    "extents",
    "moments",
    "prefix_step_advantage",
    "return_to_go_of_steps",
    "returns",
    "signal_is_sound",
    "spread",
]
