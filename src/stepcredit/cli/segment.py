"""Shows how a segmentation scheme cuts the completions of a file into steps."""

import argparse
from pathlib import Path
from typing import Any

from stepcredit.errors import InputError
from stepcredit.tasks.math_problems import gsm8k_solutions
from stepcredit.tasks.rows import read_rows
from stepcredit.tasks.segmentation import SCHEMES, segment

NAME = "segment"
HELP = "show how completions would be cut into steps"
TEXT_FIELDS = ("completion", "solution", "response", "output", "answer", "text")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument(
        "file", metavar="FILE", help="a text file (.txt, .md), or rows: .jsonl, .json, .parquet, also .gz"
    )
    parser.add_argument("--by", default="lines", choices=SCHEMES, help="how to cut (default lines)")
    parser.add_argument("--marker", help="what ends a step, with --by marker")
    parser.add_argument(
        "--field", help=f"the field that holds the text; default: the first of {', '.join(TEXT_FIELDS)}"
    )
    parser.add_argument("--limit", type=int, default=5, help="rows to show (default 5)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Cuts the first texts of the file."""
    rows: list[dict[str, Any]] = []
    for number, text in _texts(args.file, args.field, args.limit):
        spans = segment(text, args.by, marker=args.marker)
        steps = [{"start": start, "end": end, "text": text[start:end]} for start, end in spans]
        rows.append({"row": number, "characters": len(text), "steps": steps})
    return {"by": args.by, "rows": rows, "steps": sum(len(row["steps"]) for row in rows)}


def show(result: dict[str, Any]) -> str:
    """Each step on a line, with its characters."""
    lines: list[str] = []
    for row in result["rows"]:
        lines.append(f"row {row['row']}: {len(row['steps'])} steps in {row['characters']} characters")
        lines += [f"  {s['start']:>6}-{s['end']:<6} {s['text']!r}" for s in row["steps"]]
    return "\n".join([*lines, f"{result['steps']} steps in {len(result['rows'])} rows, by {result['by']}"])


def _texts(path: str, field: str | None, limit: int) -> list[tuple[int, str]]:
    if Path(path).suffix in (".txt", ".md"):
        try:
            return [(1, Path(path).read_bytes().decode())]
        except UnicodeDecodeError as error:
            raise InputError(f"`FILE` must be UTF-8 text; {path} is not: {error}.") from None
    texts: list[tuple[int, str]] = []
    rows = read_rows(path, limit)
    if field is None and {"question", "ground_truth"} <= set(rows[0]) and not set(TEXT_FIELDS) & set(rows[0]):
        return list(enumerate(gsm8k_solutions(path, limit=limit)[0].completions, 1))[:limit]
    for number, row in enumerate(rows, 1):
        name = field or next((name for name in TEXT_FIELDS if isinstance(row.get(name), str)), None)
        if name is None or not isinstance(row.get(name), str):
            found = ", ".join(key for key, value in row.items() if isinstance(value, str)) or "none"
            raise InputError(f"row {number}: `{name or '--field'}` must name a text field; the row's are {found:.200}.")
        texts.append((number, row[name]))
    return texts
