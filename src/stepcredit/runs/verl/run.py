"""A training run on verl from its config to its last number: verl trains in a process of its own, watched."""

import ctypes
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from stepcredit.adapters.verl_cpu import SWITCH
from stepcredit.adapters.verl_cpu.overrides import cpu_overrides
from stepcredit.config import build_estimator, build_signal, dump_config
from stepcredit.config.run import TASK_STEPS, RunConfig, run_config, typed
from stepcredit.errors import InputError, StepCreditError
from stepcredit.runs.ending import Say, copy_weights, evaluate_policy, summary
from stepcredit.runs.store import RunStore
from stepcredit.runs.verl.composing import composed, refuse_unknown, validate
from stepcredit.runs.verl.files import write_files
from stepcredit.runs.verl.overrides import CHECKPOINTS, Overrides, arguments, devices, flat, verl_overrides
from stepcredit.signals import TensorSignal

_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
_TRAINER = ("-m", "verl.trainer.main_ppo")
_LOG, _METRICS = "verl.log", "metrics.jsonl"  # in the run's folder `verl`
_SHOWN = {"critic/score/mean": "reward", "response_length/mean": "length", "actor/entropy": "entropy"}


def resolved(config: RunConfig, folder: Path) -> Overrides:
    """A run's settings as overrides of verl's config; without a GPU, with what a CPU needs.

    Raises:
        InputError: A setting that has no counterpart on verl, or whatever verl's own validation refuses.
        MissingExtraError: verl is not installed.
    """
    found = verl_overrides(config, folder, reads=_reads(config))
    if on_cpu(config):
        teachers = int(found.get("distillation.nnodes", 0)) * int(found.get("distillation.n_gpus_per_node", 0))
        found |= cpu_overrides(devices(config), teachers=teachers) | flat(config.verl)
    refuse_unknown(list(flat(config.verl)))
    validate(composed(arguments(found)))
    return found


def on_cpu(config: RunConfig) -> bool:
    """Whether the run is one on this machine's CPU: as ``[verl]`` says, by default where no GPU is in sight.

    A config that names its rollout engine is for a cluster, whatever the machine that starts it has.
    """
    device = config.verl.get("trainer", {}).get("device")
    if device is not None:
        return bool(device == "cpu")
    return not torch.cuda.is_available() and "actor_rollout_ref.rollout.name" not in flat(config.verl)


def dry_run(config: RunConfig, folder: Path) -> str:
    """The command that a run would start, an argument a line; the files that it names are the run's to write.

    Raises:
        InputError: What `start` would refuse before anything is on disk.
    """
    words = map(shlex.quote, arguments(resolved(config, folder.absolute())))
    command = [f"{SWITCH}=1 python" if on_cpu(config) else "python", *_TRAINER]
    return " \\\n  ".join([" ".join(command), *words])


def start(config: RunConfig, folder: str | Path, *, say: Say = lambda _: None) -> dict[str, Any]:
    """Trains on verl in a new directory.

    Returns:
        Plain values, as the other engine's `start` gives them.

    Raises:
        InputError: The directory exists, or the config asks for what cannot be had.
        StepCreditError: verl's process failed; its log is in the run directory.
    """
    folder = Path(folder).absolute()
    overrides = resolved(config, folder)  # refuses before anything is on disk
    with RunStore.create(folder, dump_config(config)) as store:
        overrides = _for_prompts(overrides, write_files(config, folder))
        return _go_on(config, overrides, store, folder, say)


def resume(folder: str | Path, *, say: Say = lambda _: None) -> dict[str, Any]:
    """Goes on with a run that was killed, from verl's last checkpoint.

    verl keeps weights, optimizer and the data's place, but not the state of its rollout servers: the rest of the run
    is as good a run as the one that was killed, not the same numbers.
    """
    folder = Path(folder).absolute()
    config = run_config(folder)
    overrides = resolved(config, folder)
    with RunStore.resume(folder) as store:
        for line in store.dropped:
            say(f"dropped: {line}")
        overrides = _for_prompts(overrides, write_files(config, folder))
        return _go_on(config, overrides, store, folder, say)


def _go_on(config: RunConfig, overrides: Overrides, store: RunStore, folder: Path, say: Say) -> dict[str, Any]:
    if config.evaluation.before:
        evaluate_policy(config, store, "start", config.policy.name, say)
    if store.index["step"] < config.run.steps:
        _train({**overrides, "trainer.resume_mode": "auto"}, store, folder, say, cpu=on_cpu(config))
    last = _checkpoint(folder, config.run.steps)
    store.save_policy(lambda target: copy_weights(last / "actor" / "huggingface", target))
    evaluate_policy(config, store, "end", str(folder / "policy"), say)
    store.finish(config.run.steps)
    return summary(folder)


def _for_prompts(overrides: Overrides, longest: int) -> Overrides:
    """With room for the longest prompt, where the config says nothing of it."""
    name = "data.max_prompt_length"
    if overrides.get(name) is None:
        return {**overrides, name: longest}
    if overrides[name] < longest:
        raise InputError(f"`verl.{name}` must hold the longest prompt, {longest} tokens; got {overrides[name]}.")
    return overrides


def _train(overrides: Overrides, store: RunStore, folder: Path, say: Say, *, cpu: bool) -> None:
    """Runs verl's trainer and takes its metrics as they come."""
    metrics, log = folder / "verl" / _METRICS, folder / "verl" / _LOG
    _take(metrics, 0, store, say, folder, saved_only=True)  # what a kill kept from being committed
    metrics.unlink(missing_ok=True)
    with _ray_folder() as temporary:
        if cpu:
            overrides = {**overrides, "ray_kwargs.ray_init._temp_dir": temporary}
        command = [sys.executable, *_TRAINER, *arguments(overrides)]
        (folder / "verl" / "command.txt").write_text("\n".join(command) + "\n", encoding="utf-8")
        with log.open("ab") as output, _process(command, folder, metrics, output, cpu) as process:
            taken = 0
            while True:
                ended = process.poll() is not None
                taken = _take(metrics, taken, store, say, folder)
                if ended:
                    break
                time.sleep(1)
    if process.returncode:
        raise StepCreditError(f"verl ended with {process.returncode}; the end of {log} says:\n{_why(log)}")


@contextmanager
def _process(
    command: list[str], folder: Path, metrics: Path, output: Any, cpu: bool
) -> Iterator[subprocess.Popen[bytes]]:
    """The trainer's process; it does not outlive this one's interest in it."""
    environment = {**os.environ, "VERL_FILE_LOGGER_PATH": str(metrics), "TOKENIZERS_PARALLELISM": "false"}
    if cpu:
        environment |= {SWITCH: "1", "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
        environment.setdefault("RAY_AUTH_MODE", "disabled")
    process = subprocess.Popen(  # noqa: S603 - our own command
        command, env=environment, cwd=folder / "verl", stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        preexec_fn=_end_with_parent,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _end_with_parent() -> None:
    """Runs in the trainer's process: a kill of this one, however it came, ends that one too (on Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def _ray_folder() -> Iterator[str]:
    """A short path: those of Ray's sockets may have 107 characters."""
    with tempfile.TemporaryDirectory(prefix="sc", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield folder


def _take(path: Path, taken: int, store: RunStore, say: Say, folder: Path, *, saved_only: bool = False) -> int:
    """Stores the metrics that have come since, a row a step; those up to a checkpoint of verl's for good.

    verl writes a step's checkpoint before its row, so that each row can be committed as it is read.
    """
    if not path.is_file():
        return taken
    tracker = folder / CHECKPOINTS / "latest_checkpointed_iteration.txt"
    saved = int(tracker.read_text()) if tracker.is_file() else 0
    lines = path.read_bytes().split(b"\n")[:-1]  # the last one may not be whole
    for line in lines[taken:]:
        row = json.loads(line)
        step = int(row["step"])
        if step <= store.index["step"] or (saved_only and step > saved):
            continue
        numbers = {name: float(x) for name, x in row["data"].items() if isinstance(x, (int, float))}
        store.add_metrics(step, numbers)
        if step <= saved:
            store.commit(step, None)
        shown = [f"{word} {numbers[name]:.4g}" for name, word in _SHOWN.items() if name in numbers]
        say(f"step {step}: {', '.join(shown)}")
    return len(lines)


def _checkpoint(folder: Path, steps: int) -> Path:
    found = folder / CHECKPOINTS / f"global_step_{steps}"
    if not (found / "actor" / "huggingface").is_dir():
        raise StepCreditError(f"verl left no weights of step {steps} in {folder / CHECKPOINTS}.")
    return found


def _reads(config: RunConfig) -> frozenset[str]:
    """The batch fields that the scheme and a signal of log-probabilities read."""
    requires = build_estimator(*typed("estimator", config.estimator)).requires
    if not config.signal or config.signal["type"] == TASK_STEPS:
        return requires
    name, options = typed("signal", {key: x for key, x in config.signal.items() if key != "steps"})
    signal = build_signal(name, options)
    return requires | signal.requires if isinstance(signal, TensorSignal) else requires


def _why(log: Path) -> str:
    """The error in a log that ends with whatever Ray's processes had to say last."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [i for i, line in enumerate(lines) if "Error" in line and not line.startswith("INFO")]
    end = errors[-1] + 1 if errors else len(lines)
    return "\n".join(lines[max(end - 12, 0) : end])
