"""Raw step scores of labeled solutions, by any text signal."""

from collections.abc import Callable, Sequence
from typing import Any

from stepcredit.batch import Rollouts, ScoredSpan, Span
from stepcredit.errors import InputError
from stepcredit.tasks.labeled_steps import LabeledSteps


def score_solutions(
    signal: Any,
    solutions: Sequence[LabeledSteps],
    *,
    at_once: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, list[float | None]]:
    """Scores every step: the problem is the prompt, the steps joined by line ends the completion.

    Args:
        signal: A text signal that reads ``steps``.
        solutions: With ids of their own.
        at_once: Solutions a call of the signal.
        progress: Called with the solutions done and their number.

    Returns:
        For each id one score a step, in the signal's unit; None where the signal gives the step none (white space
        alone, or beyond what its model reads).

    Raises:
        InputError: The signal does not score steps as they are given; or what it raises itself.
    """
    found: dict[str, list[float | None]] = {}
    for first in range(0, len(solutions), at_once):
        part = solutions[first : first + at_once]
        spans = [_spans(solution.steps) for solution in part]
        rollouts = Rollouts(
            [solution.problem for solution in part],
            ["\n".join(solution.steps) for solution in part],
            list(range(len(part))),
            steps=spans,
        )
        for solution, places, row in zip(part, spans, signal.score(rollouts), strict=True):
            found[solution.id] = _by_step(signal, solution, places, row)
        if progress is not None:
            progress(min(first + at_once, len(solutions)), len(solutions))
    return found


def _spans(steps: Sequence[str]) -> list[Span]:
    spans, start = [], 0
    for step in steps:
        spans.append(Span(start, start + len(step)))
        start += len(step) + 1
    return spans


def _by_step(signal: Any, solution: LabeledSteps, places: list[Span], row: Sequence[ScoredSpan]) -> list[float | None]:
    at = {place: k for k, place in enumerate(places) if place.end > place.start}
    scores: list[float | None] = [None] * len(places)
    for span in row:
        k = at.get(Span(span[0], span[1])) if isinstance(span, tuple) else None
        if k is None:
            raise InputError(
                f"`signal` must score the steps it is given; {signal.name} gave {span} in {solution.id!r}."
            )
        scores[k] = float(span[2])
    return scores
