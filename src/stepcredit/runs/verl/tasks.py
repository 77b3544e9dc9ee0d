"""What verl's workers need of a run: its task, from the run's own config file, each once a process."""

from functools import lru_cache
from typing import Any

from stepcredit.config import build_task, parse_config
from stepcredit.config.run import TASK_STEPS, RunConfig, typed
from stepcredit.errors import InputError
from stepcredit.runs.conversing import TurnProtocol
from stepcredit.runs.policies import load_tokenizer
from stepcredit.runs.protocols import protocol_of
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


@lru_cache
def run_protocol(path: str) -> TurnProtocol:
    """How the run's policy talks in its task.

    Raises:
        InputError: It would stop at a text, and verl's servers stop at tokens.
    """
    config = run_config(path)
    tokenizer = load_tokenizer(config.policy.name, trust_remote_code=config.policy.trust_remote_code)
    protocol = protocol_of(run_task(path), tokenizer)
    if protocol.stops is not None:
        raise InputError(
            "`policy` must have a tokenizer in which </search> is one token, or a chat template, for a search on verl: "
            "its servers stop at tokens."
        )
    return protocol


def end_tokens(tokenizer: Any, path: str) -> frozenset[int]:
    """The ids that end a completion: the tokenizer's, and those of the policy's generation config."""
    from transformers import GenerationConfig

    try:
        ends = GenerationConfig.from_pretrained(path).eos_token_id
    except OSError:  # a policy without one
        ends = None
    named = ends if isinstance(ends, list) else [ends]
    return frozenset(int(end) for end in (tokenizer.eos_token_id, *named) if end is not None)
