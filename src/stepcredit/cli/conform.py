"""Tries credit on golden batches: an estimator of ours, of yours or of an engine's, or an adapter."""

import argparse
from typing import Any

from stepcredit.config.build import parse_overrides
from stepcredit.errors import InputError

NAME = "conform"
HELP = "hold an estimator, or an adapter, to the laws that credit must keep"
ADAPTERS = ("trl", "verl")
KINDS = ("holds", "BROKEN", "exempt", "n.a.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument(
        "target",
        metavar="TARGET",
        help="package.module:name or path/to/file.py:name of an Estimator or of a function RolloutBatch -> [batch, "
        "time]; a built-in scheme (pass); an engine's own (verl:grpo, trl:grpo); an adapter (trl, verl); or all, "
        "verl:all, trl:all",
    )
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="an option of the scheme")
    parser.add_argument(
        "--random", type=int, default=6, metavar="N", help="random batches beside the golden (default 6)"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Tries the target, or all of a kind."""
    from stepcredit.runs.policies import no_progress_bars

    if args.random < 0:
        raise InputError(f"`--random` must be at least 0; got {args.random}.")
    options = parse_overrides(args.set)
    if options and (args.target in ADAPTERS or args.target.endswith("all")):
        raise InputError(f"`--set` must name options of one scheme; got the target {args.target!r}.")
    with no_progress_bars():
        if args.target in ADAPTERS:
            return _adapter(args.target)
        return _targets(args.target, options, args.random)


def _adapter(name: str) -> dict[str, Any]:
    if name == "trl":
        from stepcredit.lab.conform.through_trl import conform_trl

        return conform_trl().plain()
    from stepcredit.lab.conform.through_verl import conform_verl

    return conform_verl().plain()


def _targets(name: str, options: dict[str, Any], random_ones: int) -> dict[str, Any]:
    from stepcredit.lab.conform import conform, every_target, find_target

    names = every_target(name)
    if names is None:
        return conform(find_target(name, options), random_ones=random_ones).plain()
    found = [conform(find_target(one, {}), random_ones=random_ones).plain() | {"target": one} for one in names]
    return {"targets": found, "conforms": all(one["conforms"] for one in found)}


def failed(result: dict[str, Any]) -> bool:
    """Whether a law is broken."""
    return not result["conforms"]


def show(result: dict[str, Any]) -> str:
    """One target: a line a law, with bugs of its kind, and the verdict. Several: a line a target."""
    if "targets" in result:
        return "\n".join(_line(one) for one in result["targets"])
    rows = result["laws"]
    width = max(len(row["law"]) for row in rows)
    lines = [f"{result['target']}, {result['batches']} batches, {result['seconds']:.1f} s"]
    for row in rows:
        bugs = "; ".join(bug.split(":")[0] for bug in row["bugs"])
        lines.append(f"{row['law']:<{width}}  {row['outcome']:<6}  {row['fact']}{f'  [{bugs}]' if bugs else ''}")
    broken = [row for row in rows if row["outcome"] == "BROKEN"]
    lines += [f"{row['law']}: {row['says']}. {' '.join(row['bugs'])}".rstrip() for row in broken]
    count = sum(row["outcome"] == "holds" for row in rows)
    lines.append(f"{len(broken)} BROKEN, {count} hold" if broken else f"conforms: {count} laws hold")
    return "\n".join(lines)


def _line(result: dict[str, Any]) -> str:
    """A target's verdicts but for those that hold, in one line."""
    kinds = {kind: [row["law"] for row in result["laws"] if row["outcome"] == kind] for kind in KINDS}
    said = [f"{kind} {', '.join(laws)}" for kind, laws in kinds.items() if laws and kind != "holds"]
    return f"{result['target']}: {len(kinds['holds'])} hold{''.join(f'; {one}' for one in said)}"
