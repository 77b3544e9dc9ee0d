"""Two processes that share a group train on the credit of one process, and log its numbers."""

import socket
import time
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from trl_worker import ROWS, STEPS, runs, train

RANKS = 2


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What one process wrote, and what each of two did."""
    out = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("TOKENIZERS_PARALLELISM", "false")
        context = mp.spawn(train, args=(RANKS, port, str(out)), nprocs=RANKS, join=False)
    train(0, 1, 0, str(out))
    deadline = time.monotonic() + 900
    while not context.join(timeout=5):  # returns False at each rank's end, raises at a rank's error
        assert time.monotonic() < deadline, "a rank did not finish"
    load = lambda name: torch.load(out / f"{name}.pt", weights_only=False)  # noqa: E731
    return load("1-0"), [load(f"2-{rank}") for rank in range(RANKS)]


@pytest.mark.parametrize("run", runs())
def test_credit_is_that_of_one_process(run: str, records: Any) -> None:
    alone, shared = records[0][run], [record[run] for record in records[1]]
    assert len(alone["steps"]) == STEPS
    for at, whole in enumerate(alone["steps"]):
        parts = [record["steps"][at] for record in shared]
        for name in ("prompts", "ids"):
            assert [x for part in parts for x in part[name]] == whole[name]
        credit = [row for part in parts for row in part["credit"]]
        assert len(credit) == ROWS
        assert credit == [pytest.approx(row, abs=2e-5) for row in whole["credit"]]
        assert any(any(row) for row in credit)
        assert parts[0]["prompts"][-1] == parts[1]["prompts"][0]  # a group over both


@pytest.mark.parametrize("run", runs())
def test_the_numbers_that_are_logged_are_those_of_one_process(run: str, records: Any) -> None:
    alone = records[0][run]
    for shared in (record[run] for record in records[1]):
        assert shared["logged"] == pytest.approx(alone["logged"], abs=2e-5)
        for got, want in zip(shared["history"], alone["history"], strict=True):
            names = {name for name in want if name.startswith("credit/")} - {"credit/seconds"}
            assert names == {name for name in got if name.startswith("credit/")} - {"credit/seconds"}
            assert len(names) > 10
            for name in names:
                assert got[name] == pytest.approx(want[name], abs=2e-5), name


@pytest.mark.parametrize("run", runs())
def test_the_policy_becomes_that_of_one_process(run: str, records: Any) -> None:
    alone = records[0][run]
    for shared in (record[run] for record in records[1]):
        for name, x in alone["weights"].items():
            torch.testing.assert_close(shared["weights"][name], x, rtol=0, atol=1e-5)


def test_the_ranks_pad_to_different_widths(records: Any) -> None:
    widths = [{step["width"] for step in record["grpo"]["steps"]} for record in records[1]]
    assert widths[0] != widths[1]
    assert ROWS // RANKS % 4 != 0  # so that a group is split
    assert any(row["credit/excluded_rows"] for row in records[0]["gdpo"]["history"])


def test_a_signal_that_fails_on_one_rank_ends_them_all(records: Any) -> None:
    first, second = (record["refused"] for record in records[1])
    assert second == "OSError: no route to the server"
    assert first.startswith("InputError: ")
