"""Credit for noisy solutions of the built-in arithmetic task under several schemes, as a table and a page."""

import argparse
from pathlib import Path
from typing import Any

from torch import Tensor

from stepcredit.batch import RolloutBatch
from stepcredit.config import build_estimator
from stepcredit.errors import InputError
from stepcredit.files import write_rows
from stepcredit.lab.demo import demo_rows
from stepcredit.lab.page import write_page
from stepcredit.lab.rollout_files import read_rollouts
from stepcredit.lab.score import Scored, score_rollouts
from stepcredit.lab.summary import summarize

NAME = "demo"
HELP = "the main job on the built-in task, in seconds"
SCHEMES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("grpo", {}),
    ("grpo_process", {}),
    ("grpo_process", {"fusion": "pooled"}),
    ("papo", {}),
    ("pass", {}),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("--out", default="demo", help="the folder to write to (default demo)")
    parser.add_argument("--seed", type=int, default=0, help="chooses problems and noise (default 0)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Makes rollouts, scores them, writes the rollouts, the credit and the page."""
    if not args.out:
        raise InputError("`--out` must name a folder; got an empty name.")
    folder = Path(args.out)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"`--out` must be a folder; got the file {args.out!r}.")
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / name for name in ("rollouts.jsonl", "credit.jsonl", "page.html")}
    write_rows(paths["rollouts.jsonl"], demo_rows(seed=args.seed))
    file = read_rollouts(paths["rollouts.jsonl"])
    scored = score_rollouts(file, [build_estimator(name, options) for name, options in SCHEMES])
    write_rows(paths["credit.jsonl"], [row for result in scored for row in result.rows()])
    write_page(paths["page.html"], scored, groups=8, title="built-in arithmetic")
    summary = summarize(scored)
    for row, result in zip(summary["estimators"], scored, strict=True):
        row |= {"scheme": _scheme(result), **_by_step_label(result)}
    return {**summary, "files": {name: str(path) for name, path in paths.items()}}


def show(result: dict[str, Any]) -> str:
    """The table that says what process credit is for."""
    lines: list[str] = [
        f"{result['rollouts']} solutions of {result['groups']} problems by a noisy tutor, every step graded.",
        "Mean credit of a token, by where it stands in its solution:",
        f"  {'scheme':<24} {'correct steps':>14} {'wrong steps':>12} {'correct - wrong, one failed solution':>37}",
    ]
    for row in result["estimators"]:
        lines.append(
            f"  {row['scheme']:<24} {row['correct_steps']:>+14.3f} {row['wrong_steps']:>+12.3f}"
            f" {round(row['gap_in_failed'], 3) + 0.0:>+37.3f}"
        )
    lines.append("Outcome credit gives a solution's tokens one value: the last column is 0. Where it is negative, the")
    lines.append("return-to-go charges the correct steps of a failed solution with the errors that follow them.")
    lines.append("wrote " + ", ".join(result["files"].values()))
    return "\n".join(lines)


def _scheme(result: Scored) -> str:
    fusion = getattr(result.estimator, "fusion", "")
    return f"{result.estimator.type}{' (' + fusion + ')' if result.estimator.type == 'grpo_process' else ''}"


def _by_step_label(result: Scored) -> dict[str, float]:
    """Mean credit on tokens of correct and of wrong steps, and their difference inside solutions that have both."""
    batch: RolloutBatch = result.batch
    rows = batch.layout.rows
    a = batch.layout.pack(result.credit.advantages)
    right = batch.layout.pack(_steps_of(batch)) > 0
    gaps = []
    for i in range(len(rows)):
        inside = rows.ids == i
        if right[inside].any() and not right[inside].all():
            gaps.append(float(a[inside & right].mean() - a[inside & ~right].mean()))
    return {
        "correct_steps": float(a[right].mean()),
        "wrong_steps": float(a[~right].mean()),
        "gap_in_failed": sum(gaps) / max(len(gaps), 1),
    }


def _steps_of(batch: RolloutBatch) -> Tensor:
    """The step labels; the built-in task grades every step."""
    if batch.process_rewards is None:
        raise InputError("`rollouts` must have graded steps; got none.")
    return batch.process_rewards
