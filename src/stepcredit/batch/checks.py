"""The value checks of a `RolloutBatch`, each run once, each with a message that names argument, rule and fact."""

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from stepcredit.batch.layout import Layout, Steps
from stepcredit.errors import InputError

LARGEST = 1e150
"""Values from here on are refused: their squares overflow, and an infinite variance would make credit vanish."""


def as_tensor(name: str, value: Any, kind: str, device: torch.device | None) -> Tensor:
    """The value as a detached tensor of its kind ("bool", "int", "float"); integer and bool rewards become float32.

    Integers become int64, except step ids in int32: they are as many as tokens, and nothing is gained by widening.

    Raises:
        InputError: It is no tensor-like value, of another kind, or on another device.
    """
    try:
        x = torch.as_tensor(value).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"`{name}` must be a tensor (or what torch.as_tensor takes); got {type(value).__name__}: {error}."
        ) from None
    if x.numel() == 0:  # an empty list has no kind of its own
        x = x.to({"bool": torch.bool, "int": torch.int64, "float": x.dtype}[kind])
    if kind == "bool" and x.dtype != torch.bool:
        raise InputError(f"`{name}` must be bool; got {x.dtype}. Pass `{name}.bool()` if nonzero means True.")
    if kind == "int" and (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool):
        raise InputError(f"`{name}` must be integers; got {x.dtype}.")
    if kind == "float" and x.is_complex():
        raise InputError(f"`{name}` must be real numbers; got {x.dtype}.")
    if device is not None and x.device != device:
        raise InputError(f"`{name}` must be on the device of `response_mask`, {device}; got {x.device}.")
    if kind == "int":
        return x if x.dtype == torch.int32 and name == "step_ids" else x.long()
    return x.float() if kind == "float" and not x.is_floating_point() else x


def check_names(given: Iterable[str], known: Iterable[str]) -> None:
    """Refuses a name that is no field, with the nearest one that is."""
    known = list(known)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the fields are {', '.join(known)}."
            raise InputError(f"`{name:.60}` must be a field of RolloutBatch; {hint}")


def check_shape(name: str, x: Tensor, shape: torch.Size, axes: str) -> None:
    """Refuses a tensor of another shape; ``axes`` names the expected ones ("[batch]")."""
    if x.shape != shape:
        raise InputError(f"`{name}` must have shape {axes} = {list(shape)}; got {list(x.shape)}.")


def check_cu_seqlens(cu_seqlens: Tensor, n_tokens: int, *, trusted: bool = False) -> None:
    """Refuses boundaries that do not cut n_tokens tokens from front to back.

    Args:
        cu_seqlens: int64 [batch + 1].
        n_tokens: How many tokens there are.
        trusted: Read them only where no device is waited for.
    """
    ok = cu_seqlens.ndim == 1 and cu_seqlens.numel() >= 1
    if ok and trusted and cu_seqlens.device.type != "cpu":
        return
    ok = ok and int(cu_seqlens[0]) == 0 and int(cu_seqlens[-1]) == n_tokens
    if not (ok and bool((cu_seqlens.diff() >= 0).all())):
        raise InputError(
            f"`cu_seqlens` must rise from 0 to the number of tokens, {n_tokens}; got {_preview(cu_seqlens)}."
        )


def check_rows(name: str, x: Tensor, live: Tensor) -> None:
    """Refuses nan and inf on rows that count."""
    bad = live[~(x[live].abs() < LARGEST)]
    if bad.numel():
        row = int(bad[0])
        value = x[row].item()
        raise InputError(
            f"`{name}` must be {_size_rule(value)} on every row that counts; got {value} in row {row}. "
            "Set `row_mask` False for rows without a reward."
        )


def check_tokens(name: str, x: Tensor, layout: Layout, covered: Tensor | None = None) -> None:
    """Refuses nan and inf on response tokens (on the covered ones, if given: bool [N])."""
    bad = ~(layout.pack(x).abs() < LARGEST)
    if covered is not None:
        bad &= covered
    if bad.any():
        where = int(bad.nonzero()[0])
        value = layout.pack(x)[where].item()
        raise InputError(
            f"`{name}` must be {_size_rule(value)} on every response token that it covers; "
            f"got {value} at {locate(layout, where)}."
        )


def _size_rule(value: float) -> str:
    return f"smaller than {LARGEST:g}" if math.isfinite(value) else "finite"


def check_steps(step_ids: Tensor, covered: Tensor, layout: Layout) -> None:
    """Refuses step ids under -1, and ids that run backward within a rollout."""
    low = step_ids < -1
    if low.any():
        where = int(low.nonzero()[0])
        raise InputError(f"`step_ids` must be >= -1; got {int(step_ids[where])} at {locate(layout, where)}.")
    at = covered.nonzero().squeeze(1)
    row, step = layout.rows.ids[at], step_ids[at]
    back = (row[1:] == row[:-1]) & (step[1:] < step[:-1])
    if back.any():
        where = int(back.nonzero()[0])
        raise InputError(
            "`step_ids` must never decrease along a rollout; "
            f"got {int(step[where + 1])} after {int(step[where])} at {locate(layout, int(at[where + 1]))}."
        )


def check_constant_in_steps(signal: Tensor, steps: Steps, layout: Layout) -> None:
    """Refuses a signal (packed [N]) that varies inside a step."""
    inside = (steps.of_token >= 0).nonzero().squeeze(1)
    at_end = steps.ends[steps.of_token[inside]]
    differs = (signal[inside] != signal[at_end]).nonzero().squeeze(1)
    if differs.numel():
        where, end = int(inside[differs[0]]), int(at_end[differs[0]])
        raise InputError(
            "`process_rewards` must be constant within a step when `step_ids` is given; "
            f"got {signal[where].item()} and {signal[end].item()} in one step at {locate(layout, where)}. "
            "Leave `step_ids` out for a token-level signal."
        )


def check_format(format_rewards: Tensor | None, format_ok: Tensor | None, live: Tensor) -> None:
    """Refuses a format reward whose compliance is unknown, and a violation whose reward is unknown."""
    if format_rewards is not None and format_ok is None:
        f = format_rewards[live]
        odd = f[(f != 0) & (f != 1)]
        if odd.numel():
            raise InputError(
                f"`format_ok` must be given when `format_rewards` holds other values than 0 and 1; "
                f"got {odd[0].item()}. Pass a bool [batch] that says which responses comply."
            )
    if format_ok is not None and format_rewards is None and not bool(format_ok[live].all()):
        row = int(live[~format_ok[live]][0])
        raise InputError(
            f"`format_rewards` must be given when `format_ok` holds a violation; got None, "
            f"and row {row} violates. A violator's credit is made of its format reward alone."
        )


def check_extra(extra: Any) -> None:
    """Refuses further channels that are no mapping by name, or that take the name of a channel of ours."""
    if not isinstance(extra, Mapping) or not all(isinstance(name, str) for name in extra):
        raise InputError(f"`extra_rewards` must be a dict of name -> float [batch]; got {type(extra).__name__}.")
    taken = sorted({"outcome", "format", "process"} & set(extra))
    if taken:
        raise InputError(f"`extra_rewards` must not use the name of another channel; got {taken[0]!r}.")


def locate(layout: Layout, packed_index: int) -> str:
    """Names a packed token for a message: its row in the batch and its position among the row's response tokens."""
    row = int(layout.live[layout.rows.ids[packed_index]])
    return f"row {row}, response token {int(layout.rows.positions[packed_index])}"


def _preview(x: Tensor) -> str:
    values = x.flatten()[:6].tolist()
    return f"{values}{' ...' if x.numel() > 6 else ''}"
