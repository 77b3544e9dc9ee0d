"""Ragged Python lists to tensors."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from stepcredit.errors import InputError


def mask_rows(response_mask: Sequence[Sequence[bool]] | Sequence[int]) -> list[list[bool]]:
    """Rows of a response mask; a row given as its length is all True.

    Raises:
        InputError: A row is neither a list nor a length.
    """
    if not _is_list(response_mask):
        raise InputError(f"`response_mask` must be a list with one entry a rollout; got {response_mask!r}.")
    rows, given = [], list[Any](response_mask)
    for number, row in enumerate(given):
        if isinstance(row, Integral) and not isinstance(row, bool) and int(row) >= 0:
            rows.append([True] * int(row))
        elif isinstance(row, Integral):
            raise InputError(
                f"`response_mask` must hold lists of bools, or lengths >= 0; got {row!r} for row {number}."
            )
        elif _is_list(row):
            rows.append(list(row))
        else:
            raise InputError(f"`response_mask` must hold lists of bools, or lengths; got {row!r} for row {number}.")
    return rows


def list_tensor(name: str, kind: str, value: Any, dtype: torch.dtype) -> Tensor:
    """A list as a tensor, "float" kinds as ``dtype``; other kinds keep what they are, for the batch to check.

    Raises:
        InputError: The list is ragged, or holds what is no number.
    """
    try:
        return torch.as_tensor(value, dtype=dtype if kind == "float" else None)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(
            f"`{name}` must be one {kind} a rollout (or a token); got {' '.join(str(error).split())}."
        ) from None


def pad_lists(
    name: str, kind: str, rows: Sequence[Sequence[Any]], lengths: Sequence[int], dtype: torch.dtype
) -> Tensor:
    """One list a rollout as a [batch, time] tensor, filled up with False, -1 or 0.

    Raises:
        InputError: There is not one list a rollout, or a list is not as long as its rollout.
    """
    if not _is_list(rows) or not all(_is_list(row) for row in rows):
        raise InputError(f"`{name}` must be a list of lists, one a rollout; got {type(rows).__name__}: {rows!r:.60}.")
    if len(rows) != len(lengths):
        raise InputError(f"`{name}` must have one list a rollout, {len(lengths)}; got {len(rows)}.")
    fill: Any = {"bool": False, "int": -1, "float": 0.0}[kind]
    longest, padded = max(lengths, default=0), []
    for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        if len(row) != length:
            raise InputError(f"`{name}` must have one entry a token; got {len(row)} for {length} tokens in row {i}.")
        padded.append([*row, *[fill] * (longest - length)])
    return list_tensor(name, kind, padded, dtype).reshape(len(lengths), longest)


def _is_list(value: Any) -> bool:
    """Whether it has a length and items (a list, a tuple, an array, a tensor of one or more axes)."""
    return not isinstance(value, (str, bytes, dict)) and hasattr(value, "__len__") and getattr(value, "ndim", 1) > 0
