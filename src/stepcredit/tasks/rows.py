"""Reads the rows of a local data file, JSON Lines, a JSON array or Parquet, each also gzipped."""

import gzip
import io
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

from stepcredit.errors import InputError, MissingExtraError

Row = dict[str, Any]
SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")


def read_rows(path: str | Path, limit: int | None = None) -> list[Row]:
    r"""Reads a file's rows, in order, each a mapping from field names to values.

    The name chooses the reader: ``.jsonl`` and ``.ndjson`` hold one JSON object a line, ``.json`` an array of
    objects (or, as many published files do, one object a line), ``.parquet`` a table; ``.gz`` may follow.

    Args:
        path: The file.
        limit: Read at most this many rows, at least 1; the rest of a line-based file is never parsed.

    Returns:
        The rows; never empty.

    Raises:
        InputError: The file is missing, of another kind, cut short, not UTF-8, empty, or has a row that is not
            a JSON object. The message names the file and the row, counted from 1.
        MissingExtraError: A Parquet file without pyarrow.

    Degenerate cases:
        Blank lines of a line-based file are no rows, but count in the line that an error names.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "two.jsonl"
        ...     _ = path.write_text('{"question": "1+1", "answer": 2}\n{"question": "2+2", "answer": 4}\n')
        ...     [row["answer"] for row in read_rows(path)]
        [2, 4]
    """
    path = Path(path)
    if limit is not None and limit < 1:
        raise InputError(f"`limit` must be at least 1 row, or None for all; got {limit}.")
    if not path.is_file():
        raise InputError(f"`path` must be a file that exists; got {str(path)!r}. Check the name.")
    zipped = path.suffix == ".gz"
    suffix = Path(path.stem).suffix if zipped else path.suffix
    if suffix not in SUFFIXES:
        kinds = ", ".join(SUFFIXES)
        raise InputError(f"`path` must end in one of {kinds}, with or without .gz; got {path.name!r}.")
    open_as: Callable[..., IO[Any]] = gzip.open if zipped else open
    try:
        if suffix == ".parquet":
            with open_as(path, "rb") as file:
                read = list(islice(_parquet(file.read(), path), limit))
        else:
            with open_as(path, "rt", encoding="utf-8-sig") as text:
                read = list(islice(_json(text, path, suffix == ".json"), limit))
    except (EOFError, OSError, UnicodeDecodeError) as error:
        raise InputError(f"`path` must be a readable file; {path} is damaged or of another kind: {error}.") from error
    if not read:
        raise InputError(f"`path` must have at least one row; {path} is empty.")
    return read


def _json(text: IO[str], path: Path, maybe_array: bool) -> Iterator[Row]:
    lines: Iterable[str] = text
    if maybe_array:
        whole = text.read()
        if whole.lstrip().startswith("["):
            yield from _array(whole, path)
            return
        lines = io.StringIO(whole)
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _object(_parsed(line, path, f"line {number}"), path, f"line {number}")


def _array(whole: str, path: Path) -> Iterator[Row]:
    for number, row in enumerate(_parsed(whole, path, "the array"), 1):
        yield _object(row, path, f"row {number}")


def _parsed(text: str, path: Path, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"`path` must hold valid JSON; got {path}, {where}: {error}.") from error


def _object(value: Any, path: Path, where: str) -> Row:
    if not isinstance(value, dict):
        raise InputError(f"`path` must hold JSON objects; got a {type(value).__name__} in {path}, {where}.")
    return value


def _parquet(content: bytes, path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "data", "read Parquet files") from error
    try:
        table = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content))
        for batch in table.iter_batches():
            yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise InputError(f"`path` must be a Parquet file; got {path}: {error}.") from error
