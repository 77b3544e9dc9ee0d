"""A task's grades as verl's reward function; see `stepcredit.adapters.verl.rewards` for what it may return."""

from typing import Any

from stepcredit.batch import Span
from stepcredit.runs.grading import grade_rollout
from stepcredit.runs.verl.tasks import run_task, scores_own_steps


def compute_score(
    data_source: str,  # noqa: ARG001 - verl passes it by name
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any] | None = None,
    *,
    config: str,
    **_: Any,
) -> dict[str, Any]:
    """Grades one completion of a `TaskLoop`.

    Args:
        data_source: verl's label of the data set.
        solution_str: The completion.
        ground_truth: The example's reference.
        extra_info: What the loop says beside it: ``finished``, and ``turns`` where an environment wrote parts.
        config: The path of the run's ``config.toml``.

    Returns:
        The outcome as ``score``, ``format``, ``correct``, the task's own measures, and its steps as ``process`` where
        they are the run's signal.
    """
    said = extra_info or {}
    spans = said.get("turns")
    turns = None if spans is None else tuple(Span(*span) for span in spans)
    grade = grade_rollout(
        run_task(config), ground_truth, solution_str, finished=bool(said.get("finished", True)), turns=turns
    )
    result: dict[str, Any] = {
        "score": float(grade.outcome),
        "format": float(grade.format_ok),
        "correct": bool(grade.correct),
        "acc": float(grade.correct),
        **grade.measures,
    }
    if scores_own_steps(config):
        result["process"] = [tuple(step) for step in grade.steps]
    return result
