"""Groups split over processes get one process's credit, for every estimator; and what that moves is what is stated."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.multiprocessing as mp

import shard_worker
import stepcredit
from stepcredit import ESTIMATORS


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def on_ranks(work: Callable[..., None], ranks: int, folder: Path, *more: Any) -> None:
    """Runs work(rank, ranks, folder, *more) in as many processes; one rank's error is raised here."""
    context = mp.spawn(work, args=(ranks, str(folder), *more), nprocs=ranks, join=False)
    deadline = time.monotonic() + 600
    while not context.join(timeout=5):  # returns False at each rank's end, raises at a rank's error
        assert time.monotonic() < deadline, "a rank did not finish"


def test_every_estimator_has_its_main_options_split() -> None:
    assert set(shard_worker.MAIN_OPTIONS) == set(ESTIMATORS)


@pytest.mark.parametrize("ranks", [2, 4])
def test_shards_equal_the_whole(ranks: int, tmp_path: Path) -> None:
    on_ranks(shard_worker.compare, ranks, tmp_path)


def test_one_ranks_mistake_is_refused_on_all(tmp_path: Path) -> None:
    on_ranks(shard_worker.refuse, 3, tmp_path)


DOCUMENT = Path(__file__).parents[2] / "docs/scale.md"


def stated() -> dict[str, list[str]]:
    """The rows of the document's table of traffic: a call of an estimator, and the formulas beside it."""
    rows = re.findall(r"^\| `([A-Z][^`]*\([^`]*)` \| (.+) \|$", DOCUMENT.read_text(), re.MULTILINE)
    return {call: [cell.strip().strip("`") for cell in cells.split("|")] for call, cells in rows}


def evaluated(formula: str, sizes: dict[str, int]) -> int:
    return int(eval(re.sub(r"(?<=\w) (?=[a-z])", "*", formula), dict(sizes)))


def test_what_travels_is_what_is_stated(tmp_path: Path) -> None:
    rows = stated()
    calls = [re.sub(r", (steps|tokens)$", "", call) for call in rows]
    assert {eval(call, vars(stepcredit)).type for call in calls} == set(ESTIMATORS)
    ranks = 3
    on_ranks(shard_worker.measure, ranks, tmp_path, list(rows))
    seen = set()
    for rank in range(ranks):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert len(found) == 2 * len(rows)
        for one in found:
            moved = [*one["call"], *one["terms"]]
            assert moved == [evaluated(cell, one["sizes"]) for cell in rows[one["scheme"]]], (rank, one)
            seen.add(tuple(sorted(one["sizes"].items())))
    assert all(len({dict(sizes)[name] for sizes in seen}) > 1 for name in "nmp")
