"""One self-contained page of rollouts with their tokens colored by credit."""

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from stepcredit.files import check_folder, replacing
from stepcredit.lab.score import Scored


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
    template = resources.files("stepcredit.lab").joinpath("page.html").read_text(encoding="utf-8")
    page = template.replace("/*DATA*/", embed(page_data(scored, groups=groups, title=title)))
    return page.encode("utf-8", "replace")


def embed(data: Any) -> str:
    r"""JSON that can stand inside a script element: no character of it can end the element or open a comment.

    Example:
        >>> embed("</script><!--")
        '"\\u003c/script\\u003e\\u003c!--"'
    """
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def page_data(scored: Sequence[Scored], *, groups: int, title: str) -> dict[str, Any]:
    """What the page draws, as plain values; rollouts are numbered by their place on the page."""
    labels = list(dict.fromkeys(scored[0].file.groups))
    chosen = set(labels[:groups])
    tables = [result.rows([i for i, group in enumerate(result.file.groups) if group in chosen]) for result in scored]
    shown = tables[0]
    rows_of: dict[str, list[int]] = {label: [] for label in labels[:groups]}
    for place, row in enumerate(shown):
        rows_of[row["group"]].append(place)
    return {
        "title": title,
        "all_groups": len(labels),
        "groups": [{"label": label, "rows": rows} for label, rows in rows_of.items()],
        "rollouts": [
            {
                **{name: row[name] for name in ("row", "prompt", "reward", "counted", "offsets")},
                "characters": list(row["completion"]),  # Python counts characters where JavaScript counts UTF-16 units
            }
            for row in shown
        ],
        "schemes": [
            {
                "name": _name(result),
                "options": repr(result.estimator),
                "scale": _scale([row["advantages"] for row in table]),
                "rollouts": [_credit(row) for row in table],
            }
            for result, table in zip(scored, tables, strict=True)
        ],
    }


def _name(result: Scored) -> str:
    fusion = getattr(result.estimator, "fusion", None)
    name = type(result.estimator).__name__
    return f"{name} ({fusion})" if fusion else name


def _credit(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "advantages": [round(x, 6) for x in row["advantages"]],
        "segment_ids": row["segment_ids"],
        "terms": {name: [round(x, 6) for x in term] for name, term in row["terms"].items()},
    }


def _scale(advantages: Sequence[Sequence[float]]) -> float:
    """The credit of full color: twice the median |credit|, so that a few violators do not pale the rest."""
    sizes = sorted(abs(x) for row in advantages for x in row if x)
    return 2 * sizes[len(sizes) // 2] if sizes else 1.0
