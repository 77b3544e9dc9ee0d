"""A reward function as verl loads it: the outcome of the built-in arithmetic."""

from typing import Any

from stepcredit.tasks import Arithmetic


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None) -> float:
    """1 for the right answer."""
    return Arithmetic().grade(ground_truth, solution_str).outcome
