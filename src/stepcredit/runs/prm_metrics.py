"""What a process reward model's scores are worth: first errors found, ranking of steps, calibration; with intervals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stepcredit.errors import InputError

Floats = NDArray[np.float64]
NAMES = ("f1", "accuracy_error", "accuracy_correct", "auc", "ece", "brier")


class Judged(NamedTuple):
    """One solution: the scores of its steps and where its first error is.

    Attributes:
        scores: A number a step, higher for better; None where a step has no score.
        first_error: Counted from 0; -1 where there is none.
    """

    scores: Sequence[float | None]
    first_error: int


class Threshold(NamedTuple):
    """A threshold, and the F1 that it has where it was chosen."""

    value: float
    f1: float


def predicted_error(scores: Sequence[float | None], threshold: float) -> int:
    """The first step whose score is under the threshold, counted from 0; -1 where none is.

    Degenerate cases:
        A score equal to the threshold is not under it. A step without a score is never under it.

    Example:
        >>> predicted_error([0.9, 0.5, 0.4, 0.1], 0.5), predicted_error([0.5, None], 0.5)
        (2, -1)
    """
    return next((k for k, score in enumerate(scores) if score is not None and score < threshold), -1)


def best_threshold(judged: Sequence[Judged]) -> Threshold:
    """The threshold with the highest F1 of all thresholds.

    F1 is constant between neighbors among the scores. Of the stretches with the highest F1 the lowest is taken, and
    the middle of it; so the choice does not sit on a score.

    Args:
        judged: Solutions, some with an error and some without.

    Raises:
        InputError: No solution with an error, or none without, or no score at all.

    Degenerate cases:
        Below all scores (no step is ever flagged): the lowest score. Above all: the next number after the highest.
        F1 is 0 everywhere: the lowest score.

    Example:
        >>> best_threshold([Judged([0.8, 0.2], 1), Judged([0.9, 0.6], -1)])
        Threshold(value=0.4, f1=1.0)
    """
    wrong = sum(first >= 0 for _, first in judged)
    if not 0 < wrong < len(judged):
        raise InputError(
            f"`judged` must have solutions with an error and ones without to choose a threshold; got {wrong} with one "
            f"among {len(judged)}."
        )
    values = np.unique([score for scores, _ in judged for score in scores if score is not None])
    if not values.size:
        raise InputError("`judged` must have scores to choose a threshold from; got none.")
    # Position i of `hits` stands for thresholds in (values[i - 1], values[i]]; the last one is above all scores.
    hits = {True: np.zeros(values.size + 2), False: np.zeros(values.size + 2)}
    for scores, first in judged:
        known = [np.inf if score is None else score for score in scores]
        before = min(known if first < 0 else known[:first], default=np.inf)  # flagged too early above this
        low = 0 if first < 0 else int(np.searchsorted(values, known[first])) + 1
        high = int(np.searchsorted(values, before)) + 1
        if low < high:
            hits[first >= 0][low] += 1
            hits[first >= 0][high] -= 1
    found, cleared = np.cumsum(hits[True])[:-1] / wrong, np.cumsum(hits[False])[:-1] / (len(judged) - wrong)
    f1 = np.divide(2 * found * cleared, found + cleared, out=np.zeros(found.size), where=found + cleared > 0)
    best = int(np.argmax(f1))
    return Threshold(_inside(values, best), float(f1[best]))


def _inside(values: Floats, stretch: int) -> float:
    """A threshold in ``(values[stretch - 1], values[stretch]]``."""
    if stretch == 0:
        return float(values[0])
    if stretch == values.size:
        return float(np.nextafter(values[-1], np.inf))
    middle = values[stretch - 1] / 2 + values[stretch] / 2
    return float(middle if middle > values[stretch - 1] else values[stretch])


@dataclass(frozen=True)
class StepTable:
    """Steps whose rightness is known, of all solutions: those up to and including the first error.

    Attributes:
        solution: int64 [steps], which solution a step is of.
        scores: float64 [steps].
        right: bool [steps].
    """

    solution: NDArray[np.int64]
    scores: Floats
    right: NDArray[np.bool_]

    @classmethod
    def of(cls, judged: Sequence[Judged]) -> "StepTable":
        """The steps that have a score; ones without are left out."""
        rows = [
            (row, score, k != first)
            for row, (scores, first) in enumerate(judged)
            for k, score in enumerate(scores if first < 0 else scores[: first + 1])
            if score is not None
        ]
        return cls(
            np.array([row for row, _, _ in rows], dtype=np.int64),
            np.array([score for _, score, _ in rows], dtype=np.float64),
            np.array([right for _, _, right in rows], dtype=np.bool_),
        )


def step_auc(scores: ArrayLike, right: ArrayLike, weights: ArrayLike | None = None) -> float | None:
    """The chance that a right step scores higher than a wrong one; a tie counts half.

    Args:
        scores: float [steps].
        right: bool [steps].
        weights: float [steps], not negative; None: all the same.

    Returns:
        In [0, 1]; None where no step, or every step, is right.

    Example:
        >>> step_auc([0.9, 0.4, 0.4, 0.1], [True, True, False, False])
        0.875

    Reference:
        Hanley and McNeil, The Meaning and Use of the Area under a ROC Curve, 1982.
    """
    values, label = np.asarray(scores, dtype=np.float64), np.asarray(right, dtype=np.bool_)
    w = np.ones(values.shape) if weights is None else np.asarray(weights, dtype=np.float64)
    place = np.unique(values, return_inverse=True)[1]
    return _auc(place, label, w)


def _auc(place: NDArray[np.int64], right: NDArray[np.bool_], w: Floats) -> float | None:
    """`step_auc` with each score's rank among the distinct ones."""
    ups, downs = np.bincount(place, np.where(right, w, 0.0)), np.bincount(place, np.where(right, 0.0, w))
    pairs = ups.sum() * downs.sum()
    if pairs == 0:
        return None
    below = np.cumsum(downs) - downs
    return float((ups * (below + downs / 2)).sum() / pairs)


def reliability(scores: ArrayLike, right: ArrayLike, bins: int = 10) -> list[dict[str, Any]]:
    """Scores in [0, 1] in bins of equal width, next to the share of right steps there.

    Returns:
        One entry a bin with ``low``, ``high``, ``steps``, ``mean_score`` and ``share_right``, the last two None for an
        empty bin. A bin holds its lower edge; the last one holds 1 too.
    """
    values, label = np.asarray(scores, dtype=np.float64), np.asarray(right, dtype=np.bool_)
    place = _bin(values, bins)
    table: list[dict[str, Any]] = []
    for index in range(bins):
        inside = place == index
        any_there = bool(inside.any())
        table.append(
            {
                "low": index / bins,
                "high": (index + 1) / bins,
                "steps": int(inside.sum()),
                "mean_score": float(values[inside].mean()) if any_there else None,
                "share_right": float(label[inside].mean()) if any_there else None,
            }
        )
    return table


def _bin(values: Floats, bins: int) -> NDArray[np.int64]:
    edges = np.arange(1, bins) / bins  # as `reliability` tells them; multiplying by `bins` would round across one
    return np.searchsorted(edges, values, side="right").astype(np.int64)


def measures(judged: Sequence[Judged], threshold: float, bins: int = 10) -> Callable[[Floats], dict[str, float | None]]:
    """Every metric as a function of how often each solution counts.

    Args:
        judged: The solutions.
        threshold: For `predicted_error`.
        bins: Of the calibration error.

    Returns:
        From float [solutions], not negative, to the metrics in `NAMES`:

        - ``accuracy_error``: of solutions with an error, the share whose first error is predicted exactly;
        - ``accuracy_correct``: of solutions without, the share where none is predicted;
        - ``f1``: their harmonic mean, 0 where both are 0;
        - ``auc``: `step_auc` over the steps of `StepTable`;
        - ``ece``: sum over bins of the bin's share of the steps times |mean score - share right|;
        - ``brier``: the mean of (score - right)^2 over these steps.

        All are shares in [0, 1]. None: nothing to average over (no such solution, or for f1 either kind is missing;
        no step of either kind for ``auc``; no step, or a score outside [0, 1], for ``ece`` and ``brier``).

    Reference:
        Zheng et al., ProcessBench, arXiv 2412.06559 (f1 and accuracies); Guo et al., On Calibration of Modern Neural
        Networks, arXiv 1706.04599 (ece).
    """
    wrong = np.array([first >= 0 for _, first in judged], dtype=np.bool_)
    hit = np.array([predicted_error(scores, threshold) == first for scores, first in judged], dtype=np.float64)
    table = StepTable.of(judged)
    place = np.unique(table.scores, return_inverse=True)[1]
    probabilities = bool(np.all((table.scores >= 0) & (table.scores <= 1)))
    bin_of = _bin(table.scores, bins)
    gap, squared = table.scores - table.right, (table.scores - table.right) ** 2

    def at(weights: Floats) -> dict[str, float | None]:
        found, cleared = _mean(hit[wrong], weights[wrong]), _mean(hit[~wrong], weights[~wrong])
        w = weights[table.solution]
        total = w.sum()
        calibrated = probabilities and total > 0
        return {
            "f1": _harmonic(found, cleared),
            "accuracy_error": found,
            "accuracy_correct": cleared,
            "auc": _auc(place, table.right, w) if place.size else None,
            "ece": float(np.abs(np.bincount(bin_of, w * gap)).sum() / total) if calibrated else None,
            "brier": float((w * squared).sum() / total) if calibrated else None,
        }

    return at


def with_intervals(
    at: Callable[[Floats], dict[str, float | None]],
    solutions: int,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, dict[str, float] | None]:
    """Each metric with its percentile bootstrap interval; whole solutions are drawn with replacement.

    Args:
        at: From `measures`.
        solutions: How many it takes weights for.
        level: Nominal coverage, inside (0, 1).
        resamples: How many, at least 1; each draws as many solutions as there are.
        seed: Chooses the resamples, the same ones as `bootstrap_interval` for as many problems.

    Returns:
        ``{"mean", "low", "high"}`` by metric, ``mean`` being the value on the solutions at hand; None where that is.

    Raises:
        InputError: ``level`` or ``resamples`` is out of its range.

    Degenerate cases:
        A resample where a metric is None (no solution with an error was drawn, say) is left out of its interval.
    """
    if not 0.0 < level < 1.0 or resamples < 1:
        raise InputError(f"`level` must be inside (0, 1) and `resamples` at least 1; got {level} and {resamples}.")
    rng = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {name: [] for name in NAMES}
    for _ in range(resamples):
        counts = np.bincount(rng.integers(solutions, size=solutions), minlength=solutions).astype(np.float64)
        for name, value in at(counts).items():
            if value is not None:
                drawn[name].append(value)
    intervals: dict[str, dict[str, float] | None] = {}
    for name, value in at(np.ones(solutions)).items():
        intervals[name] = None
        if value is not None:
            low, high = np.quantile(drawn[name] or [value], [(1.0 - level) / 2, (1.0 + level) / 2])
            intervals[name] = {"mean": value, "low": float(low), "high": float(high)}
    return intervals


def _mean(values: Floats, weights: Floats) -> float | None:
    total = weights.sum()
    return float((values * weights).sum() / total) if total > 0 else None


def _harmonic(a: float | None, b: float | None) -> float | None:
    if a is None or b is None:
        return None
    return 2 * a * b / (a + b) if a + b > 0 else 0.0
