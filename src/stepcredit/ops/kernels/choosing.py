"""Whether kernels run."""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor

from stepcredit.errors import InputError, MissingExtraError

Choice = Literal["auto", "always", "never"]
LEAST_TOKENS = 1 << 14
"""Token places from which "auto" takes kernels: on fewer, torch is done before a kernel is loaded."""

_chosen: ContextVar[Choice | None] = ContextVar("stepcredit_kernels", default=None)


def refusal(tokens: int, device: torch.device) -> str | None:
    """Why tensors of so many token places do not go through kernels; None if they do.

    Raises:
        InputError: ``STEPCREDIT_KERNELS`` is none of its choices.
        MissingExtraError: Kernels are to run always, and Numba is not installed.
    """
    choice = _chosen.get() or _choice("STEPCREDIT_KERNELS", os.environ.get("STEPCREDIT_KERNELS", "auto"))
    if choice == "never":
        return "kernels are switched off"
    if not _installed():
        if choice == "always":
            raise MissingExtraError("numba", "fast", "run kernels always")
        return "numba is not installed"
    if device.type != "cpu":
        return f"the batch is on {device}"
    if choice == "auto" and tokens < LEAST_TOKENS:
        return f"the batch has fewer than {LEAST_TOKENS} token places"
    broken = _broken()
    if broken is not None and choice == "always":
        raise InputError(f"`STEPCREDIT_KERNELS` must not be 'always' where {broken}.")
    return broken


def readable(tokens: int, device: torch.device, *fields: Tensor) -> str | None:
    """`refusal`, and why these fields of the batch cannot be read by kernels."""
    why = refusal(tokens, device)
    for x in fields if why is None else ():
        if x.dtype not in (torch.float32, torch.float64):
            return f"kernels read float32 and float64; the batch has {x.dtype}"
    return why


@contextmanager
def using(choice: Choice) -> Iterator[None]:
    """Kernels "always", "never" or by "auto" within the block, whatever the environment says.

    Example:
        >>> with using("never"):
        ...     refusal(10**6, torch.device("cpu"))
        'kernels are switched off'
    """
    token = _chosen.set(_choice("choice", choice))
    try:
        yield
    finally:
        _chosen.reset(token)


def _choice(name: str, value: str) -> Choice:
    for choice in get_args(Choice):
        if value == choice:
            return choice  # type: ignore[no-any-return]
    raise InputError(f"`{name}` must be one of {', '.join(get_args(Choice))}; got {value!r}.")


@cache
def _broken() -> str | None:
    """What importing Numba raised, as where NumPy has become too new for it; None if it can be imported."""
    try:
        import numba  # noqa: F401
    except ImportError as error:
        return f"numba cannot be imported: {' '.join(str(error).split())}"
    return None


@cache
def _installed() -> bool:
    return importlib.util.find_spec("numba") is not None
