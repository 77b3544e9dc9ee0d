"""What every run ends with, whatever trained it: evaluations, the policy's weights, a summary."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from stepcredit.config import build_task, parse_config
from stepcredit.config.run import RunConfig, typed
from stepcredit.runs.evaluate import evaluate
from stepcredit.runs.policies import load_policy
from stepcredit.runs.store import RunStore

Say = Callable[[str], None]
_NOT_WEIGHTS = ("optimizer*", "scheduler*", "scaler*", "rng_state*", "trainer_state.json", "training_args.bin")


def summary(folder: str | Path) -> dict[str, Any]:
    """Plain values about a run: its settings, the last step's metrics, its evaluations."""
    store = RunStore.open(folder)
    metrics = store.metrics()
    config = parse_config(store.config_text)
    return {
        "run": str(folder),
        "status": store.index["status"],
        "steps": store.index["step"],
        "estimator": config.estimator,
        "seed": config.run.seed,
        "metrics": {name: x for name, x in (metrics[-1] if metrics else {}).items() if x is not None},
        "evaluations": store.evals(),
    }


def evaluate_policy(config: RunConfig, store: RunStore, name: str, policy: str, say: Say) -> None:
    """Evaluates once, if the config asks for it: before the first step, or after the last."""
    settings = config.evaluation
    if not settings.problems or name in store.evals():
        return
    task = build_task(*typed("task", config.task))
    on_gpu = torch.cuda.is_available()
    loaded = load_policy(
        policy,
        dtype=None if on_gpu else torch.float64,  # there the numbers do not depend on the batch size
        device="cuda" if on_gpu else None,
        trust_remote_code=config.policy.trust_remote_code,
    )
    say(f"evaluation ({name}): {settings.problems} problems")
    result = evaluate(
        loaded.model, loaded.tokenizer, task, task.examples("test", settings.problems),
        samples=settings.samples, greedy=True, batch_size=settings.batch_size, seed=settings.seed,
        max_new_tokens=config.trainer.get("max_completion_length", 256),
        temperature=config.trainer.get("temperature", 1.0),
    )  # fmt: skip
    store.add_eval(name, result.summary(ks=(1,)))
    del loaded
    if on_gpu:
        torch.cuda.empty_cache()  # what trains next may be another process


def copy_weights(checkpoint: Path, target: Path) -> None:
    """The model of a checkpoint without what only a trainer reads."""
    shutil.copytree(checkpoint, target, ignore=shutil.ignore_patterns(*_NOT_WEIGHTS), dirs_exist_ok=True)
