"""A training run from its config to its last number: started, killed, resumed, finished."""

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from stepcredit.config import build_task, dump_config, parse_config
from stepcredit.config.run import RunConfig, typed
from stepcredit.runs.callbacks import ProgressCallback, StoreCallback
from stepcredit.runs.evaluate import evaluate
from stepcredit.runs.policies import load_policy, no_progress_bars
from stepcredit.runs.store import RunStore
from stepcredit.runs.trainer import grpo_config, make_trainer

Say = Callable[[str], None]
_NOT_WEIGHTS = ("optimizer*", "scheduler*", "scaler*", "rng_state*", "trainer_state.json", "training_args.bin")


def start(config: RunConfig, folder: str | Path, *, say: Say = lambda _: None) -> dict[str, Any]:
    """Trains in a new directory. Under a launcher every rank calls; the first one writes.

    Args:
        config: The run's settings.
        folder: The run directory; must not exist.
        say: Takes the progress, a line at a time.

    Returns:
        Plain values: where the run is, its last metrics and its evaluations.

    Raises:
        InputError: The directory exists, or the config asks for what cannot be had.
        OSError: The disk refused; what was committed stands, and the run can be resumed.
    """
    settings = grpo_config(config, Path(folder) / "checkpoints")  # refuses before anything is on disk
    store = RunStore.create(folder, dump_config(config)) if settings.process_index == 0 else None
    return _go_on(config, settings, Path(folder), store, say)


def resume(folder: str | Path, *, say: Say = lambda _: None) -> dict[str, Any]:
    """Goes on with a run that was killed, from its last commit, to the numbers it would have had.

    Raises:
        InputError: No run there, one that is finished, or one that another process is at.
    """
    config = parse_config(RunStore.open(folder).config_text)
    settings = grpo_config(config, Path(folder) / "checkpoints")
    store = RunStore.resume(folder) if settings.process_index == 0 else None
    for line in store.dropped if store else ():
        say(f"dropped: {line}")
    return _go_on(config, settings, Path(folder), store, say)


def _go_on(config: RunConfig, settings: Any, folder: Path, store: RunStore | None, say: Say) -> dict[str, Any]:
    """The run from its last commit to its end; ``store`` is the first rank's."""
    with store or nullcontext(), disk_errors(folder), no_progress_bars():
        if store and config.evaluation.before:
            _evaluate(config, store, "start", config.policy.name, say)
        settings.distributed_state.wait_for_everyone()
        index = RunStore.open(folder).index
        if index["step"] < config.run.steps:
            trainer, observer = make_trainer(config, settings)
            if store:
                trainer.add_callback(StoreCallback(store, observer, config.run.keep_checkpoints))
                trainer.add_callback(ProgressCallback(say))
            checkpoint = index["checkpoint"]
            trainer.train(resume_from_checkpoint=str(folder / "checkpoints" / checkpoint) if checkpoint else None)
        if store:
            last = folder / "checkpoints" / store.index["checkpoint"]
            store.save_policy(lambda target: _copy_weights(last, target))
            _evaluate(config, store, "end", str(folder / "policy"), say)
            store.finish(config.run.steps)
        settings.distributed_state.wait_for_everyone()
    return summary(folder)


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


def _evaluate(config: RunConfig, store: RunStore, name: str, policy: str, say: Say) -> None:
    """Evaluates once: before the first step, or after the last."""
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


def _copy_weights(checkpoint: Path, target: Path) -> None:
    """The model of a checkpoint without what only a trainer reads."""
    shutil.copytree(checkpoint, target, ignore=shutil.ignore_patterns(*_NOT_WEIGHTS), dirs_exist_ok=True)


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Writers that say a full disk in their own ways say it in the system's."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        text = str(error).lower()
        signs = ("no space", "os error 28", "file write failed", "pytorchstreamwriter", "unexpected pos")
        if any(sign in text for sign in signs):
            raise OSError(errno.ENOSPC, "No space left on device", str(folder)) from error
        raise
