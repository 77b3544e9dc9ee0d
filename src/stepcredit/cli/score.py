"""Per-token credit for a file of rollouts, to a file, and as a page to look at."""

import argparse
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from stepcredit.config import build_estimator, build_signal, parse_overrides
from stepcredit.errors import InputError
from stepcredit.estimators import ESTIMATORS
from stepcredit.files import check_folder, check_target, dump_rows, replacing
from stepcredit.lab.page import render
from stepcredit.lab.rollout_files import read_rollouts
from stepcredit.lab.score import load_tokenizer, score_rollouts
from stepcredit.lab.summary import summarize
from stepcredit.signals import SIGNALS
from stepcredit.tasks.segmentation import SCHEMES

NAME = "score"
HELP = "per-token credit for a file of rollouts"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("rollouts", metavar="IN", help="rollouts: .jsonl, .json or .parquet, also .gz")
    parser.add_argument(
        "--estimator",
        action="append",
        required=True,
        metavar="NAME",
        help=f"{', '.join(ESTIMATORS)}, or package.module:Class; repeat to compare",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="OPTION=VALUE", help="an option of the estimators"
    )
    parser.add_argument("--signal", metavar="NAME", help=f"{', '.join(SIGNALS)}, or package.module:Class")
    parser.add_argument(
        "--signal-set", action="append", default=[], metavar="OPTION=VALUE", help="an option of the signal"
    )
    parser.add_argument(
        "--by", default="lines", choices=SCHEMES, help="how a text signal's steps are cut (default lines)"
    )
    parser.add_argument("--marker", help="what ends a step, with --by marker")
    parser.add_argument("--tokenizer", metavar="NAME", help="hub name or folder; words without one")
    parser.add_argument("--limit", type=int, help="read at most this many rows")
    parser.add_argument("--out", required=True, help="per-token credit: .jsonl, .jsonl.gz or .parquet")
    parser.add_argument("--html", metavar="PAGE", help="also write a self-contained page")
    parser.add_argument("--html-groups", type=int, default=20, help="groups on the page (default 20)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Reads, scores, writes; nothing is written before everything is computed."""
    begun = time.perf_counter()
    check_target(args.out)
    if args.html is not None:
        check_folder("--html", args.html)
    _check_apart({"IN": args.rollouts, "--out": args.out, "--html": args.html})
    if args.html_groups < 1:
        raise InputError(f"`--html-groups` must be at least 1; got {args.html_groups}.")
    options = parse_overrides(args.set)
    estimators = [build_estimator(name, _options_of(name, options, args.estimator)) for name in args.estimator]
    signal = build_signal(args.signal, parse_overrides(args.signal_set)) if args.signal else None
    if args.signal_set and not args.signal:
        raise InputError("`--signal-set` must come with `--signal`; got no signal.")
    tokenize = load_tokenizer(args.tokenizer) if args.tokenizer else None
    file = read_rollouts(args.rollouts, args.limit)
    scored = score_rollouts(file, estimators, signal=signal, by=args.by, marker=args.marker, tokenize=tokenize)
    summary = summarize(scored)
    with ExitStack() as files:  # both files are written before either takes its place
        out = files.enter_context(replacing(args.out))
        dump_rows(out, args.out, [row for result in scored for row in result.rows()])
        out.flush()
        if args.html:
            page = files.enter_context(replacing(args.html))
            page.write(render(scored, groups=args.html_groups, title=Path(args.rollouts).name))
            page.flush()
    written = {"out": args.out, **({"html": args.html} if args.html else {})}
    return {**summary, **written, "seconds": round(time.perf_counter() - begun, 3)}


def _check_apart(files: dict[str, str | None]) -> None:
    """Refuses one file under two names: writing the second would destroy the first."""
    seen: dict[Path, str] = {}
    for role, name in files.items():
        if name is not None:
            path = Path(name).resolve()
            if path in seen:
                raise InputError(f"`{role}` must not be the same file as {seen[path]}; got {name!r} for both.")
            seen[path] = role


def _options_of(name: str, options: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """The options for one of the estimators: those without a prefix, and those under its own name."""
    own = {}
    for option, value in options.items():
        prefix, dot, rest = option.partition(".")
        if dot and prefix not in names:
            raise InputError(f"`--set {option}` must name one of the estimators {', '.join(names)}; got {prefix!r}.")
        if not dot or prefix == name:
            own[rest if dot else option] = value
    return own


def show(result: dict[str, Any]) -> str:
    """The summary as lines of text."""
    lines = [
        f"{result['rollouts']} rollouts in {result['groups']} groups, {result['tokens']} tokens, "
        f"{result['excluded_rows']} rows that count in nothing, {result['singleton_groups']} groups of one"
    ]
    if result["ignored_fields"]:
        lines.append(f"fields that nothing read: {', '.join(result['ignored_fields'])}")
    lines.append(
        f"{'estimator':<14} {'mean |credit|':>13} {'silent groups':>13} {'varied rows':>11}  share of |credit| by term"
    )
    for row in result["estimators"]:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in row["shares"].items())
        numbers = f"{row['mean_abs_credit']:>13.4g} {row['silent_groups']:>13} {row['varied_rows']:>11}"
        lines.append(f"{row['estimator']:<14} {numbers}  {shares}")
    extra = {name: n for name, n in result["counts"].items() if n}
    if extra:
        lines.append("; ".join(f"{name.replace('_', ' ')}: {n}" for name, n in extra.items()))
    lines += [f"note: {note}" for note in result["notes"]]
    pages = f" and {result['html']}" if "html" in result else ""
    lines.append(f"wrote {result['out']}{pages} in {result['seconds']:.1f} s")
    return "\n".join(lines)
