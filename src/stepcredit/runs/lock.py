"""The lock of a run: one process writes it at a time."""

import fcntl
import os
import weakref
from pathlib import Path

from stepcredit.errors import InputError
from stepcredit.files import naming


class RunLock:
    """Holds a run's lock file until `close` or the end of the process, however that comes.

    Not in a fork: a worker that loads data may outlive a killed trainer, and must not keep it from being resumed.

    Args:
        path: The run's folder.

    Raises:
        InputError: Another process, or another store in this one, holds it.
    """

    def __init__(self, path: Path) -> None:
        self._file = (path / "lock").open("ab")
        try:
            with naming(path / "lock"):
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException as error:
            self._file.close()
            if isinstance(error, BlockingIOError):
                raise InputError(f"`path` must be a run that nobody else writes; got {str(path)!r}, in use.") from None
            raise
        _held.add(self)

    @property
    def held(self) -> bool:
        """Whether it is held still."""
        return not self._file.closed

    def close(self) -> None:
        """Lets go; again is no error."""
        self._file.close()


_held: weakref.WeakSet[RunLock] = weakref.WeakSet()


def _close_all() -> None:
    for lock in _held:
        lock.close()


os.register_at_fork(after_in_child=_close_all)
