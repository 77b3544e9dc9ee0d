"""What verl's workers need of a run: its task, from the run's own config file, each once a process."""

from functools import lru_cache

from stepcredit.config import build_task, parse_config
from stepcredit.config.run import TASK_STEPS, RunConfig, typed
from stepcredit.tasks import Task

LOOP = "stepcredit_task"
"""The agent loop's name in verl's configs."""


@lru_cache
def run_config(path: str) -> RunConfig:
    """The config of a run's ``config.toml``, which every node of the cluster must be able to read."""
    with open(path, encoding="utf-8") as file:
        return parse_config(file.read())


@lru_cache
def run_task(path: str) -> Task:
    """The run's task."""
    return build_task(*typed("task", run_config(path).task))


def scores_own_steps(path: str) -> bool:
    """Whether the process signal is the task's own ground truth."""
    return run_config(path).signal.get("type") == TASK_STEPS
