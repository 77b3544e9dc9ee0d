"""Sums along time: what is still to come, and what has come so far."""

import torch
from torch import Tensor

from stepcredit.errors import InputError
from stepcredit.ops.kernels.cpu import along
from stepcredit.ops.segments import Segments


def return_to_go(x: Tensor, rows: Segments, gamma: float = 1.0) -> Tensor:
    r"""The discounted sum of this item's value and all later ones of its row.

        G[t] = x[t] + gamma * G[t + 1] = sum over u >= t of gamma^(u - t) x[u]

    Args:
        x: float [N], values in the order of time, packed row after row.
        rows: The rows that cut x.
        gamma: Discount a position, in [0, 1].

    Returns:
        float [N]; each row's last item keeps its own value. Rows never touch each other's rounding.

    Raises:
        InputError: x is not as long as the rows.

    Example:
        >>> return_to_go(torch.tensor([1.0, 2.0, 3.0]), Segments.from_lengths(torch.tensor([2, 1]))).tolist()
        [3.0, 2.0, 3.0]

    Reference:
        The return of reinforcement learning; with gamma = 1 the process form of GRPO (Shao et al., DeepSeekMath,
        arXiv 2402.03300, 4.1.3).
    """
    _check_size(x, rows)
    if along.reads(x, rows.size):
        return along.return_to_go(x, rows.offsets, gamma)
    result = torch.empty_like(x)
    for part, items in rows.buckets():
        padded = part.pad(x[items])
        if gamma == 1.0:
            padded = padded.flip(1).cumsum(1).flip(1)
        else:
            for t in range(part.max_length - 2, -1, -1):
                padded[:, t] += gamma * padded[:, t + 1]
        result[items] = part.unpad(padded)
    return result


def return_so_far(x: Tensor, rows: Segments) -> Tensor:
    """The sum of this item's value and all earlier ones of its row.

    Args:
        x: float [N], packed row after row.
        rows: The rows that cut x.

    Returns:
        float [N]; each row's first item keeps its own value.

    Raises:
        InputError: x is not as long as the rows.

    Example:
        >>> return_so_far(torch.tensor([1.0, 2.0, 3.0]), Segments.from_lengths(torch.tensor([2, 1]))).tolist()
        [1.0, 3.0, 3.0]
    """
    _check_size(x, rows)
    if along.reads(x, rows.size):
        return along.return_so_far(x, rows.offsets)
    result = torch.empty_like(x)
    for part, items in rows.buckets():
        result[items] = part.unpad(part.pad(x[items]).cumsum(1))
    return result


def _check_size(x: Tensor, rows: Segments) -> None:
    if x.shape != (rows.size,):
        raise InputError(f"`x` must have one value an item of the rows, {rows.size}; got shape {list(x.shape)}.")
