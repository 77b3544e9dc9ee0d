"""Timing signals: both ways give the same numbers, turns are taken, and memory is what a process really took."""

import gzip
import json
from pathlib import Path

import pytest

from stepcredit.cli import main
from stepcredit.errors import StepCreditError
from stepcredit.lab.bench.memory import peak_memory
from stepcredit.lab.bench.paired_times import paired_times
from stepcredit.lab.bench.texts import made_solutions, read_solutions

SMALL = ["--rows", "10", "--repeats", "1", "--width", "32", "--layers", "1", "--vocabulary", "4000"]
DATA = Path(__file__).parents[2] / "../shared/data/processbench/gsm8k.json.gz"


def test_the_verb_compares_ways_that_agree(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    assert main(["bench", "signals", *SMALL, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["data"]["rows"] == 10
    assert 0 < found["data"]["padding"] < 1
    for name in ("scores", "logprobs"):
        part = found[name]
        assert part["greatest_difference"] < 1e-5
        assert part["ratio"]["least"] <= part["ratio"]["median"] <= part["ratio"]["greatest"]
    seconds = found["scores"]["seconds"]["ours"]["median"]
    assert found["scores"]["tokens_a_second"]["ours"] == pytest.approx(found["data"]["tokens"] / seconds)
    # whole logits of 8 solutions of 200 tokens and more: 8 * 200 * 4000 * 4 bytes = 26 MB; a chunk's are 4 MB a copy
    assert found["logprobs"]["peak_bytes"]["plain"] > 20e6
    assert found["logprobs"]["peak_ratio"] > 1


def test_peak_memory_is_what_the_work_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    ballast = bytearray(b"x" * 2**20) * 300  # this process's own memory is not the work's
    found = peak_memory("memory_worker", "filling", {"megabytes": 64}) / 2**20
    assert 63 < found < 75
    assert len(ballast) == 300 * 2**20
    with pytest.raises(StepCreditError, match=r"measuring nothing failed: AttributeError"):
        peak_memory("memory_worker", "nothing", {})


def test_turns_alternate_after_one_run_for_nothing() -> None:
    seen: list[str] = []
    times = paired_times({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, repeats=3)
    assert "".join(seen) == "ab" + "ab" + "ba" + "ab"
    assert {name: len(taken) for name, taken in times.items()} == {"a": 3, "b": 3}


def test_made_solutions_are_ragged_and_the_same_again() -> None:
    rollouts = made_solutions(200)
    assert rollouts.completions == made_solutions(200).completions
    lengths = sorted(len(text) for text in rollouts.completions)
    assert lengths[180] > 2.5 * lengths[100] > 5 * lengths[10]
    for text, steps in zip(rollouts.completions, rollouts.steps, strict=True):
        assert "\n".join(text[start:end] for start, end in steps) == text
        assert all(text[start:end].strip() for start, end in steps)


def test_real_solutions_come_in_the_files_order() -> None:
    if not DATA.exists():
        pytest.skip("the data folder is absent: no processbench")
    with gzip.open(DATA, "rt", encoding="utf-8") as file:
        rows = json.load(file)[:5]
    rollouts = read_solutions(DATA, 5)
    assert rollouts.prompts == [row["problem"] for row in rows]
    assert [
        [text[a:b] for a, b in steps] for text, steps in zip(rollouts.completions, rollouts.steps, strict=True)
    ] == [row["steps"] for row in rows]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rows", "0"], "`rows` must be at least 1; got 0"),
        (["--width", "40", "--rows", "2"], "`width` must be a multiple of 32; got 40"),
        (["--data", "/no/such.jsonl"], "such.jsonl"),
    ],
)
def test_refusals_are_one_line(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    pytest.importorskip("transformers")
    assert main(["bench", "signals", *words]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
