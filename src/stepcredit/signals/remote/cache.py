"""Numbers that were paid for, kept in a file by what they were computed from."""

import hashlib
import json
import sqlite3
import struct
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stepcredit.errors import InputError, StepCreditWarning
from stepcredit.files import check_folder

APPLICATION = 0x73634E75  # marks the file as this cache, in SQLite's own header
BUSY = 60.0  # seconds to wait for another process that writes
AT_ONCE = 500  # keys in one query
Key = bytes


def content_key(identity: Mapping[str, Any], ids: Sequence[int], marks: Sequence[int]) -> Key:
    """The SHA-256 of all that decides an input's numbers: what is asked of which model, its ids and its marks."""
    text = json.dumps([dict(identity), list(ids), list(marks)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).digest()


class Cache:
    """A SQLite file in WAL mode: several processes of one machine may read and write it at once.

    Args:
        path: The file; made if it is not there. Not on a network file system, where WAL does not work.

    Raises:
        InputError: Its folder does not exist, or the file is damaged or something else.
        OSError: The disk is full.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path).expanduser()
        check_folder("cache", self._path)
        begun = time.monotonic()
        while (
            True
        ):  # two processes that make the file at once: one may find it locked in a way that SQLite won't wait for
            try:
                self._prepare()
                return
            except _LockedError:
                if time.monotonic() - begun > BUSY:
                    raise
                time.sleep(0.02)

    def take(self, counts: Mapping[Key, int]) -> dict[Key, list[float]]:
        """The numbers kept under keys, where there are any.

        Args:
            counts: For each key how many numbers belong to it.

        Returns:
            The entries that are there and whole. One that fails its checksum, or has another length, is left out with
            a `StepCreditWarning`; the next `keep` replaces it.
        """
        found: dict[Key, list[float]] = {}
        damaged, keys = 0, list(counts)
        with self._open() as database:
            for first in range(0, len(keys), AT_ONCE):
                some = keys[first : first + AT_ONCE]
                places = ",".join("?" * len(some))
                query = f"SELECT key, content, proof FROM numbers WHERE key IN ({places})"  # noqa: S608  # marks only
                for key, content, proof in database.execute(query, some):
                    if proof == _proof(key, content) and len(content) == 8 * counts[key]:
                        found[key] = list(struct.unpack(f"<{counts[key]}d", content))
                    else:
                        damaged += 1
        if damaged:
            warnings.warn(
                f"{damaged} entries of the cache {str(self._path)!r} are damaged; their numbers are asked for again.",
                StepCreditWarning,
                stacklevel=2,
            )
        return found

    def keep(self, numbers: Mapping[Key, Sequence[float]]) -> None:
        """Keeps numbers under keys, replacing what is there; all of them or, if the process dies, none."""
        with self.keeper() as keep:
            keep(numbers)

    @contextmanager
    def keeper(self) -> Iterator[Callable[[Mapping[Key, Sequence[float]]], None]]:
        """`keep` with the file held open: its disk is waited for once, at the end, and other processes are not."""
        with self._open() as database:

            def keep(numbers: Mapping[Key, Sequence[float]]) -> None:
                rows = []
                for key, values in numbers.items():
                    content = struct.pack(f"<{len(values)}d", *values)
                    rows.append((key, content, _proof(key, content)))
                with database:
                    database.executemany("INSERT OR REPLACE INTO numbers VALUES (?, ?, ?)", rows)

            yield keep

    def _prepare(self) -> None:
        with self._open() as database:
            (mode,) = database.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise InputError(f"`cache` must be on a disk that SQLite can share (WAL); got {str(self._path)!r}.")
            database.execute("BEGIN IMMEDIATE")
            (kind,) = database.execute("PRAGMA application_id").fetchone()
            (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if kind != APPLICATION and (kind or tables):
                raise InputError(f"`cache` must be a cache of this package; got another database, {str(self._path)!r}.")
            if not tables:
                database.execute("CREATE TABLE numbers (key BLOB PRIMARY KEY, content BLOB, proof BLOB) WITHOUT ROWID")
                database.execute(f"PRAGMA application_id = {APPLICATION}")
            database.execute("COMMIT")

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection for one piece of work: none outlives a fork or crosses a thread."""
        database = None
        try:
            database = sqlite3.connect(self._path, timeout=BUSY)
            database.execute("PRAGMA synchronous = NORMAL")
            yield database
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise _LockedError(f"`cache` must be free to write; {str(self._path)!r} stays locked.") from error
            if code == sqlite3.SQLITE_FULL:
                raise OSError(28, "No space left on device", str(self._path)) from error
            raise InputError(
                f"`cache` must be an intact file; got {str(self._path)!r}: {error}. Remove it to compute all again."
            ) from error
        finally:
            if database is not None:
                database.close()


class _LockedError(InputError):
    """Another process held the file for longer than SQLite waits."""


def _proof(key: Key, content: bytes) -> bytes:
    return hashlib.sha256(key + content).digest()[:16]
