"""Kernels for GPUs, in Triton: programs that walk a row, or share a group, in blocks of tokens."""

import torch

from stepcredit.ops.kernels.gpu.checks import all_below, signal_is_sound
from stepcredit.ops.kernels.gpu.chunks import divide_length_of_chunks
from stepcredit.ops.kernels.gpu.density import divide_length_of_steps, return_to_go_of_steps
from stepcredit.ops.kernels.gpu.moments import moments
from stepcredit.ops.kernels.gpu.returns import returns
from stepcredit.ops.kernels.gpu.rows import extents, spread
from stepcredit.ops.kernels.gpu.step_advantage import prefix_step_advantage

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

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
