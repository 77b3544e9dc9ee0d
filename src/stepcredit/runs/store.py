"""The store of a training run: one folder, never shared or overwritten, that a kill leaves readable and resumable."""

import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stepcredit.errors import InputError, StepCreditError
from stepcredit.files import naming, parquet_library, sync, sync_tree
from stepcredit.runs.folder import (
    FOLDERS,
    KINDS,
    make_folder,
    part_rows,
    pending_metrics,
    read_index,
    settle,
    write_eval,
    write_index,
    write_pending,
)
from stepcredit.runs.lock import RunLock
from stepcredit.runs.table import Row, metrics_part, metrics_row, rollouts_part


class RunStore:
    """A run's folder; made by `create`, `resume` (both for writing) or `open` (for reading).

    The one that writes holds a lock until `close`, `finish` or its process's end, however that comes. Only the main
    process of a distributed run needs a store. Where the disk refuses, an `OSError` names a path, what was committed
    is intact, and the call can be repeated.

    Attributes:
        path: The run's folder.
        dropped: What `resume` took back, one line each.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> with RunStore.create(folder.name + "/run", "seed = 1") as store:
        ...     store.add_metrics(1, {"loss": 0.5})
        ...     store.commit(1, None)
        ...     store.add_metrics(2, {"loss": 0.25, "kl": 0.125})
        >>> RunStore.open(store.path).metrics()
        [{'step': 1, 'loss': 0.5, 'kl': None}, {'step': 2, 'loss': 0.25, 'kl': 0.125}]
        >>> with RunStore.resume(store.path) as store:
        ...     store.index["step"], store.dropped
        (1, ['metrics of 1 step after step 1'])
        >>> folder.cleanup()
    """

    def __init__(self, path: Path, lock: RunLock | None = None) -> None:
        self.path, self.dropped = path, list[str]()
        self._lock, self._tail_size = lock, 0
        self._last = dict.fromkeys(KINDS, int(self.index["step"]))

    @classmethod
    def create(cls, path: str | Path, config_text: str) -> "RunStore":
        """Makes a new run; it appears at ``path`` whole, or, after a kill, not at all.

        Args:
            path: Must not exist, or be an empty folder.
            config_text: What `config_text` gives back.

        Raises:
            InputError: Something is at ``path``.
            MissingExtraError: pyarrow is not installed.
        """
        parquet_library()
        path = Path(path).absolute()
        return cls(path, make_folder(path, config_text))

    @classmethod
    def resume(cls, path: str | Path) -> "RunStore":
        """Opens an unfinished run to go on from its last commit; what came after that is dropped.

        A kill in the middle of this leaves a run that can be resumed.

        Raises:
            InputError: There is no run, it is finished, or a living process writes it.
            MissingExtraError: pyarrow is not installed.
        """
        parquet_library()
        path = Path(path).absolute()
        read_index(path)
        store = cls(path, RunLock(path))
        try:
            for folder in FOLDERS:
                (path / folder).mkdir(exist_ok=True)
            finished, policy = store.index["status"] == "finished", path / "policy"
            if not finished and policy.exists():  # killed just before `finish`: it will be made again
                os.rename(policy, path / f".policy.{secrets.token_hex(4)}")
                store.dropped.append("policy")
            store.dropped += settle(path)
            if finished:
                raise InputError(f"`path` must be an unfinished run; got {str(path)!r}, which is finished.")
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def open(cls, path: str | Path) -> "RunStore":
        """Opens a run to read it, at any time; a process may be writing it.

        Raises:
            InputError: There is no run.
        """
        return cls(Path(path).absolute())

    def close(self) -> None:
        """Lets another process write; what is here can still be read."""
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> "RunStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def config_text(self) -> str:
        """The config, as it was given to `create`."""
        return (self.path / "config.toml").read_bytes().decode()

    @property
    def index(self) -> dict[str, Any]:
        """The last commit, as the disk has it.

        ``status`` ("running" or "finished"), ``step``, ``checkpoint`` (the name of the one to go on from, or None),
        ``checkpoints`` (those kept, oldest first), ``versions`` (of Python and packages), ``format``.
        """
        return read_index(self.path)

    def metrics(self) -> list[Row]:
        """One row a step, in order, up to the last one added; every row has every metric, None where it had none."""
        found = {row["step"]: row for row in pending_metrics(self.path)}  # first: what a commit moves is seen below
        found |= {row["step"]: row for row in part_rows(self.path, "metrics")}
        names = dict.fromkeys(name for _, row in sorted(found.items()) for name in row)
        return [{name: row.get(name) for name in names} for _, row in sorted(found.items())]

    def rollouts(self, step: int | None = None) -> Iterator[Row]:
        """The rollouts of one step or of all, in order, up to the last ones added."""
        return part_rows(self.path, "rollouts", step)

    def evals(self) -> dict[str, Any]:
        """The evaluations by name."""
        return {path.stem: json.loads(path.read_bytes()) for path in sorted((self.path / "evals").glob("*.json"))}

    def add_metrics(self, step: int, values: Mapping[str, float | None]) -> None:
        """Adds the row of a step: at once in `metrics`, after the next commit in the Parquet files.

        Args:
            step: From 1; above the last one, and above the last commit.
            values: Numbers by name; nan and infinities are kept, None is no value.

        Raises:
            InputError: ``step`` or ``values`` breaks its rule.
        """
        self._check_open()
        self._check_step(step, "metrics")
        line = json.dumps(metrics_row(step, values)).encode() + b"\n"
        tail = self.path / "pending" / "metrics.jsonl"
        with naming(tail), tail.open("ab") as file:
            file.truncate(self._tail_size)  # away with the half of a line that a full disk may have left
            file.write(line)
        self._tail_size += len(line)
        self._last["metrics"] = step

    def add_rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds the rollouts of a step: at once in `rollouts`, after the next commit in their folder.

        Args:
            step: From 1; above the last one with rollouts, and above the last commit.
            rows: As `stepcredit.lab.score.Scored.rows` gives them: plain values, lists and dicts of them. Without
                rows no file is written.

        Raises:
            InputError: ``step`` or ``rows`` breaks its rule; see `rollouts_part`.
        """
        self._check_open()
        self._check_step(step, "rollouts")
        if rows:
            write_pending(self.path, "rollouts", step, rollouts_part(step, rows))
        self._last["rollouts"] = step

    def add_eval(self, name: str, result: Mapping[str, Any]) -> Path:
        """Adds the result of an evaluation; needs no lock, so that a finished run can be evaluated too.

        Args:
            name: Letters, digits and ``._-``. Nothing is overwritten: the second of a name is ``<name>-2``.
            result: Plain values, finite.

        Returns:
            The file.

        Raises:
            InputError: The name or the result breaks its rule.
        """
        if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
            raise InputError(f"`name` must be letters, digits and ._-; got {name!r}.")
        try:
            text = json.dumps(result, allow_nan=False, indent=1)
        except (TypeError, ValueError) as error:
            raise InputError(f"`result` must be plain values that JSON has; got this: {error}.") from None
        return write_eval(self.path, name, text)

    def commit(self, step: int, checkpoint: str | None, *, keep: int = 2) -> None:
        """Makes everything up to ``step`` part of the run for good; call it when the checkpoint is complete.

        Args:
            step: The trainer's; not below that of any row.
            checkpoint: ``checkpoint-<step>``, a folder in `checkpoints`, to go on from; None only where no commit
                had one, and then a resumed run has none to go on from.
            keep: Checkpoints to keep, at least 1; older ones are deleted once the index no longer names them.

        Raises:
            InputError: An argument breaks its rule, or the checkpoint is no folder with files.
        """
        self._check_open()
        index = self.index
        if keep < 1:
            raise InputError(f"`keep` must be at least 1; got {keep}.")
        if checkpoint is not None or index["checkpoint"] is not None:
            folder = self.path / "checkpoints" / f"checkpoint-{step}"
            if checkpoint != folder.name:
                raise InputError(f"`checkpoint` must be {folder.name!r}, of the step; got {checkpoint!r}.")
            if not (folder.is_dir() and any(folder.iterdir())):
                raise InputError(f"`checkpoint` must be a folder with files; got {str(folder)!r}, which is not.")
            sync_tree(folder)
            sync(folder.parent)
            kept = [*(name for name in index["checkpoints"] if name != checkpoint), checkpoint][-keep:]
            index |= {"checkpoint": checkpoint, "checkpoints": kept}
        self._commit(step, index)

    def save_policy(self, write: Callable[[Path], None]) -> None:
        """Saves the final weights: ``write`` fills a folder, which then becomes `policy`; before `finish`.

        Raises:
            InputError: There is a policy.
        """
        self._check_open()
        target, made = self.path / "policy", self.path / f".policy.{secrets.token_hex(4)}"
        if target.exists():
            raise InputError(f"`write` must be given once a run; got another while {str(target)!r} is there.")
        try:
            with naming(made):
                made.mkdir()
                write(made)
            sync_tree(made)
            made = made.rename(target)
            sync(self.path)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise

    def finish(self, step: int) -> None:
        """Commits the rest as a run that cannot be resumed, and closes it.

        Raises:
            InputError: ``step`` is below that of a row.
        """
        self._check_open()
        self._commit(step, self.index | {"status": "finished"})
        self.close()

    def _commit(self, step: int, index: dict[str, Any]) -> None:
        last = max(self._last.values())
        if step < last:
            raise InputError(f"`step` must be at least {last}, that of the last row; got {step}.")
        rows = [row for row in pending_metrics(self.path) if row["step"] > self.index["step"]]
        if rows:
            write_pending(self.path, "metrics", rows[0]["step"], metrics_part(rows))
        sync(self.path / "pending")
        write_index(self.path, index | {"step": step})
        self._last, self._tail_size = dict.fromkeys(KINDS, step), 0
        sync(self.path)
        settle(self.path)

    def _check_open(self) -> None:
        if self._lock is None or not self._lock.held:
            raise StepCreditError(f"`store` must be open for writing; got one of {str(self.path)!r} that is not.")

    def _check_step(self, step: int, kind: str) -> None:
        if step <= self._last[kind]:
            raise InputError(f"`step` must be above {self._last[kind]}, the last with {kind} or a commit; got {step}.")
