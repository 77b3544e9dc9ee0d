"""Train a tiny policy under GRPO, pooled process supervision, PASS and SPRO, and show what each did."""

import argparse
import sys
from itertools import count
from pathlib import Path
from typing import Any

NAME = "demo"
HELP = "train a tiny policy under four credit schemes, in minutes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("--out", help="a new folder (default demo, or demo-2, ... where that exists)")
    parser.add_argument("--seed", type=int, default=0, help="chooses training problems and samples (default 0)")
    parser.add_argument("--smoke", action="store_true", help="a minute that learns nothing: does it work here?")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Trains, evaluates, writes."""
    from stepcredit.lab.demo import run_demo

    folder = Path(args.out) if args.out else next(path for path in _names() if not path.exists())
    result = run_demo(folder, seed=args.seed, smoke=args.smoke, say=_say)
    return {"rows": result.rows, "files": result.files, "seconds": round(result.seconds, 1)}


def show(result: dict[str, Any]) -> str:
    """The table."""
    from stepcredit.lab.demo import NOTE

    names = {"pass@1": "pass@1 sampled", "greedy": "pass@1 greedy", "length": "length", "entropy": "entropy"}
    lines = [f"{'scheme':<18}" + "".join(f"  {title:>30}" for title in names.values()) + f"  {'seconds':>8}"]
    for row in result["rows"]:
        cells = "".join(f"  {_change(row, name):>30}" for name in names)
        lines.append(f"{row['scheme']:<18}{cells}  {row['seconds']:>8.0f}")
    lines += [NOTE, f"wrote {', '.join(result['files'].values())} in {result['seconds']:.0f} s"]
    return "\n".join(lines)


def _change(row: dict[str, Any], name: str) -> str:
    before, after = row["before"][name], row["after"][name]
    digits = 1 if name == "length" else 3
    low, high = after["low"], after["high"]
    return f"{before['mean']:.{digits}f} -> {after['mean']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _names() -> Any:
    return (Path("demo" if n == 1 else f"demo-{n}") for n in count(1))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
