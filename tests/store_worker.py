"""A training run to kill, what it must leave, and the process whose forks run it: it pays for the imports once."""

import json
import math
import operator
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stepcredit.runs.store import RunStore

CONFIG = "seed = 1\n"
SAVE = 2
FILES = ("model", "shards/optimizer")


def metrics(step: int) -> dict[str, float | None]:
    late = {"eval_reward": step / 2} if step > 3 else {}
    return {"loss": 1 / step, "kl": None if step % 2 else math.inf, **late}


def rollouts(step: int) -> list[dict[str, Any]]:
    if step % 2 == 0:
        return []
    terms = {"outcome": [0.5, 0.0], "process": [1 / step, -1.0]}
    row = {"row": 1, "completion": "a b", "reward": None, "offsets": [[0, 1], [1, 3]], "terms": terms}
    return [row, {**row, "row": 2, "reward": float(step)}]


def write_checkpoint(store: RunStore, step: int) -> None:
    """Several files, one after the other, as the trainer does it."""
    folder = store.path / "checkpoints" / f"checkpoint-{step}"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "shards").mkdir(parents=True)
    for name in FILES:
        (folder / name).write_text(str(step))


def train(path: Path, steps: int, hold_after: int | None = None, once: Callable[..., Any] = operator.call) -> None:
    """Starts or goes on; every call into the store goes through ``once``."""
    store = once(RunStore.resume, path) if path.exists() else once(RunStore.create, path, CONFIG)
    with store:
        for step in range(store.index["step"] + 1, steps + 1):
            while hold_after is not None and step > hold_after:
                time.sleep(1)
            once(store.add_metrics, step, metrics(step))
            once(store.add_rollouts, step, rollouts(step))
            if step % SAVE == 0:
                once(write_checkpoint, store, step)
                once(store.commit, step, f"checkpoint-{step}", keep=1)
        once(store.save_policy, lambda folder: (folder / "model").write_text("final"))
        if "end" not in store.evals():
            once(store.add_eval, "end", {"pass@1": 0.5})
        once(store.finish, steps)


def check_rows(store: RunStore) -> int:
    """Every step from the first on, once, with its values; returns the last."""
    rows = store.metrics()
    names = {name for row in rows for name in metrics(row["step"])}
    assert rows == [{"step": s, **{name: metrics(s).get(name) for name in names}} for s in range(1, len(rows) + 1)]
    found = list(store.rollouts())
    assert found == [{"step": s, **row} for s in sorted({row["step"] for row in found}) for row in rollouts(s)]
    return len(rows)


def check_commit(path: Path) -> int:
    """What the index says is there; returns its step."""
    store = RunStore.open(path)
    index = store.index
    assert check_rows(store) >= index["step"]
    assert {row["step"] for row in store.rollouts()} >= set(range(1, index["step"] + 1, 2))
    saved = index["step"] // SAVE * SAVE if index["status"] == "finished" else index["step"]
    assert index["checkpoints"] == [f"checkpoint-{saved}"] * (saved > 0)
    for name in index["checkpoints"]:
        assert [(path / "checkpoints" / name / file).read_text() for file in FILES] == [str(saved)] * len(FILES)
    return int(index["step"])


def check_finished(path: Path, steps: int) -> None:
    """Exactly what an uninterrupted run leaves."""
    store = RunStore.open(path)
    assert (store.config_text, store.index["status"], check_commit(path)) == (CONFIG, "finished", steps)
    assert store.evals() == {"end": {"pass@1": 0.5}}
    last = f"checkpoints/checkpoint-{steps // SAVE * SAVE}"
    expected = {"config.toml", "index.json", "lock", "evals/end.json", "policy/model", *(f"{last}/{x}" for x in FILES)}
    expected |= {f"metrics/metrics-{step:08d}.parquet" for step in range(1, steps + 1, SAVE)}
    expected |= {f"rollouts/rollouts-{step:08d}.parquet" for step in range(1, steps + 1, 2)}
    files = {str(x.relative_to(path)) for x in path.rglob("*") if x.is_file()}
    assert {x for x in files if not x.startswith("evals/.")} == expected  # a killed `add_eval` leaves a hidden file


def resume(path: Path) -> None:
    RunStore.resume(path).close()


def outlived(path: Path, grandchild: str) -> None:
    """Dies while a fork of its own lives on."""
    store = RunStore.create(path, CONFIG)
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    Path(grandchild).write_text(str(pid))
    assert store.path.exists()
    os.kill(os.getpid(), signal.SIGKILL)


def kill_before(change: int) -> None:
    """Dies right before its n-th change to the disk; syncing counts as one."""
    left = change
    changes = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate", "fsync")

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in changes or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = lambda _: count("fsync", ())
    sys.addaudithook(count)


def say(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def main() -> None:
    """Jobs in, one JSON line each; the process that runs a job out, then how it ended."""
    os.fsync = lambda _: None  # a kill loses nothing that was written; only a power cut does
    with tempfile.TemporaryDirectory() as folder:
        train(Path(folder) / "run", SAVE)  # imports on first use are paid for here, too
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            if job["kill_before"] is not None:
                kill_before(job["kill_before"])
            {"train": train, "resume": resume, "outlived": outlived}[job["run"]](Path(job["path"]), *job["arguments"])
            os._exit(0)
        say(pid)
        say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


if __name__ == "__main__":
    main()
