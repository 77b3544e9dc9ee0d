"""What an evaluation found: a row a completion, numbers with intervals, and two evaluations side by side."""

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stepcredit.errors import InputError
from stepcredit.runs.sampling import GREEDY
from stepcredit.runs.statistics import Floats, bootstrap_interval, paired_difference, pass_at_k

# The steps by which a policy games a reward for steps, and what came of its searches.
WATCHED_KINDS = ("repeated", "merged", "found", "missed", "again", "refused")


@dataclass(frozen=True)
class Row:
    """One graded completion.

    Attributes:
        id: The problem's.
        sample: Which of its completions; -1 for the greedy one.
        correct: The answer is right.
        format_ok: The form is exactly the one asked for.
        length: Tokens that the policy wrote, end tokens included; none of an environment's.
        entropy: Nats, mean over these tokens of the distribution they were drawn from (greedy: at temperature 1);
            rounded to 6 decimals, beyond which the shape of the batch shows.
        finished: It ended with an end token, not at the limit.
        completion: The text.
        reason: The grader's word on the outcome.
        kinds: The grader's word on each step; empty where the task has none.
        measures: The task's further numbers, by name.
        turns: How many turns the policy wrote; 1 where nothing answers it.
    """

    id: str
    sample: int
    correct: bool
    format_ok: bool
    length: int
    entropy: float
    finished: bool
    completion: str
    reason: str
    kinds: tuple[str, ...]
    measures: Mapping[str, float] = field(default_factory=dict, hash=False)
    turns: int = 1


@dataclass(frozen=True)
class Evaluation:
    """Graded completions of every problem.

    Attributes:
        rows: In the order of problem ids (numbers inside ids by value) and sample indices.
        settings: What they were made with; ``problems_digest`` is of ids, prompts and references, ``kinds`` are those
            that the task's grades can have.
    """

    rows: tuple[Row, ...]
    settings: dict[str, Any]

    def table(self) -> list[dict[str, Any]]:
        """The rows as plain values, for `stepcredit.files.write_rows`; each measure is a column."""
        rows = [{**dataclasses.asdict(row), "kinds": list(row.kinds), **row.measures} for row in self.rows]
        return [{name: value for name, value in row.items() if name != "measures"} for row in rows]

    def summary(self, ks: Sequence[int] = (1,)) -> dict[str, Any]:
        """Plain values: each metric's mean with its 95% interval by problem, the graders' reasons, the settings.

        Args:
            ks: Which pass@k to tell besides pass@1; each at most the samples a problem.

        Returns:
            ``metrics`` holds ``{"mean", "low", "high"}`` by name: ``pass@k`` over the samples and ``greedy`` (one
            greedy completion a problem); over the samples, or the greedy completions where there are none:
            ``length``, ``length_correct``, ``length_wrong`` (None where no completion is), ``entropy``,
            ``finished``, ``format_ok``, ``<kind>_steps`` a completion for those of `WATCHED_KINDS` that the task's
            grades can have, ``turns`` a completion where one has several, and the task's measures. ``reasons`` counts
            the graders' words over the same completions.

        Raises:
            InputError: A k is below 1 or above the samples a problem.

        Degenerate cases:
            No samples: no pass@k. One problem: intervals of no width.
        """
        rows = self._described()
        metrics: dict[str, dict[str, float] | None] = {}
        for name, values in self.by_problem(ks).items():
            metrics[name] = bootstrap_interval(values)._asdict()
            if name == "length":
                metrics["length_correct"] = _length_where(rows, correct=True)
                metrics["length_wrong"] = _length_where(rows, correct=False)
        reasons = dict(sorted(Counter(row.reason for row in rows).items()))
        problems = len({row.id for row in self.rows})
        return {"problems": problems, "metrics": metrics, "reasons": reasons, "settings": self.settings}

    def by_problem(self, ks: Sequence[int] = (1,)) -> dict[str, Floats]:
        """The values behind the metrics: float64 [problems] by metric, in the order of the rows' problems."""
        samples = self.settings["samples"]
        values: dict[str, Floats] = {}
        for k in ks:
            if not 1 <= k <= max(samples, 1):
                raise InputError(f"`ks` must be from 1 to the samples a problem, {samples}; got {k}.")
        for k in sorted({1, *ks}) if samples else ():
            values[f"pass@{k}"] = pass_at_k(samples, _sums(self._described(), "correct"), k)
        if self.settings["greedy"]:
            values["greedy"] = _sums([row for row in self.rows if row.sample == GREEDY], "correct")
        rows, each = self._described(), samples or 1
        values |= {name: _sums(rows, name) / each for name in ("length", "entropy", "finished", "format_ok")}
        for kind in WATCHED_KINDS:
            if kind in self.settings.get("kinds", ()):
                values[f"{kind}_steps"] = _sums(rows, kind) / each
        if any(row.turns != 1 for row in rows):
            values["turns"] = _sums(rows, "turns") / each
        values |= {name: _sums(rows, name) / each for name in rows[0].measures}
        return values

    def _described(self) -> list[Row]:
        """The completions that lengths, entropies and so on speak of: the sampled ones, if any."""
        return [row for row in self.rows if row.sample != GREEDY] or list(self.rows)


def compare(a: Evaluation, b: Evaluation, ks: Sequence[int] = (1,)) -> dict[str, Any]:
    """How b differs from a on the same problems: paired by problem, so that a problem's difficulty cancels.

    Args:
        a: The baseline.
        b: The other; evaluated with the same seed, it also met the same random numbers.
        ks: As for `Evaluation.summary`.

    Returns:
        ``metrics`` by name, for those that both have: the mean of b - a with its 95% interval; for pass@k and greedy
        also on how many problems b did better (``won``), worse (``lost``) and the same (``tied``).

    Raises:
        InputError: The problems differ, in their ids or in what the ids stand for.
    """
    ids = [{row.id for row in evaluation.rows} for evaluation in (a, b)]
    if ids[0] != ids[1]:
        odd = min(ids[0] ^ ids[1], key=in_order)
        raise InputError(f"`b` must have the problems of `a`; got {odd!r} in one of them alone.")
    if a.settings["problems_digest"] != b.settings["problems_digest"]:
        raise InputError("`b` must have the problems of `a`; got the same ids with other prompts or references.")
    first, second = a.by_problem(ks), b.by_problem(ks)
    metrics: dict[str, dict[str, float]] = {}
    for name in [name for name in first if name in second]:
        metrics[name] = paired_difference(first[name], second[name])._asdict()
        if name.startswith("pass@") or name == "greedy":
            d = second[name] - first[name]
            metrics[name] |= {"won": int((d > 0).sum()), "lost": int((d < 0).sum()), "tied": int((d == 0).sum())}
    return {"problems": len(ids[0]), "metrics": metrics}


def _sums(rows: Sequence[Row], name: str) -> Floats:
    """Sum a problem of an attribute, a measure, or the steps of a kind; problems in the order of the rows."""
    totals: dict[str, float] = {}
    for row in rows:
        if name in row.measures:
            value = row.measures[name]
        else:
            value = row.kinds.count(name) if name in WATCHED_KINDS else getattr(row, name)
        totals[row.id] = totals.get(row.id, 0.0) + value
    return np.array(list(totals.values()), dtype=np.float64)


def _length_where(rows: Sequence[Row], *, correct: bool) -> dict[str, float] | None:
    """Mean length of the correct or the wrong completions; a problem weighs as many as it has."""
    lengths: dict[str, list[int]] = {row.id: [] for row in rows}
    for row in rows:
        if row.correct == correct:
            lengths[row.id].append(row.length)
    weights = [len(found) for found in lengths.values()]
    if not any(weights):
        return None
    return bootstrap_interval([sum(x) / max(len(x), 1) for x in lengths.values()], weights=weights)._asdict()


def in_order(name: str) -> tuple[list[str | int], str]:
    """Sorts test-2 before test-10: texts and numbers take turns, so like meets like."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))], name
