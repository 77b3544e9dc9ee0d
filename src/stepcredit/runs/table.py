"""Rows of a run as Parquet: the metrics of its steps, and rollouts with their nested lists."""

import io
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from stepcredit.errors import InputError
from stepcredit.files import parquet_library

Row = dict[str, Any]


def metrics_row(step: int, values: Mapping[str, float | None]) -> Row:
    """One row of metrics: the step, then each value as a float.

    Raises:
        InputError: A name is empty, not printable or ``step``; a value is no number.

    Degenerate cases: nan and the infinities stay what they are, for a metric that ran away is a finding; None is no
    value.

    Example:
        >>> metrics_row(3, {"loss": 2, "kl": None})
        {'step': 3, 'loss': 2.0, 'kl': None}
    """
    row: Row = {"step": step}
    for name, value in values.items():
        if not name.isprintable() or name.lower() in ("", "step"):
            raise InputError(f'`values` must have printable names other than "step"; got {name!r}.')
        if not (value is None or isinstance(value, Real)):
            raise InputError(f"`values` must hold numbers or None; got {name} = {value!r:.80}.")
        row[name] = None if value is None else float(value)
    return row


def metrics_part(rows: Sequence[Row]) -> bytes:
    """A Parquet file of metrics: ``step`` as int64, the others as float64; null where a row has no such metric."""
    pa, _ = parquet_library()
    names = dict.fromkeys(name for row in rows for name in row)
    types = {name: pa.int64() if name == "step" else pa.float64() for name in names}
    return _encoded({name: pa.array([row.get(name) for row in rows], types[name]) for name in names})


def rollouts_part(step: int, rows: Sequence[Mapping[str, Any]]) -> bytes:
    """A Parquet file of rollouts: ``step``, then the columns of the rows; null where a row has no such column.

    Raises:
        InputError: A row has a ``step`` of its own, or holds what Parquet cannot: two kinds of values in a column,
            an empty dict, text with lone surrogates.
    """
    pa, _ = parquet_library()
    names = dict.fromkeys(name for row in rows for name in row)
    if "step" in names:
        raise InputError('`rows` must have no column "step", which is added; got one that has.')
    try:
        columns = {name: pa.array([row.get(name) for row in rows]) for name in names}
        return _encoded({"step": pa.array([step] * len(rows), pa.int64()), **columns})
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise InputError(f"`rows` must hold what Parquet can; got {type(error).__name__}: {error}.") from None


def read_part(path: Path) -> list[Row]:
    """The rows of one part.

    Raises:
        InputError: It is no whole Parquet file.
        FileNotFoundError: There is none.
    """
    pa, parquet = parquet_library()
    try:
        table = parquet.ParquetFile(pa.BufferReader(path.read_bytes())).read(use_threads=False)  # parts are small
    except pa.ArrowException as error:
        raise InputError(f"`path` must hold whole Parquet files; got {str(path)!r}: {error}.") from None
    rows: list[Row] = table.to_pylist()
    return rows


def _encoded(columns: dict[str, Any]) -> bytes:
    pa, parquet = parquet_library()
    buffer = io.BytesIO()
    parquet.write_table(pa.table(columns), buffer)
    return buffer.getvalue()
