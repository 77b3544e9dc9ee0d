"""The verb ``eval`` as its user runs it: policies by folder and by run, two against each other, one line an error."""

import json
from pathlib import Path
from typing import Any

import pytest

from stepcredit.cli import main
from stepcredit.runs.evaluate import evaluate
from stepcredit.runs.evaluation import compare
from stepcredit.runs.tiny import tiny_model, tiny_tokenizer
from stepcredit.tasks import Arithmetic

SMALL = ["--problems", "3", "--samples", "2", "--max-new-tokens", "6"]
TASK = ["--task", "arithmetic", "--task-set", "operations=2"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two policies on disk."""
    made = []
    for seed in (0, 1):
        made.append(str(tmp_path_factory.mktemp(f"policy{seed}")))
        tiny_model(seed).save_pretrained(made[-1])
        tiny_tokenizer().save_pretrained(made[-1])
    return made


def make_run(folder: Path, where: str, policy: str, *, checkpoint: Any = None, config: str = "") -> str:
    """A run's directory with the policy at ``where`` in it."""
    (folder / where).parent.mkdir(parents=True, exist_ok=True)
    (folder / where).symlink_to(policy)
    (folder / "index.json").write_text(json.dumps({"checkpoint": checkpoint}))
    default = '[task]\ntype = "arithmetic"\noperations = 2\n[trainer]\nmax_completion_length = 6\n'
    (folder / "config.toml").write_text(config or default)
    return str(folder)


def ran(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert main(["eval", *argv, "--json"]) == 0
    out: dict[str, Any] = json.loads(capsys.readouterr().out)
    return out


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["eval", *argv]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_it_equals_the_library(tmp_path: Path, capsys: pytest.CaptureFixture[str], folders: list[str]) -> None:
    out, summary = tmp_path / "rows.jsonl", tmp_path / "summary.json"
    argv = ["--against", folders[1], *TASK, *SMALL, "--seed", "4", "--out", str(out), "--summary", str(summary)]
    result = ran(capsys, folders[0], *argv)
    task = Arithmetic(operations=2)
    a, b = (
        evaluate(
            tiny_model(seed).double(),
            tiny_tokenizer(),
            task,
            task.examples("test", 3),
            samples=2,
            max_new_tokens=6,
            seed=4,
        )
        for seed in (0, 1)
    )
    want = {"policy": folders[0], **a.summary((1, 2)), "against": {"policy": folders[1], **b.summary((1, 2))}}
    assert {name: result[name] for name in want} == want
    assert result["difference"] == compare(b, a, (1, 2))  # the policy minus the other
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows == [{"policy": p, **row} for p, e in zip(folders, (a, b), strict=True) for row in e.table()]
    assert json.loads(summary.read_text()) == result


def test_a_policy_does_not_differ_from_itself(capsys: pytest.CaptureFixture[str], folders: list[str]) -> None:
    result = ran(capsys, folders[0], "--against", folders[0], *TASK, *SMALL, "--k", "2", "--batch-size", "2")
    assert all(d["mean"] == d["low"] == d["high"] == 0 for d in result["difference"]["metrics"].values())
    assert result["difference"]["metrics"]["pass@2"]["tied"] == 3


def test_the_table_has_a_line_a_metric(capsys: pytest.CaptureFixture[str], folders: list[str]) -> None:
    assert main(["eval", folders[0], "--against", folders[1], *TASK, *SMALL]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Arithmetic(operations=2, modulus=10): 3 problems, 2 samples at temperature 1 ")
    assert lines[0].endswith("up to 6 tokens, seed 0, float64 on cpu")
    assert lines[2].split()[0] == "metric"
    assert lines[2].split()[-1] == "difference"
    table = {line.split("  ")[0]: line for line in lines[3:]}
    assert {"pass@1", "pass@2", "greedy", "length", "length correct", "entropy", "merged steps"} <= set(table)
    assert table["pass@1"].count("[") == 3
    assert len({line.rindex("0.000 [") for line in (table["pass@1"], table["pass@2"], table["greedy"])}) == 1
    assert any(line == "pass@1 by problem: 0 won, 0 lost, 3 tied" for line in lines)
    assert lines[-1].startswith("took ")


@pytest.mark.parametrize(
    ("where", "checkpoint"),
    [
        ("policy", None),
        ("policy", 1),
        ("checkpoints/checkpoint-20", 20),
        ("checkpoints/checkpoint-20", "checkpoint-20"),
    ],
)
def test_a_run_brings_its_policy_task_and_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], folders: list[str], where: str, checkpoint: Any
) -> None:
    run = make_run(tmp_path, where, folders[0], checkpoint=checkpoint)
    result = ran(capsys, run, "--problems", "3", "--samples", "2")
    want = ran(capsys, folders[0], *TASK, *SMALL)
    assert {**result, "policy": 0, "seconds": 0} == {**want, "policy": 0, "seconds": 0}


def test_what_the_user_says_goes_before_what_the_run_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], folders: list[str]
) -> None:
    run = make_run(tmp_path, "policy", folders[0])
    result = ran(capsys, run, *SMALL[:-1], "4", "--task-set", "modulus=7")
    assert result["settings"]["task"] == "Arithmetic(operations=2, modulus=7)"
    assert result["settings"]["max_new_tokens"] == 4
    result = ran(capsys, run, *SMALL, "--task", "arithmetic", "--dtype", "float32")
    assert result["settings"]["task"] == "Arithmetic(operations=6, modulus=10)"
    assert result["settings"]["dtype"] == "float32"


def test_runs_with_other_tasks_need_one_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], folders: list[str]
) -> None:
    one = make_run(tmp_path / "one", "policy", folders[0])
    other = make_run(tmp_path / "other", "policy", folders[1], config='[task]\ntype = "arithmetic"\noperations = 3\n')
    assert "`--task` must be given where the two runs have different ones" in refused(capsys, one, "--against", other)
    assert ran(capsys, one, "--against", one, *SMALL)["settings"]["task"] == "Arithmetic(operations=2, modulus=10)"
    result = ran(capsys, one, "--against", other, *TASK, *SMALL)
    assert result["difference"]["problems"] == 3


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "`--task` must name a task, unless POLICY is a run's directory; got none"),
        (["--task", "arithmetics"], "did you mean arithmetic?"),
        ([*TASK, "--task-set", "operation=3"], "did you mean operations?"),
        ([*TASK, "--problems", "0"], "`--problems` must be at least 1; got 0"),
        ([*TASK, "--samples", "-1"], "`samples` must be at least 0; got -1"),
        ([*TASK, "--k", "1,x"], "`--k` must be whole numbers with commas between; got '1,x'"),
        ([*TASK, "--k", "9"], "`--k` must be from 1 to --samples, 8; got '9'"),
        ([*TASK, "--temperature", "-1"], "`temperature`"),
        ([*TASK, "--max-new-tokens", "600"], "the model's 512 positions"),
        ([*TASK, "--out", "rows.txt"], "`--out` must end in"),
        ([*TASK, "--summary", "nowhere/s.json"], "`--summary` must lie in a folder that exists"),
        ([*TASK, "--out", "a.jsonl", "--summary", "a.jsonl"], "must not be the same file as --out"),
    ],
)
def test_bad_arguments_are_one_line(
    capsys: pytest.CaptureFixture[str], folders: list[str], argv: list[str], said: str
) -> None:
    assert said in refused(capsys, folders[0], *argv)


def test_bad_runs_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], folders: list[str]) -> None:
    run = make_run(tmp_path / "a", "elsewhere", folders[0])
    assert "must be a run that has saved a policy" in refused(capsys, run)
    run = make_run(tmp_path / "b", "elsewhere", folders[0], checkpoint=7)
    assert "must be a run that has saved a policy" in refused(capsys, run)
    for i, config in enumerate(("[task\n", 'task = "arithmetic"\n', "trainer = 3\n")):
        run = make_run(tmp_path / f"c{i}", "policy", folders[0], config=config)
        assert "a readable index and config" in refused(capsys, run)
    assert "which is no folder" in refused(capsys, folders[0], "--against", str(tmp_path / "nowhere"), *TASK)


def test_nothing_is_written_when_the_comparison_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], folders: list[str]
) -> None:
    out = tmp_path / "rows.jsonl"
    (tmp_path / "empty").mkdir()
    refused(capsys, folders[0], "--against", str(tmp_path / "empty"), *TASK, *SMALL, "--out", str(out))
    assert list(tmp_path.iterdir()) == [tmp_path / "empty"]
