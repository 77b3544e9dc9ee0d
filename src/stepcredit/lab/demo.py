"""Rollouts without a model: the built-in arithmetic task, solved by its noisy tutor, every step graded."""

from typing import Any

from stepcredit.tasks.arithmetic import Arithmetic


def demo_rows(*, groups: int = 8, group_size: int = 8, operations: int = 6, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of a rollout file: groups of tutor solutions with outcome, format and ground-truth step scores.

    Args:
        groups: Problems.
        group_size: Solutions a problem.
        operations: Operations a problem.
        seed: Chooses problems and noise.

    Returns:
        One row a rollout, as `stepcredit.lab.rollout_files.read_rollouts` reads them.

    Example:
        >>> rows = demo_rows(groups=1, group_size=2)
        >>> len(rows), sorted(rows[0])
        (2, ['completion', 'format_reward', 'group', 'prompt', 'reward', 'steps'])
    """
    task, rows = Arithmetic(operations=operations), []
    for g in range(groups):
        problem = task.problem(seed * groups + g)
        for i in range(group_size):
            completion = task.sample_solution(problem, (seed * groups + g) * group_size + i)
            if i == group_size - 1:  # one answer line is cut off, so that the format gate has something to do
                completion = completion[: completion.rindex("answer")]
            grade = task.grade(problem, completion)
            rows.append(
                {
                    "prompt": problem.prompt,
                    "completion": completion,
                    "group": g,
                    "reward": grade.outcome,
                    "format_reward": grade.format_reward,
                    "steps": [{"end": step.end, "score": step.score} for step in grade.steps],
                }
            )
    return rows
