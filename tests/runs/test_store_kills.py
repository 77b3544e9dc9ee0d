"""A run survives kills at any moment and full disks at any change, and is readable throughout."""

import errno
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial, partialmethod
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import store_worker
from stepcredit import InputError
from stepcredit.runs.store import RunStore
from store_worker import CONFIG, check_commit, check_finished, check_rows, metrics, rollouts, train, write_checkpoint

STEPS = 5  # commits at 2 and 4, and the rest with finish


class Runner:
    """Runs the jobs of `store_worker` in processes that may be killed."""

    def __init__(self) -> None:
        command = [sys.executable, store_worker.__file__]
        self.parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.running: int | None = None

    def start(self, run: str, path: Path, *arguments: Any, kill_before: int | None = None) -> int:
        assert self.parent.stdin is not None
        job = {"run": run, "path": str(path), "arguments": arguments, "kill_before": kill_before}
        self.parent.stdin.write(json.dumps(job) + "\n")
        self.parent.stdin.flush()
        self.running = self._number()
        return self.running

    def ended(self, run: str, path: Path, *arguments: Any, kill_before: int | None = None) -> int:
        self.start(run, path, *arguments, kill_before=kill_before)
        return self._ended()

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        assert self._ended() == -signal.SIGKILL

    def _ended(self) -> int:
        ended, self.running = self._number(), None
        return ended

    def _number(self) -> int:
        assert self.parent.stdout is not None
        return int(self.parent.stdout.readline())


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    made = Runner()
    yield made
    if made.running is not None:  # a test failed halfway
        made.kill(made.running)
    made.parent.communicate("")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in memory, where the system has one, and no waiting for the disk."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        yield Path(folder)


def seen_by_others(path: Path) -> int:
    """What pandas and DuckDB make of the metrics: each step once; returns the last."""
    parts, steps = sorted((path / "metrics").glob("*.parquet")), 0
    if parts and find_spec("pandas"):
        import pandas as pd

        seen = pd.concat(map(pd.read_parquet, parts))["step"].tolist()
        assert seen == list(range(1, len(seen) + 1))
        steps = len(seen)
    if parts and find_spec("duckdb"):
        import duckdb

        table = duckdb.sql(f"select * from read_parquet('{path}/metrics/*.parquet', union_by_name=true)").fetchall()
        assert sorted(row[0] for row in table) == list(range(1, len(table) + 1))
        assert len(table) >= steps
    return steps


def test_killed_at_random_moments_while_read(quick: Path, runner: Runner) -> None:
    rng, path, committed, seen = random.Random(0), quick / "run", 0, 0
    for life in range(22):
        goal, begun = committed + life % 2, time.monotonic()  # every other life gets somewhere, the rest may not
        pid = runner.start("train", path, 200, 3 * (life + 1))  # waits to be killed there
        end = begun + rng.uniform(0.0, 0.08)
        while time.monotonic() < end or committed < goal:
            assert time.monotonic() < begun + 60.0, "nothing was committed"
            if path.exists():
                store = RunStore.open(path)
                before, others = store.index["step"], seen_by_others(path)
                assert before >= committed
                assert others >= seen
                assert check_rows(store) >= before
                if committed < goal <= before:
                    end = time.monotonic() + rng.uniform(0.0, 0.08)
                committed, seen = before, others
        runner.kill(pid)
        assert not path.exists() or check_commit(path) >= committed
    assert runner.ended("train", path, 67) == 0
    check_finished(path, 67)
    assert seen_by_others(path) == 67
    assert len(list(quick.iterdir())) <= 23  # what a killed `create` leaves is beside the run, not in it


def test_a_commit_in_the_middle_of_a_read(quick: Path) -> None:
    """Between any two looks of a reader at the disk."""
    for n in range(100):
        looks = 0
        with RunStore.create(quick / str(n), CONFIG) as store, pytest.MonkeyPatch.context() as patch:
            for step in (1, 2, 3):
                store.add_metrics(step, metrics(step))
                store.add_rollouts(step, rollouts(step))
                if step == 2:
                    store.commit(2, None)

            def look(call: Callable[..., Any], *arguments: Any, store: RunStore = store, n: int = n) -> Any:
                nonlocal looks
                looks += 1
                if looks == n:
                    store.commit(3, None)
                found = call(*arguments)
                return found if isinstance(found, bytes) else list(found)

            patch.setattr(Path, "glob", partialmethod(partial(look, Path.glob)))
            patch.setattr(Path, "read_bytes", partialmethod(partial(look, Path.read_bytes)))
            reader = RunStore.open(store.path)
            assert check_rows(reader) == 3
            assert {row["step"] for row in reader.rollouts()} == {1, 3}
        if looks < n:
            break
    assert n > 10


def go_on(path: Path) -> None:
    """After a kill or a full disk: what is there is whole, and what is to come comes."""
    if not path.exists():
        return  # nothing was begun, or nothing but a folder beside it
    if check_commit(path) < STEPS:
        train(path, STEPS)
    else:
        with pytest.raises(InputError, match=r"`path` must be an unfinished run; got .*/run', which is finished"):
            RunStore.resume(path)
    check_finished(path, STEPS)


def test_killed_before_every_change_to_the_disk(quick: Path, runner: Runner) -> None:
    for n in range(1000):
        path = quick / str(n) / "run"
        ended = runner.ended("train", path, STEPS, kill_before=n)
        go_on(path)
        if ended == 0:
            break
    assert n > 100


def torn_run(path: Path) -> None:
    """A run as a kill may leave it: rows, a checkpoint and a policy that no commit covers."""
    with RunStore.create(path, CONFIG) as store:
        for step in (1, 2, 3):
            store.add_metrics(step, metrics(step))
            store.add_rollouts(step, rollouts(step))
            if step == 2:
                write_checkpoint(store, step)
                store.commit(step, "checkpoint-2")
        store.save_policy(lambda folder: (folder / "model").write_text("old"))
    for folder in ("checkpoints/checkpoint-4", ".policy.x"):
        (path / folder).mkdir()
        (path / folder / "model").write_text("ha")
    for name in (".index.json.x", "pending/.rollouts-00000004.parquet.x", "pending/metrics-00000003.parquet"):
        (path / name).write_text("ha")
    with (path / "pending" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')


def test_resume_drops_what_no_commit_covers(quick: Path) -> None:
    path = quick / "run"
    torn_run(path)
    with RunStore.resume(path) as store:
        rows = ["metrics of 1 step after step 2", "rollouts of 1 step after step 2"]
        assert store.dropped == ["policy", *rows, "checkpoints/checkpoint-4"]
        assert check_rows(store) == 2
        assert {row["step"] for row in store.rollouts()} == {1}
    with RunStore.resume(path) as store:
        assert store.dropped == []
    go_on(path)


def test_resume_killed_before_every_change(quick: Path, runner: Runner) -> None:
    for n in range(1000):
        torn_run(path := quick / str(n) / "run")
        (path / "pending" / "metrics-00000003.parquet").unlink()  # it was no whole one, which a kill does not leave
        ended = runner.ended("resume", path, kill_before=n)
        go_on(path)
        if ended == 0:
            break
    assert n > 15


class FullDisk:
    """Refuses its n-th change, and all later ones if it stays full; a write gets half way."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int, *, stays: bool) -> None:
        self.left, self.stays, self.refused = at, stays, False
        for name in ("fsync", "replace", "rename", "link", "mkdir", "open"):
            patch.setattr(os, name, self._limited(name, getattr(os, name)))
        patch.setattr(os, "fdopen", lambda handle, mode: HalfWriter(self, io.FileIO(handle, mode)))
        path_open = Path.open

        def limited_open(path: Path, mode: str = "r", *rest: Any, **names: Any) -> Any:
            return HalfWriter(self, io.FileIO(path, mode)) if mode == "ab" else path_open(path, mode, *rest, **names)

        patch.setattr(Path, "open", limited_open)

    def _limited(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def limited(path: Any, *arguments: Any, **names: Any) -> Any:
            if name != "open" or arguments[0] & os.O_CREAT:
                self.change(None if name == "fsync" else path)
            if name == "replace" and Path(arguments[0]).parent.name in ("metrics", "rollouts"):
                assert not Path(arguments[0]).exists(), "others may be reading that part"
            return None if name == "fsync" else call(path, *arguments, **names)

        return limited

    def change(self, path: Path | None = None) -> None:
        self.left -= 1
        if self.left == -1 or (self.left < 0 and self.stays):
            self.refused = True
            raise OSError(errno.ENOSPC, "No space left on device", path)


class HalfWriter(io.BufferedWriter):
    def __init__(self, disk: FullDisk, raw: io.FileIO) -> None:
        super().__init__(raw)
        self.disk = disk

    def write(self, data: Any) -> int:
        try:
            self.disk.change()
        except OSError:
            super().write(data[: len(data) // 2])
            raise
        return super().write(data)


def test_full_disk_ends_the_process(quick: Path) -> None:
    committed = 0

    def once(call: Callable[..., Any], *arguments: Any, **names: Any) -> Any:
        nonlocal committed
        result = call(*arguments, **names)
        committed = arguments[0] if getattr(call, "__name__", "") == "commit" else committed
        return result

    for n in range(1000):
        path, committed = quick / str(n) / "run", 0
        with pytest.MonkeyPatch.context() as patch:
            disk, error = FullDisk(patch, n, stays=True), OSError(0, "")
            try:
                train(path, STEPS, once=once)
            except OSError as caught:
                error = caught
        if not disk.refused:
            break
        assert error.errno == errno.ENOSPC
        assert str(error.filename).startswith(str(path.parent))
        assert (check_commit(path) if path.exists() else len(list(path.parent.glob("*")))) >= committed
        go_on(path)
    assert n > 100


def test_full_disk_for_a_moment(quick: Path) -> None:
    """A call that was refused can be repeated."""

    def twice(call: Callable[..., Any], *arguments: Any, **names: Any) -> Any:
        try:
            return call(*arguments, **names)
        except OSError:
            return call(*arguments, **names)

    for n in range(1000):
        path = quick / str(n) / "run"
        with pytest.MonkeyPatch.context() as patch:
            disk = FullDisk(patch, n, stays=False)
            train(path, STEPS, once=twice)
        check_finished(path, STEPS)
        assert [x.name for x in path.parent.iterdir()] == ["run"]
        if not disk.refused:
            break
    assert n > 100


def test_order_of_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the index names is on the disk before it, and an older checkpoint goes after it."""
    done: list[str] = []
    replace, rmtree = os.replace, shutil.rmtree
    with RunStore.create(tmp_path / "run", CONFIG) as store:
        store.add_metrics(1, metrics(1))
        store.add_rollouts(1, rollouts(1))
        write_checkpoint(store, 2)
        store.commit(2, "checkpoint-2", keep=1)
        store.add_metrics(3, metrics(3))
        write_checkpoint(store, 4)
        monkeypatch.setattr(os, "fsync", lambda handle: done.append(os.readlink(f"/proc/self/fd/{handle}")))
        monkeypatch.setattr(os, "replace", lambda a, b: (done.append(f"to {b}"), replace(a, b)))
        monkeypatch.setattr(shutil, "rmtree", lambda path: (done.append(f"without {path}"), rmtree(path)))
        store.commit(4, "checkpoint-4", keep=1)
    done = [entry.replace(f"{tmp_path}/run", "RUN") for entry in done]
    index, part, folder = done.index("to RUN/index.json"), "metrics-00000003.parquet", "RUN/checkpoints/checkpoint-4"
    for name in ("model", "shards/optimizer", "shards"):
        assert done.index(f"{folder}/{name}") < done.index(folder)
    assert done.index(folder) < done.index("RUN/checkpoints") < index
    assert done.index(f"to RUN/pending/{part}") < done.index("RUN/pending") < index
    assert done[index + 1] == "RUN"
    assert index < done.index(f"to RUN/metrics/{part}") < done.index("RUN/metrics")
    assert index < done.index("without RUN/checkpoints/checkpoint-2")


def test_one_process_at_a_time(tmp_path: Path, runner: Runner) -> None:
    path = tmp_path / "run"
    pid = runner.start("train", path, STEPS, 1)
    begun = time.monotonic()
    while not (path.exists() and RunStore.open(path).metrics()):
        assert time.monotonic() < begun + 60.0
    with pytest.raises(InputError, match=r"`path` must be a run that nobody else writes; got .*/run', in use"):
        RunStore.resume(path)
    runner.kill(pid)
    with RunStore.resume(path), pytest.raises(InputError, match="in use"):
        RunStore.resume(path)
    RunStore.resume(path).close()


def test_a_fork_that_outlives_the_run_does_not_hold_it(tmp_path: Path, runner: Runner) -> None:
    assert runner.ended("outlived", tmp_path / "run", str(tmp_path / "pid")) == -signal.SIGKILL
    try:
        RunStore.resume(tmp_path / "run").close()
    finally:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
