import gzip
import json
import sys

import pytest

from stepcredit.errors import InputError, MissingExtraError
from stepcredit.tasks.rows import read_rows

ROWS = [{"question": "1+1?", "answer": "2"}, {"question": "é 数", "answer": "4"}, {"question": "3+3?", "answer": "6"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def write(folder, name, content):
    path = folder / name
    raw = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return path


def parquet_bytes():
    import pyarrow
    import pyarrow.parquet

    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("zipped", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINES),
        ("a.ndjson", "\n" + LINES.replace("\n", "\n\n")),
        ("a.json", json.dumps(ROWS, indent=2)),
        ("a.json", LINES),
        ("a.jsonl", "\ufeff" + LINES),
        ("a.parquet", None),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path, name, content, zipped):
    path = write(tmp_path, name + zipped, parquet_bytes() if content is None else content)
    assert read_rows(path) == ROWS
    assert read_rows(str(path), limit=2) == ROWS[:2]
    assert read_rows(path, limit=99) == ROWS


def test_rows_past_the_limit_are_never_parsed(tmp_path):
    path = write(tmp_path, "a.jsonl", LINES + "{broken\n")
    assert read_rows(path, limit=3) == ROWS
    with pytest.raises(InputError, match=r"valid JSON; got .*a\.jsonl, line 4: "):
        read_rows(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "at least one row; .*a.jsonl is empty"),
        ("a.jsonl", "\n \n", "is empty"),
        ("a.json", "[]", "is empty"),
        ("a.jsonl", "{}\n[1]\n", "JSON objects; got a list in .*, line 2"),
        ("a.json", '[{"a": 1}, 3]', "JSON objects; got a int in .*, row 2"),
        ("a.json", '[{"a": 1}', "valid JSON; got .*, the array"),
        ("a.jsonl", '{"a": ' + "[" * 100_000, "valid JSON; got .*, line 1"),
        ("a.jsonl", b"\xff\xfe\x00", "damaged or of another kind"),
        ("a.parquet", b"no table", "must be a Parquet file"),
        ("a.txt", "a", r"must end in one of .jsonl, .ndjson, .json, .parquet, with or without .gz; got 'a.txt'"),
        ("a.gz", "a", "must end in one of"),
    ],
)
def test_a_bad_file_is_one_clear_error(tmp_path, name, content, message):
    with pytest.raises(InputError, match=message):
        read_rows(write(tmp_path, name, content))


def test_a_cut_or_false_gzip_is_damaged(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(LINES.encode())[:-12])
    with pytest.raises(InputError, match="damaged or of another kind"):
        read_rows(path)
    path.write_bytes(LINES.encode())
    with pytest.raises(InputError, match="damaged or of another kind: Not a gzipped file"):
        read_rows(path)


def test_missing_file_and_bad_limit(tmp_path):
    with pytest.raises(InputError, match=r"`path` must be a file that exists; got '.*none\.jsonl'"):
        read_rows(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="`limit` must be at least 1 row, or None for all; got 0"):
        read_rows(write(tmp_path, "a.jsonl", LINES), limit=0)


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    path = write(tmp_path, "a.parquet", b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"`pyarrow` is needed to read Parquet files; .*stepcredit\[data\]"):
        read_rows(path)
