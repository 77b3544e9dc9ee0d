"""A run's store: what each call takes and refuses, and that what went in comes out."""

import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from stepcredit import InputError, MissingExtraError, StepCreditError
from stepcredit.runs.store import RunStore
from store_worker import CONFIG, check_finished, rollouts, train, write_checkpoint


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting for the disk."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def test_uninterrupted(tmp_path: Path) -> None:
    train(tmp_path / "run", 5)
    check_finished(tmp_path / "run", 5)


def test_create_takes_no_place_that_is_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    RunStore.create(tmp_path / "empty", CONFIG).close()
    RunStore.create(str(tmp_path / "new" / "run"), CONFIG).close()
    (tmp_path / "file").write_text("")
    for name in ("empty", "file", "new"):
        with pytest.raises(InputError, match="`path` must be new, or an empty folder; got"):
            RunStore.create(tmp_path / name, CONFIG)
    assert {x.name for x in tmp_path.iterdir()} == {"empty", "new", "file"}


@pytest.mark.parametrize("index", [None, "", "[]", "{}", '{"format": 2, "status": "resting"}'])
def test_what_is_no_run(tmp_path: Path, index: str | None) -> None:
    if index is not None:
        (tmp_path / "index.json").write_text(index)
    rule = "of format 1; got format 2. Update stepcredit" if index and "format" in index else "must be a run; got"
    for door in (RunStore.open, RunStore.resume):
        with pytest.raises(InputError, match=rule):
            door(tmp_path)
    assert not (tmp_path / "lock").exists()


def test_steps_run_forward(tmp_path: Path, quick: None) -> None:
    with RunStore.create(tmp_path / "run", CONFIG) as store:
        with pytest.raises(InputError, match="`step` must be above 0, the last with metrics or a commit; got 0"):
            store.add_metrics(0, {})
        store.add_metrics(2, {})
        store.add_rollouts(1, rollouts(1))
        for step in (1, 2):
            with pytest.raises(InputError, match=f"`step` must be above 2, .*; got {step}"):
                store.add_metrics(step, {})
        with pytest.raises(InputError, match="`step` must be above 1, the last with rollouts or a commit; got 1"):
            store.add_rollouts(1, rollouts(1))
        with pytest.raises(InputError, match="`step` must be at least 2, that of the last row; got 1"):
            store.finish(1)
        store.commit(4, None)
        for add in (store.add_metrics, store.add_rollouts):
            with pytest.raises(InputError, match="`step` must be above 4"):
                add(4, {})  # type: ignore[operator]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"step": 1.0}, r'`values` must have printable names other than "step"; got \'step\''),
        ({"Step": 1.0}, "printable"),
        ({"": 1.0}, "printable"),
        ({"a\ud800": 1.0}, "printable"),
        ({"loss": "1"}, "`values` must hold numbers or None; got loss = '1'"),
    ],
)
def test_metrics_that_are_refused(tmp_path: Path, quick: None, values: dict[str, Any], message: str) -> None:
    with RunStore.create(tmp_path / "run", CONFIG) as store:
        with pytest.raises(InputError, match=message):
            store.add_metrics(1, values)
        store.add_metrics(1, {})
        assert store.metrics() == [{"step": 1}]


@pytest.mark.parametrize("committed", [False, True])
def test_metrics_that_are_no_plain_number(tmp_path: Path, quick: None, committed: bool) -> None:
    with RunStore.create(tmp_path / "run", CONFIG) as store:
        store.add_metrics(1, {"a": math.nan, "b": -math.inf, "c": None, "d": True})
        store.add_metrics(3, {"e/f g": 10**3})
        if committed:
            store.commit(3, None)
        first, last = store.metrics()
    assert math.isnan(first.pop("a"))
    assert first == {"step": 1, "b": -math.inf, "c": None, "d": 1.0, "e/f g": None}
    assert last == {"step": 3, "a": None, "b": None, "c": None, "d": None, "e/f g": 1000.0}


@pytest.mark.parametrize(
    "bad", [{"step": 1}, {"a": {}}, {"text": "\ud800"}, {"a": object()}, {"a": 10**30}, {"reward": "x"}]
)
def test_rollouts_that_are_refused(tmp_path: Path, quick: None, bad: dict[str, Any]) -> None:
    with RunStore.create(tmp_path / "run", CONFIG) as store:
        with pytest.raises(InputError, match="`rows` must"):
            store.add_rollouts(1, [{"reward": 1.0}, bad])
        store.add_rollouts(1, [{"reward": 1.0}, {"reward": 2, "terms": {"x": [1.0]}}])
        assert list(store.rollouts(2)) == []
        terms = [None, {"x": [1.0]}]
        assert list(store.rollouts(1)) == [{"step": 1, "reward": i + 1.0, "terms": terms[i]} for i in range(2)]


def test_commit_checks_its_arguments(tmp_path: Path, quick: None) -> None:
    with RunStore.create(tmp_path / "run", CONFIG) as store:
        for step in (1, 2, 3, 4):
            write_checkpoint(store, step)
        (store.path / "checkpoints" / "checkpoint-5").mkdir()
        for name, message in (
            ("checkpoint-5", "must be a folder with files"),
            ("checkpoint-4", "must be 'checkpoint-5', of the step; got 'checkpoint-4'"),
        ):
            with pytest.raises(InputError, match=message):
                store.commit(5, name)
        with pytest.raises(InputError, match="`keep` must be at least 1; got 0"):
            store.commit(1, "checkpoint-1", keep=0)
        store.commit(1, "checkpoint-1")
        assert store.index["checkpoints"] == ["checkpoint-1"]
        assert {x.name for x in (store.path / "checkpoints").iterdir()} == {"checkpoint-1"}
        for step in (2, 3):
            write_checkpoint(store, step)
            store.commit(step, f"checkpoint-{step}")
        store.commit(3, "checkpoint-3")
        assert {x.name for x in (store.path / "checkpoints").iterdir()} == {"checkpoint-2", "checkpoint-3"}
        with pytest.raises(InputError, match="`checkpoint` must be 'checkpoint-4', of the step; got None"):
            store.commit(4, None)


def test_evaluations_are_never_overwritten(tmp_path: Path, quick: None) -> None:
    with RunStore.create(tmp_path / "run", CONFIG) as store:
        store.finish(0)
    reader = RunStore.open(tmp_path / "run")
    files = [reader.add_eval("step-0.math", {"n": n}).name for n in range(3)]
    assert files == ["step-0.math.json", "step-0.math-2.json", "step-0.math-3.json"]
    assert reader.evals() == {"step-0.math": {"n": 0}, "step-0.math-2": {"n": 1}, "step-0.math-3": {"n": 2}}
    for name in ("", "../x", ".x", "a b", "a/b", "ä"):
        with pytest.raises(InputError, match=r"`name` must be letters, digits and ._-; got"):
            reader.add_eval(name, {})
    for result in ({"x": math.nan}, {"x": object()}):
        with pytest.raises(InputError, match="`result` must be plain values that JSON has"):
            reader.add_eval("x", result)
    assert len(list((reader.path / "evals").iterdir())) == 3


def test_who_may_write(tmp_path: Path, quick: None) -> None:
    with RunStore.create(tmp_path / "run", CONFIG) as store:
        store.save_policy(lambda folder: (folder / "model").write_text("1"))
        with pytest.raises(InputError, match=r"`write` must be given once a run; got another while .*policy' is there"):
            store.save_policy(print)
        store.finish(0)
    for shut in (store, RunStore.open(tmp_path / "run")):
        for call in (
            lambda store: store.add_metrics(1, {}),
            lambda store: store.add_rollouts(1, []),
            lambda store: store.commit(1, None),
            lambda store: store.finish(1),
            lambda store: store.save_policy(print),
        ):
            with pytest.raises(
                StepCreditError, match=r"`store` must be open for writing; got one of .*run' that is not"
            ):
                call(shut)
    assert (tmp_path / "run" / "policy" / "model").read_text() == "1"


def test_duckdb_and_pandas_read_the_parts(tmp_path: Path, quick: None) -> None:
    duckdb, pd = pytest.importorskip("duckdb"), pytest.importorskip("pandas")
    train(tmp_path / "lr=0.1" / "run", 9)
    path = tmp_path / "lr=0.1" / "run"
    table = duckdb.sql(f"select * from read_parquet('{path}/metrics/*.parquet', union_by_name=true) order by step")
    names = [name for name in table.columns if name != "lr"]  # DuckDB reads a folder's name as a column
    assert [dict(zip(names, row, strict=False)) for row in table.fetchall()] == RunStore.open(path).metrics()
    nested = duckdb.sql(
        f"select step, terms.process[1] from read_parquet('{path}/rollouts/*.parquet', union_by_name=true)"
    )
    assert sorted(set(nested.fetchall())) == [(step, 1 / step) for step in (1, 3, 5, 7, 9)]
    frame = pd.concat(map(pd.read_parquet, sorted((path / "metrics").glob("*.parquet"))))
    assert frame["step"].tolist() == list(range(1, 10))
    assert frame["loss"].dtype == frame["eval_reward"].dtype == "float64"
    assert pd.read_parquet(path / "rollouts")["step"].nunique() == 5


def test_a_part_that_is_no_parquet(tmp_path: Path, quick: None) -> None:
    train(tmp_path / "run", 3)
    (tmp_path / "run" / "metrics" / "metrics-00000001.parquet").write_bytes(b"half")
    with pytest.raises(InputError, match=r"`path` must hold whole Parquet files; got .*metrics-00000001.parquet'"):
        RunStore.open(tmp_path / "run").metrics()


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for door in (lambda path: RunStore.create(path, CONFIG), RunStore.resume):
        with pytest.raises(
            MissingExtraError, match=r"`pyarrow` is needed to read or write Parquet; .*stepcredit\[data\]"
        ):
            door(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
