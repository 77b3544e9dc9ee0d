"""Whether kernels run, and which: those for the CPU, or those for a GPU."""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Literal, cast, get_args

import torch
from torch import Tensor

from stepcredit.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from stepcredit.ops.kernels.offered import Kernels

Choice = Literal["auto", "always", "never", "interpreted"]
LEAST_TOKENS = 1 << 14
"""Token places from which "auto" takes kernels: on fewer, torch is done before a kernel is loaded."""

_CHOICES = get_args(Choice)
_COMPILERS = {"cpu": "numba", "cuda": "triton"}
_chosen: ContextVar[Choice | None] = ContextVar("stepcredit_kernels", default=None)


def refusal(tokens: int, device: torch.device) -> str | None:
    """Why tensors of so many token places do not go through kernels; None if they do.

    Raises:
        InputError: ``STEPCREDIT_KERNELS`` is none of its choices, or asks for what cannot be.
        MissingExtraError: Kernels are to run always, and Numba is not installed.
    """
    choice = _choice()
    if choice == "never":
        return "kernels are switched off"
    if choice == "interpreted":
        return _uninterpreted(device)
    if device.type not in _COMPILERS:
        return f"the batch is on {device}"
    compiler = _COMPILERS[device.type]
    if not _installed(compiler):
        if choice == "always" and compiler == "numba":
            raise MissingExtraError("numba", "fast", "run kernels always")
        broken: str | None = f"{compiler} is not installed"
    elif choice == "auto" and tokens < LEAST_TOKENS:
        return f"the batch has fewer than {LEAST_TOKENS} token places"
    else:
        broken = _broken(compiler)
    if broken is not None and choice == "always":
        raise InputError(f"`STEPCREDIT_KERNELS` must not be 'always' where {broken}.")
    return broken


def package(device: torch.device) -> "Kernels":
    """The kernels for tensors on a device for which `refusal` has nothing to say."""
    if device.type == "cpu" and not interpreted():
        from stepcredit.ops.kernels import cpu

        return cpu
    from stepcredit.ops.kernels import gpu

    return gpu


def interpreted() -> bool:
    """Whether tensors on the CPU go through the kernels for GPUs."""
    return _choice() == "interpreted"


def readable(tokens: int, device: torch.device, *fields: Tensor) -> str | None:
    """`refusal`, and why these fields of the batch cannot be read by kernels."""
    why = refusal(tokens, device)
    for x in fields if why is None else ():
        known = package(device).DTYPES
        if x.dtype not in known:
            names = " and ".join(str(dtype).removeprefix("torch.") for dtype in known)
            return f"kernels read {names}; the batch has {x.dtype}"
    return why


@contextmanager
def using(choice: Choice) -> Iterator[None]:
    """Kernels "always", "never", "interpreted" or by "auto" within the block, whatever the environment says.

    Example:
        >>> with using("never"):
        ...     refusal(10**6, torch.device("cpu"))
        'kernels are switched off'
    """
    token = _chosen.set(_known("choice", choice))
    try:
        yield
    finally:
        _chosen.reset(token)


def _choice() -> Choice:
    return _chosen.get() or _known("STEPCREDIT_KERNELS", os.environ.get("STEPCREDIT_KERNELS", "auto"))


def _known(name: str, value: str) -> Choice:
    if value not in _CHOICES:
        raise InputError(f"`{name}` must be one of {', '.join(_CHOICES)}; got {value!r}.")
    return cast(Choice, value)


def _uninterpreted(device: torch.device) -> str | None:
    """Why tensors do not go through Triton's interpreter; None if they do."""
    broken = _broken("triton") if _installed("triton") else "triton is not installed"
    if broken is None and os.environ.get("TRITON_INTERPRET") != "1":
        broken = "TRITON_INTERPRET is not 1"
    if broken is not None:
        raise InputError(f"`STEPCREDIT_KERNELS` must not be 'interpreted' where {broken}.")
    return None if device.type == "cpu" else f"the batch is on {device}, and the interpreter reads the CPU's memory"


@cache
def _broken(compiler: str) -> str | None:
    """What importing a compiler raised, as where NumPy has become too new for it; None if it can be imported."""
    try:
        importlib.import_module(compiler)
    except ImportError as error:
        return f"{compiler} cannot be imported: {' '.join(str(error).split())}"
    return None


@cache
def _installed(compiler: str) -> bool:
    return importlib.util.find_spec(compiler) is not None
