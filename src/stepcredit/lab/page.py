"""One self-contained page of rollouts with their tokens colored by credit, and of the study that they come from."""

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import Any

from stepcredit.errors import InputError
from stepcredit.files import check_folder, replacing
from stepcredit.lab.score import Scored
from stepcredit.lab.study import Study, study_data

SCRIPTS = ("page.js", "page_chart.js", "page_study.js", "page_rollouts.js")


@dataclass(frozen=True)
class Table:
    """What the page shows of one scheme.

    Attributes:
        name: Of the scheme, on its button.
        options: What else there is to say of it.
        rows: The rollouts to show, as `Scored.rows` gives them.
        all_groups: How many groups there are, shown or not.
    """

    name: str
    options: str
    rows: Sequence[Mapping[str, Any]]
    all_groups: int


def write_page(path: str | Path, scored: Sequence[Scored], *, groups: int, title: str) -> None:
    """Writes the page of `render`; it appears whole or not at all.

    Raises:
        InputError: The page's folder does not exist.
        OSError: The disk refused; what stood there before is untouched.
    """
    check_folder("--html", path)
    page = render(scored, groups=groups, title=title)
    with replacing(path) as file:
        file.write(page)


def render(scored: Sequence[Scored], *, groups: int, title: str) -> bytes:
    """The page: a group's rollouts side by side, a token's terms on hover and focus, a button an estimator.

    Args:
        scored: Results over one and the same batch, at least one.
        groups: The first so many groups of the file are shown; the page says of how many.
        title: What the page is about.
    """
    tables = []
    for result in scored:
        shown, count = _first(result.file.groups, groups)
        tables.append(Table(_name(result), repr(result.estimator), result.rows(shown), count))
    return _page(page_data(tables, title=title))


def render_study(study: Study, tables: Mapping[str, Sequence[dict[str, Any]]], *, groups: int, title: str) -> bytes:
    """The page with a study above the rollouts: its note, its table, and a chart a metric.

    Args:
        study: The study.
        tables: Name of a scheme -> rollouts with their credit, as `Scored.rows` gives them. Schemes with different
            rollouts show each their own; without any scheme the page is the study alone.
        groups: The first so many groups of each scheme are shown; the page says of how many.
        title: The heading.

    Raises:
        InputError: Credit is not finite.
    """
    made = []
    for name, rows in tables.items():
        shown, count = _first([row["group"] for row in rows], groups)
        types = ", ".join(dict.fromkeys(row["estimator"] for row in rows))
        made.append(Table(name, "" if types == name else types, [rows[i] for i in shown], count))
    return _page(page_data(made, title=title, study=study))


def page_data(tables: Sequence[Table], *, title: str, study: Study | None = None) -> dict[str, Any]:
    """What the page draws, as plain values; rollouts are numbered by their place on the page.

    Schemes over the same rollouts share one of the ``sets``.
    """
    sets: list[dict[str, Any]] = []
    schemes = []
    for table in tables:
        shown = _rollouts(table)
        if shown not in sets:
            sets.append(shown)
        schemes.append(
            {
                "name": table.name,
                "options": table.options,
                "set": sets.index(shown),
                "scale": _scale([row["advantages"] for row in table.rows]),
                "rollouts": [_credit(table.name, row) for row in table.rows],
            }
        )
    return {"title": title, "study": None if study is None else study_data(study), "sets": sets, "schemes": schemes}


def embed(data: Any) -> str:
    r"""JSON that can stand inside a script element: no character of it can end the element or open a comment.

    Example:
        >>> embed("</script><!--")
        '"\\u003c/script\\u003e\\u003c!--"'
    """
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _page(data: dict[str, Any]) -> bytes:
    """The one file: no address in it is ever fetched, and no script or style but its own has effect."""
    script, style = "".join(map(_resource, SCRIPTS)), _resource("page.css")
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
    )
    parts = {"policy": policy, "style": style, "script": script, "data": embed(data)}
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _resource("page.html")).encode()


def _resource(name: str) -> str:
    return resources.files("stepcredit.lab").joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _first(labels: Sequence[Any], groups: int) -> tuple[list[int], int]:
    """The rows of the first so many groups, and how many groups there are."""
    order = list(dict.fromkeys(labels))
    chosen = set(order[:groups])
    return [i for i, label in enumerate(labels) if label in chosen], len(order)


def _name(result: Scored) -> str:
    fusion = getattr(result.estimator, "fusion", None)
    name = type(result.estimator).__name__
    return f"{name} ({fusion})" if fusion else name


def _rollouts(table: Table) -> dict[str, Any]:
    rows_of: dict[Any, list[int]] = {}
    for place, row in enumerate(table.rows):
        rows_of.setdefault(row["group"], []).append(place)
    return {
        "all_groups": table.all_groups,
        "groups": [{"label": str(label), "rows": rows} for label, rows in rows_of.items()],
        "rollouts": [
            {
                **{name: row[name] for name in ("row", "prompt", "reward", "counted", "offsets")},
                "characters": list(row["completion"]),  # Python counts characters where JavaScript counts UTF-16 units
            }
            for row in table.rows
        ],
    }


def _credit(scheme: str, row: Mapping[str, Any]) -> dict[str, Any]:
    for x in chain(row["advantages"], *row["terms"].values()):
        if not math.isfinite(x):
            raise InputError(f"`advantages` must be finite to be shown; got {x} in row {row['row']} of {scheme!r}.")
    return {
        "advantages": [round(x, 6) for x in row["advantages"]],
        "segment_ids": row["segment_ids"],
        "terms": {name: [round(x, 6) for x in term] for name, term in row["terms"].items()},
    }


def _scale(advantages: Sequence[Sequence[float]]) -> float:
    """The credit of full color: twice the median |credit|, so that a few violators do not pale the rest."""
    sizes = sorted(abs(x) for row in advantages for x in row if x)
    return 2 * sizes[len(sizes) // 2] if sizes else 1.0
