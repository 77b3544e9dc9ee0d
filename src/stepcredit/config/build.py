"""Makes estimators, signals and tasks from names and options, and refuses unknown ones by their nearest name."""

import dataclasses
import difflib
import importlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from stepcredit.errors import InputError
from stepcredit.estimators import ESTIMATORS, Estimator
from stepcredit.signals import SIGNALS, Signal
from stepcredit.tasks import TASKS, Task


def build_estimator(name: str, options: Mapping[str, Any] | None = None) -> Estimator:
    """An estimator by its `type` ("pass") or as ``package.module:Class``, with its options.

    Args:
        name: The built-in scheme's type, or where to import one's own `Estimator` subclass from.
        options: Option names and values, as `parse_overrides` or a config file gives them.

    Raises:
        InputError: No such estimator or option (the nearest names are given), or a value out of its range.

    Example:
        >>> build_estimator("grpo_process", {"fusion": "pooled"}).fusion
        'pooled'
    """
    found = _find("estimator", name, ESTIMATORS)
    if not issubclass(found, Estimator):
        raise InputError(f"`estimator` must name a subclass of stepcredit.Estimator; got {name!r}.")
    made: Estimator = _make("estimator", name, found, options or {})
    return made


def build_signal(name: str, options: Mapping[str, Any] | None = None) -> Signal:
    """A process signal by its name ("calculator", "opd") or as ``package.module:Class``, with its options.

    Raises:
        InputError: As for `build_estimator`.

    Example:
        >>> build_signal("gopd", {"lam": 1.5})
        GOPD(lam=1.5)
    """
    found = _find("signal", name, SIGNALS)
    lacks = [part for part in ("name", "unit", "requires", "score") if not hasattr(found, part)]
    if lacks:
        raise InputError(f"`signal` must name a signal class; {name!r} lacks {', '.join(lacks)}.")
    made: Signal = _make("signal", name, found, options or {})
    return made


def build_task(name: str, options: Mapping[str, Any] | None = None) -> Task:
    """A task by its name ("arithmetic", "math") or as ``package.module:Class``, with its options.

    Raises:
        InputError: As for `build_estimator`.

    Example:
        >>> build_task("arithmetic", {"operations": 10})
        Arithmetic(operations=10, modulus=10)
    """
    found = _find("task", name, TASKS)
    lacks = [
        part
        for part in ("name", "instruction", "endless", "kinds", "measures", "examples", "grade")
        if not hasattr(found, part)
    ]
    if lacks:
        raise InputError(f"`task` must name a task class; {name!r} lacks {', '.join(lacks)}.")
    made: Task = _make("task", name, found, options or {})
    return made


def parse_overrides(texts: Iterable[str]) -> dict[str, Any]:
    """Reads ``name=value`` texts; a value is JSON where it parses as JSON, else the text itself.

    Raises:
        InputError: A text without ``=``, or a name given twice.

    Example:
        >>> parse_overrides(["k=0.5", "norm=abs_max", "column_std=true", "clip=none"])
        {'k': 0.5, 'norm': 'abs_max', 'column_std': True, 'clip': None}
    """
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name:
            raise InputError(f"`--set` must read name=value; got {text!r}.")
        if name in options:
            raise InputError(f"`--set` must give each name once; got {name!r} twice.")
        options[name] = _value(value.strip())
    return options


def _value(text: str) -> Any:
    words = {"none": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return json.loads(text)
    except ValueError:
        return text


def _find(kind: str, name: str, known: Mapping[str, type]) -> type:
    if not isinstance(name, str):
        raise InputError(f"`{kind}` must be a name or package.module:Class; got {name!r}.")
    return known.get(name) or _import(kind, name, known)


def _make(kind: str, name: str, found: type, options: Mapping[str, Any]) -> Any:
    names = [field.name for field in dataclasses.fields(found) if field.init] if dataclasses.is_dataclass(found) else []
    for option in options:
        if names and option not in names:
            raise InputError(f"`{option}` must be an option of {name}{hint(str(option), names)}.")
    try:
        return found(**options)
    except TypeError as error:
        raise InputError(f"`{kind}` {name!r} could not be made: {error}.") from None


def _import(kind: str, name: str, known: Mapping[str, type]) -> type:
    module, colon, attribute = name.partition(":")
    if not colon:
        raise InputError(f"`{kind}` must be a known name or package.module:Class; got {name!r}{hint(name, known)}.")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        raise InputError(f"`{kind}` {name!r} could not be imported: {type(error).__name__}: {error}.") from error
    if not isinstance(found, type):
        raise InputError(f"`{kind}` must name a class; got {name!r}.")
    return found


def hint(name: str, known: Iterable[str]) -> str:
    """What ends the message about an unknown name: the nearest known ones, or all of them."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else f"; known are {', '.join(known)}"
