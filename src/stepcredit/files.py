"""Files that appear whole or not at all: any file, and rows as JSON Lines or Parquet."""

import gzip
import json
import os
import shutil
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
        parquet_library()


def check_folder(option: str, path: str | Path) -> None:
    """Refuses a target whose folder does not exist, or that is a folder."""
    if not str(path):
        raise InputError(f"`{option}` must name a file; got an empty name.")
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"`{option}` must lie in a folder that exists; got {str(path)!r}.")
    if path.is_dir():
        raise InputError(f"`{option}` must be a file; got the folder {str(path)!r}.")


def write_rows(path: str | Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows of plain values to a file whose ending says how; it appears whole or not at all.

    Raises:
        InputError: See `check_target`; or a row's text cannot be written in that format.
        OSError: The disk refused; what stood there before is untouched.
    """
    check_target(path)
    with replacing(path) as file:
        dump_rows(file, path, rows)


def dump_rows(file: IO[bytes], path: str | Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows to an open file, in the format that the ending of ``path`` names."""
    if str(path).endswith(".parquet"):
        pa, parquet = parquet_library()
        try:
            parquet.write_table(pa.Table.from_pylist(list(rows)), file)
        except UnicodeEncodeError as error:
            raise InputError(
                f"`--out` must be .jsonl for text with lone surrogates, which Parquet cannot hold; {error.reason}."
            ) from None
        return
    stream: Any = gzip.GzipFile(fileobj=file, mode="wb", mtime=0) if str(path).endswith(".gz") else file
    for row in rows:
        stream.write(_line(row))
    if stream is not file:
        stream.close()


def _line(row: dict[str, Any]) -> bytes:
    try:
        return (json.dumps(row, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # a lone surrogate: no UTF-8 has it, an escape does
        return (json.dumps(row) + "\n").encode()


@contextmanager
def replacing(path: str | Path) -> Iterator[IO[bytes]]:
    """A file beside ``path`` that takes its place at the end, if all went well.

    Raises:
        OSError: Names ``path`` and why it could not be written.
    """
    path = Path(path)
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp is private; a result is as readable as any other file
        os.replace(temporary, path)
    except BaseException as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Lets an error of the system name ``path`` where it names no file: a write to an open file does not.

    Raises:
        OSError: Names the file that it named before, else ``path``.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None


def sync(path: str | Path) -> None:
    """Puts a file's content, or a folder's list of names, on the disk; after this a power cut does not undo it."""
    with naming(path):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sync_tree(folder: str | Path) -> None:
    """`sync` for everything in a folder, then for the folder itself."""
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(root, name))
        sync(root)


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """A folder beside the target that takes its name at the end, if all went well.

    Raises:
        InputError: The target exists, or its parent does not.
        OSError: The disk refused; nothing is left behind.
    """
    check_new_folder(folder)
    target = Path(folder)
    made = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        yield made
        umask = os.umask(0)
        os.umask(umask)
        for path in (made, *made.iterdir()):  # what was made private is as readable as any other result
            path.chmod((0o777 if path is made else 0o666) & ~umask)
        sync_tree(made)
        check_new_folder(folder)
        made.rename(target)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def check_new_folder(folder: str | Path) -> None:
    """Refuses, before any work is done, a folder that could not be made.

    Raises:
        InputError: It exists, or its parent does not.
    """
    path = Path(folder)
    if not str(folder) or path.exists() or path.is_symlink():
        raise InputError(f"`--out` must name a folder that does not exist yet; got {str(folder)!r}.")
    if not path.parent.is_dir():
        raise InputError(f"`--out` must lie in a folder that exists; got {str(folder)!r}.")


def parquet_library() -> tuple[Any, Any]:
    """The modules `pyarrow` and `pyarrow.parquet`.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "data", "read or write Parquet") from None
    return pyarrow, pyarrow.parquet
