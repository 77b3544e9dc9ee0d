"""ProcessBench's protocol for anyone's step scores: the first step under a threshold against the first wrong one."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepcredit.errors import InputError
from stepcredit.runs.prm_metrics import (
    NAMES,
    Judged,
    StepTable,
    best_threshold,
    measures,
    reliability,
    with_intervals,
)
from stepcredit.tasks.labeled_steps import LabeledSteps
from stepcredit.tasks.rows import read_rows

RawScores = Mapping[str, Sequence[float | None]]  # by solution id, one a step; None: the step has no score
GIVEN = "given"


@dataclass(frozen=True)
class ChosenThreshold:
    """A threshold and where it comes from.

    Attributes:
        value: A score under it flags a step.
        source: "given", or what the solutions were that it was chosen on.
        solutions: How many they were; 0 where it was given.
        with_error: How many of them have an error.
        f1: F1 on them; None where it was given.
    """

    value: float
    source: str = GIVEN
    solutions: int = 0
    with_error: int = 0
    f1: float | None = None

    def __post_init__(self) -> None:
        """Checks that it is a number."""
        if not math.isfinite(self.value):
            raise InputError(f"`threshold` must be a finite number; got {self.value}.")


def read_scores(path: str | Path) -> dict[str, list[float | None]]:
    """Reads raw scores: rows ``{"id": ..., "scores": [...]}`` of a .jsonl, .json or .parquet file, also gzipped.

    Args:
        path: The file. Further fields are not read. A score is a finite number, or null where a step has none.

    Raises:
        InputError: A row lacks a field, repeats an id, or has a score that is no finite number (nan, say); file and
            row are named.
    """
    found: dict[str, list[float | None]] = {}
    for number, row in enumerate(read_rows(path), 1):
        where = f"got {path}, row {number}"
        if "id" not in row or not isinstance(row.get("scores"), list):
            raise InputError(f"`scores` must have an `id` and a list `scores` in every row; {where}: {', '.join(row)}.")
        name = str(row["id"])
        if name in found:
            raise InputError(f"`scores` must have each id once; {where}: {name!r} again.")
        for k, score in enumerate(row["scores"]):
            number_like = isinstance(score, (int, float)) and not isinstance(score, bool)
            if score is not None and not (number_like and math.isfinite(score)):
                raise InputError(f"`scores` must be finite numbers or null; {where}, step {k}: {score!r:.40}.")
        found[name] = [None if score is None else float(score) for score in row["scores"]]
    return found


def judge(solutions: Sequence[LabeledSteps], scores: RawScores, *, others: bool = False) -> list[Judged]:
    """Puts scores and first errors together.

    Args:
        solutions: Ones whose labels settle where the first error is.
        scores: By id; exactly these solutions' unless ``others``.
        others: Let scores of other solutions be.

    Raises:
        InputError: A solution without scores, scores without a solution, not one score a step, a score that is not
            finite, or a solution whose first error is unknown. Ids and numbers are named.
    """
    ids = {solution.id for solution in solutions}
    missing, extra = [row.id for row in solutions if row.id not in scores], [name for name in scores if name not in ids]
    if missing:
        raise InputError(f"`scores` must cover every solution; {len(missing)} have none, {missing[0]!r} first.")
    if extra and not others:
        raise InputError(f"`scores` must be of these solutions alone; {len(extra)} ids are others, {extra[0]!r} first.")
    judged = []
    for solution in solutions:
        values = scores[solution.id]
        if len(values) != len(solution.steps):
            raise InputError(
                f"`scores` must be one a step; got {len(values)} for {len(solution.steps)} steps of {solution.id!r}."
            )
        if not all(value is None or math.isfinite(value) for value in values):
            raise InputError(f"`scores` must be finite; got {list(values)!r:.80} for {solution.id!r}.")
        if not solution.settled:
            raise InputError(
                f"`solutions` must have a known first error; {solution.id!r} has unknown labels before it."
            )
        judged.append(Judged(values, solution.first_error))
    return judged


def choose_threshold(judged: Sequence[Judged], source: str) -> ChosenThreshold:
    """The threshold with the highest F1 on some solutions, with a word on what they are.

    Raises:
        InputError: See `best_threshold`.
    """
    value, f1 = best_threshold(judged)
    return ChosenThreshold(value, source, len(judged), sum(first >= 0 for _, first in judged), f1)


def evaluate_scores(
    judged: Sequence[Judged],
    threshold: ChosenThreshold,
    *,
    bins: int = 10,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Every metric of `measures` with its interval, and what it was measured on, as plain values.

    Args:
        judged: From `judge`; none of the solutions that the threshold was chosen on.
        threshold: For the predicted first error.
        bins: Of the calibration.
        level: Of the intervals.
        resamples: Of the intervals.
        seed: Of the intervals.

    Returns:
        The metrics by name, shares in [0, 1] or None (see `measures`); ``intervals`` with low and high end by name;
        ``threshold``; ``solutions``, ``with_error``, ``without_error``; ``steps`` (up to and including first errors,
        with a score) and ``unscored_steps`` (of all steps: these are never flagged); ``reliability``, None where
        scores are outside [0, 1].

    Raises:
        InputError: No solutions, or an argument out of its range.
    """
    if not judged:
        raise InputError("`solutions` must be one at least; got none to evaluate on.")
    if bins < 1:
        raise InputError(f"`bins` must be at least 1; got {bins}.")
    found = with_intervals(
        measures(judged, threshold.value, bins), len(judged), level=level, resamples=resamples, seed=seed
    )
    table, wrong = StepTable.of(judged), sum(first >= 0 for _, first in judged)
    inside = found["brier"] is not None
    return {
        **{name: None if (value := found[name]) is None else value["mean"] for name in NAMES},
        "intervals": {
            name: None if (value := found[name]) is None else {"low": value["low"], "high": value["high"]}
            for name in NAMES
        },
        "threshold": vars(threshold),
        "solutions": len(judged),
        "with_error": wrong,
        "without_error": len(judged) - wrong,
        "steps": int(table.scores.size),
        "unscored_steps": sum(score is None for scores, _ in judged for score in scores),
        "reliability": reliability(table.scores, table.right, bins) if inside else None,
        "settings": {"bins": bins, "level": level, "resamples": resamples, "seed": seed},
    }
