"""Writes rows to JSON Lines or Parquet, whole or not at all."""

import gzip
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from stepcredit.errors import InputError, MissingExtraError

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")


def check_target(path: str | Path) -> None:
    """Refuses, before any work is done, a target that could not be written.

    Raises:
        InputError: The name has no known ending, or its folder does not exist.
        MissingExtraError: A Parquet target without pyarrow.
    """
    path = Path(path)
    if not path.name.endswith(SUFFIXES):
        raise InputError(f"`--out` must end in {', '.join(SUFFIXES)}; got {path.name!r}.")
    check_folder("--out", path)
    if path.name.endswith(".parquet"):
        _pyarrow()


def check_folder(option: str, path: str | Path) -> None:
    """Refuses a target whose folder does not exist, or that is a folder."""
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"`{option}` must lie in a folder that exists; got {str(path)!r}.")
    if path.is_dir():
        raise InputError(f"`{option}` must be a file; got the folder {str(path)!r}.")


def write_rows(path: str | Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows of plain values to a file whose ending says how; it appears whole or not at all.

    Raises:
        InputError: See `check_target`.
        OSError: The disk refused; what stood there before is untouched.
    """
    check_target(path)
    with replacing(path) as file:
        if str(path).endswith(".parquet"):
            pa, parquet = _pyarrow()
            parquet.write_table(pa.Table.from_pylist(list(rows)), file)
            return
        stream: Any = gzip.GzipFile(fileobj=file, mode="wb", mtime=0) if str(path).endswith(".gz") else file
        for row in rows:
            stream.write((json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass"))
        if stream is not file:
            stream.close()


@contextmanager
def replacing(path: str | Path) -> Iterator[IO[bytes]]:
    """A file beside ``path`` that takes its place at the end, if all went well."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp is private; a result is as readable as any other file
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "data", "write Parquet") from None
    return pyarrow, pyarrow.parquet
