"""What a package of kernels offers: one set of functions, a package for each kind of device that runs them."""

from typing import Protocol

import torch
from torch import Tensor

from stepcredit.ops.kernels.operands import Extents, Grouped, Line, Moments, Returns, Rows, Signal


class Kernels(Protocol):
    """The functions of `stepcredit.ops.kernels.cpu` and `stepcredit.ops.kernels.gpu`.

    They read and write the tensors where they stand, keep sums in float64, and change nothing but ``out``, which they
    write everywhere: 0 off the response tokens. Off the CPU none of them but the checks waits for the device.
    """

    @property
    def DTYPES(self) -> tuple[torch.dtype, ...]:  # noqa: N802 - a constant of the package
        """The dtypes of token fields that they read."""
        ...

    def extents(self, mask: Tensor, begin: Tensor, end: Tensor, counted: Tensor | None) -> Extents:
        """`Rows.first`, `stop`, `length` and `runs`; ``counted``: bool [batch], the rows that count."""
        ...

    def spread(self, values: Tensor, rows: Rows, out: Tensor) -> None:
        """Each row's number (float [batch], of the dtype of ``out``) on its response tokens."""
        ...

    def moments(self, signal: Signal, rows: Rows) -> Moments:
        """Reads the signal once."""
        ...

    def returns(self, signal: Signal, line: Line, rows: Rows) -> Returns:
        """Of what `return_to_go_of_steps` would write."""
        ...

    def return_to_go_of_steps(self, signal: Signal, line: Line, rows: Rows, out: Tensor) -> None:
        """``A[t] = each + sum over the steps that end at t or later of (x - center) slope``."""
        ...

    def divide_length_of_steps(self, signal: Signal, line: Line, divisors: Tensor, rows: Rows, out: Tensor) -> None:
        """`stepcredit.shaping.density.divide_length`; a chunk is a run of response tokens of one step, or of none.

        Args:
            signal: Its steps are given.
            line: A chunk's value.
            divisors: float64 [longest row + 1], by how many chunks are left, this one included.
            rows: The rows.
            out: Written to.
        """
        ...

    def divide_length_of_chunks(
        self, signal: Signal, line: Line, cut: Tensor, divisors: Tensor, grouped: Grouped, out: Tensor, *, eta: float
    ) -> None:
        """`chunk_by_value` of the `group_average`, then `divide_length`, of `stepcredit.shaping`.

        Args:
            signal: Its steps are not given.
            line: A chunk's value, at its last token.
            cut: float64 [batch]; the average that cuts is that of ``(x - center) cut``.
            divisors: float64 [longest row + 1], by how many chunks are left, this one included.
            grouped: The rows, group by group.
            out: Written to.
            eta: As in `chunk_by_value`.
        """
        ...

    def prefix_step_advantage(
        self, policy_logprobs: Tensor, ref_logprobs: Tensor, each: Tensor, grouped: Grouped, out: Tensor, *, beta: float
    ) -> None:
        """`masked_step_advantage` of the "prefix" `process_return` of `stepcredit.shaping`, plus ``each``.

        Args:
            policy_logprobs: float [tokens], nats.
            ref_logprobs: The same tokens under the reference.
            each: float64 [batch], added on every response token.
            grouped: The rows, group by group.
            out: Written to.
            beta: As in `process_return`.
        """
        ...

    def all_below(self, x: Tensor, largest: float, rows: Rows) -> bool:
        """Whether ``|x| < largest`` on every response token; False for a nan."""
        ...

    def signal_is_sound(self, signal: Signal, largest: float, rows: Rows) -> bool:
        """Whether a process signal keeps its rules on the response tokens that it covers.

        Args:
            signal: Without numbers where steps alone are to be looked at.
            largest: What |x| must be less than.
            rows: The rows.

        Returns:
            True if numbers are small enough and constant in a step, and steps are at least -1 and never decrease.
        """
        ...
