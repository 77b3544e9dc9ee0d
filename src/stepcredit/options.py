"""Frozen options that are checked when they are made: what estimators and signals are built on."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from stepcredit.errors import InputError


def option(
    default: Any, *, at_least: float | None = None, above: float | None = None, at_most: float | None = None
) -> Any:
    """A dataclass field with a default and a range."""
    return field(default=default, metadata={"at_least": at_least, "above": above, "at_most": at_most})


@dataclass(frozen=True)
class Options:
    """A frozen dataclass whose fields are held to their annotations (``Literal`` choices too) and ranges.

    Raises:
        InputError: A value is none of its choices, of the wrong kind, or out of its range.
    """

    def __post_init__(self) -> None:
        """Checks every field once."""
        hints = get_type_hints(type(self))
        for f in fields(self):
            check_option(type(self).__name__, f.name, getattr(self, f.name), hints[f.name], f.metadata)


def check_option(owner: str, name: str, value: Any, hint: Any, limits: Mapping[str, float | None]) -> None:
    """Refuses an option that is none of its choices, of the wrong kind, or out of its range.

    Args:
        owner: Whose option it is, for the message.
        name: The option.
        value: Its value.
        hint: Its annotation: ``Literal[...]``, ``bool``, ``int``, ``float``, or one of them ``| None``.
        limits: Bounds by the names of `option`'s arguments.

    Raises:
        InputError: Names the option, the rule and the value.
    """
    optional = type(None) in get_args(hint)
    if value is None and optional:
        return
    kind = next(kind for kind in get_args(hint) if kind is not type(None)) if optional else hint
    if get_origin(kind) is Literal:
        if not isinstance(value, str) or value not in get_args(kind):
            choices = ", ".join(repr(choice) for choice in get_args(kind))
            raise InputError(f"`{name}` must be one of {choices} for {owner}; got {value!r}.")
        return
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    fits = {bool: isinstance(value, bool), int: number and isinstance(value, int), float: number}
    if not fits.get(kind, True):
        raise InputError(f"`{name}` must be {kind.__name__} for {owner}; got {value!r}.")
    if kind in (int, float):
        _check_range(owner, name, value, limits)


def _check_range(owner: str, name: str, value: float, limits: Mapping[str, float | None]) -> None:
    low, floor, high = limits.get("at_least"), limits.get("above"), limits.get("at_most")
    bounds = ((low, f">= {low}"), (floor, f"> {floor}"), (high, f"<= {high}"))
    rules = ["finite", *(rule for bound, rule in bounds if bound is not None)]
    try:
        inside = math.isfinite(value)
    except OverflowError:  # an integer beyond any float
        inside = False
    inside = inside and (low is None or value >= low) and (floor is None or value > floor)
    if not (inside and (high is None or value <= high)):
        shown = repr(value)
        shown = shown if len(shown) < 30 else f"{shown[:12]}..."
        raise InputError(f"`{name}` must be {' and '.join(rules)} for {owner}; got {shown}.")
