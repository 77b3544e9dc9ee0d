"""A training run from its config to its last number: started, killed, resumed, finished."""

import errno
import gc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from stepcredit.config import dump_config, parse_config
from stepcredit.config.run import RunConfig
from stepcredit.runs.callbacks import ProgressCallback, StoreCallback
from stepcredit.runs.ending import Say, copy_weights, evaluate_policy, summary
from stepcredit.runs.policies import no_progress_bars
from stepcredit.runs.store import RunStore
from stepcredit.runs.trainer import grpo_config, make_trainer


def dry_run(config: RunConfig, folder: Path) -> str:
    """The resolved config, as a run would keep it.

    Raises:
        InputError: What `start` would refuse before anything is on disk.
    """
    grpo_config(config, folder / "checkpoints")
    return dump_config(config)


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
            evaluate_policy(config, store, "start", config.policy.name, say)
        settings.distributed_state.wait_for_everyone()
        index = RunStore.open(folder).index
        if index["step"] < config.run.steps:
            trainer, observer = make_trainer(config, settings)
            if store:
                trainer.add_callback(StoreCallback(store, observer, config.run.keep_checkpoints))
                trainer.add_callback(ProgressCallback(say))
            checkpoint = index["checkpoint"]
            with _settled_heap():
                trainer.train(resume_from_checkpoint=str(folder / "checkpoints" / checkpoint) if checkpoint else None)
        if store:
            last = folder / "checkpoints" / store.index["checkpoint"]
            store.save_policy(lambda target: copy_weights(last, target))
            evaluate_policy(config, store, "end", str(folder / "policy"), say)
            store.finish(config.run.steps)
        settings.distributed_state.wait_for_everyone()
    return summary(folder)


@contextmanager
def _settled_heap() -> Iterator[None]:
    """Garbage is looked for among what training makes, not among the million objects of the libraries before it."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


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
