"""The tables of a config, not yet checked: a TOML file or a recipe, what it extends beneath it, overrides on top."""

import tomllib
from collections.abc import Mapping
from copy import deepcopy
from importlib import resources
from pathlib import Path
from typing import Any

from stepcredit.config.build import hint
from stepcredit.errors import InputError

Table = dict[str, Any]

_RECIPES = resources.files("stepcredit.config").joinpath("recipes")


def recipes() -> list[str]:
    """The names of the shipped recipes; files that begin with an underscore are what several of them share."""
    names = [item.name for item in _RECIPES.iterdir()]
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml") and name[0] != "_")


def read_tables(name_or_path: str) -> Table:
    """The tables of a recipe or of a TOML file, those that it extends beneath them.

    Raises:
        InputError: No such file or recipe, no UTF-8 text, no TOML, or ``extends`` that leads back to itself.
    """
    return _read(name_or_path, ())


def parse_tables(text: str, name: str) -> Table:
    """The tables of a TOML file's text; ``name`` says in errors which file that is."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"`config` must be TOML; {name!r} is not: {error}.") from None


def overridden(tables: Mapping[str, Any], overrides: Mapping[str, Any]) -> Table:
    """A copy of the tables in which single keys, ``table.key``, have other values; see `parse_overrides`.

    Another ``type`` empties its table first: another scheme has other options.

    Raises:
        InputError: A name without a table, or one that leads through a value.
    """
    changed = deepcopy(dict(tables))
    for name, value in overrides.items():
        *path, key = name.split(".")
        if not path:
            raise InputError(f"`--set {name}` must name a key in a table, such as run.steps; got no table.")
        at = changed
        for part in path:
            at = at.setdefault(part, {})
            if not isinstance(at, dict):
                raise InputError(f"`--set {name}` must name a key in a table; got {part!r}, which is a value.")
        if key == "type" and at.get("type") != value:
            at.clear()
        at[key] = value
    return changed


def _read(name_or_path: str, above: tuple[str, ...]) -> Table:
    name = str(name_or_path)
    shipped = _RECIPES.joinpath(f"{name}.toml")
    if name in recipes() or (name[:1] == "_" and shipped.is_file()):
        text = shipped.read_text(encoding="utf-8")
        folder: Path | None = None
    else:
        path = Path(name)
        if not path.is_file():
            raise InputError(f"`config` must be a TOML file or a recipe; got {name!r}{hint(name, recipes())}")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"`config` must be UTF-8 text; {name!r} is not: {error.reason}.") from None
        folder = path.parent
    if name in above:
        raise InputError(f"`extends` must not lead back to a config; got {' -> '.join((*above, name))}.")
    tables = parse_tables(text, name)
    parents = tables.pop("extends", [])
    base: Table = {}
    for parent in [parents] if isinstance(parents, str) else parents:
        beside = None if folder is None else folder / str(parent)
        found = str(beside) if beside is not None and beside.is_file() else str(parent)
        base = _merged(base, _read(found, (*above, name)))
    return _merged(base, tables)


def _merged(base: Table, over: Table) -> Table:
    """Tables over tables, key by key; a table with another ``type`` replaces the one below."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        nested = isinstance(value, dict) and isinstance(below, dict)
        replaced = nested and "type" in value and value["type"] != below.get("type")  # type: ignore[union-attr]
        merged[key] = _merged(below, value) if nested and not replaced else value  # type: ignore[arg-type]
    return merged
