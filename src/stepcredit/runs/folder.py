"""A run's folder: how it is made, its index, and the one way that rows move, from pending into the run.

    config.toml             the resolved config
    index.json              how far the run is; replacing it is the commit
    metrics/*.parquet       one row a step               } up to the last commit:
    rollouts/*.parquet      the rollouts of chosen steps } no file here changes or goes
    pending/                both, for later steps: metrics.jsonl, rollouts-*.parquet
    evals/*.json            results of evaluations
    checkpoints/            checkpoint-N, written by the trainer
    policy/                 the final weights
    lock                    held by the process that writes

DuckDB and pandas open a file twice in one read, so what they read may not be replaced, however atomically. Hence
`pending`: rows that a resume may drop are not yet where they look.
"""

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from platform import python_version
from typing import Any

from stepcredit.errors import InputError
from stepcredit.files import replacing, sync, sync_tree
from stepcredit.runs.lock import RunLock
from stepcredit.runs.table import Row, read_part

FORMAT = 1
KINDS = ("metrics", "rollouts")
FOLDERS = (*KINDS, "pending", "evals", "checkpoints")
PACKAGES = ("stepcredit", "torch", "transformers", "trl")


def make_folder(path: Path, config_text: str) -> RunLock:
    """Makes a run beside ``path`` and renames it to there.

    Returns:
        Its lock, which is held from the start.

    Raises:
        InputError: Something other than an empty folder is at ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    lock = None
    try:
        for folder in FOLDERS:
            (made / folder).mkdir(parents=True)
        with replacing(made / "config.toml") as file:
            file.write(config_text.encode())
        write_index(made, {"status": "running", "step": 0, "checkpoint": None, "checkpoints": []})
        lock = RunLock(made)
        sync_tree(made)
        made = made.rename(path)  # refused by the system where anything but an empty folder is
        sync(path.parent)
        return lock
    except BaseException as error:
        if lock is not None:
            lock.close()
        shutil.rmtree(made, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise InputError(f"`path` must be new, or an empty folder; got {str(path)!r}, which is neither.") from None
        raise


def read_index(path: Path) -> dict[str, Any]:
    """The index of a run.

    Raises:
        InputError: There is no run, or one of another format.
    """
    try:
        index: Any = json.loads((path / "index.json").read_bytes())
        number = index["format"]
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"`path` must be a run; got {str(path)!r}, which has no index.json.") from None
    except (ValueError, LookupError, TypeError):
        raise InputError(f"`path` must be a run; got {str(path)!r}, whose index.json is not one of a run.") from None
    if number != FORMAT:
        raise InputError(
            f"`path` must be a run of format {FORMAT}; got format {number!r}. Update stepcredit to read it."
        )
    return dict(index)


def write_index(path: Path, index: dict[str, Any]) -> None:
    """Replaces the index, with the versions of what is running; not yet synced as a name in its folder."""
    with replacing(path / "index.json") as file:
        file.write(json.dumps({**index, "versions": _versions(), "format": FORMAT}, indent=1).encode())


def write_pending(path: Path, kind: str, step: int, content: bytes) -> None:
    """Writes a part whose first step is ``step``, to be moved in by the next commit."""
    with replacing(path / "pending" / f"{kind}-{step:08d}.parquet") as file:
        file.write(content)


def pending_metrics(path: Path) -> list[Row]:
    """The rows of metrics since the last commit; a line whose end is not written yet is not read."""
    try:
        content = (path / "pending" / "metrics.jsonl").read_bytes()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]


def part_rows(path: Path, kind: str, step: int | None = None) -> Iterator[Row]:
    """The rows in the parts of a kind, or in the one of ``step``; pending parts too, wherever they move meanwhile."""
    folders = (path / "pending", path / kind)
    pattern = f"{kind}-*.parquet" if step is None else f"{kind}-{step:08d}.parquet"
    names = {part.name: part for folder in folders for part in folder.glob(pattern)}
    for part in sorted(names.values(), key=_step):
        for folder in folders:
            try:
                rows = read_part(folder / part.name)
            except FileNotFoundError:  # moved on to the other folder, or dropped by a resume
                continue
            yield from rows
            break


def settle(path: Path) -> list[str]:
    """Makes the folder what its index says: moves in what that covers and drops what it does not.

    Can be repeated, and finished by another process after a kill.

    Returns:
        What was dropped, one line each.
    """
    index, pending = read_index(path), path / "pending"
    late = {"metrics": sum(row["step"] > index["step"] for row in pending_metrics(path)), "rollouts": 0}
    for part in pending.glob("*.parquet"):
        kind = part.name.partition("-")[0]
        if _step(part) <= index["step"]:
            os.replace(part, path / kind / part.name)
        elif kind == "rollouts":  # late metrics are counted already: their part repeats metrics.jsonl
            late[kind] += 1
    for kind in KINDS:
        sync(path / kind)
    dropped = [f"{kind} of {n} step{'s' * (n != 1)} after step {index['step']}" for kind, n in late.items() if n]
    for folder in sorted((path / "checkpoints").glob("checkpoint-*"), key=lambda x: x.name):
        if folder.name not in index["checkpoints"]:
            shutil.rmtree(folder)
            dropped.append(f"checkpoints/{folder.name}")
    for left in [*pending.iterdir(), *path.glob(".index.json.*")]:
        left.unlink()
    for left in path.glob(".policy.*"):
        shutil.rmtree(left)
    return dropped


def write_eval(path: Path, name: str, text: str) -> Path:
    """Writes ``<name>.json`` among the evaluations, or ``<name>-2.json`` and so on where that is taken."""
    folder = path / "evals"
    made = folder / f".{name}.{secrets.token_hex(4)}"
    try:
        with replacing(made) as file:
            file.write(text.encode())
        for n in count(1):
            target = folder / (f"{name}.json" if n == 1 else f"{name}-{n}.json")
            try:
                os.link(made, target)  # unlike a rename, this never takes another's place
                break
            except FileExistsError:
                continue
        try:
            sync(folder)
        except OSError:
            target.unlink()
            raise
    finally:
        made.unlink(missing_ok=True)
    return target


@cache
def _versions() -> dict[str, str]:
    found = {"python": python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _step(part: Path) -> int:
    return int(part.stem.rpartition("-")[2])
