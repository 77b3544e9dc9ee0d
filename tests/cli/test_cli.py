"""The verbs as their user runs them: files in, files out, one line for every error."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import stepcredit as sc
from stepcredit.cli import main

STEPS = [{"end": 7, "score": 0.9}, {"end": 11, "score": 0.8}]
HALF = [{"end": 7, "score": 0.1}, {"end": 11, "score": None}]
ROWS: list[dict[str, Any]] = [
    {"prompt": "2+2?", "completion": "2+2=4.\nSo 4", "group": "a", "reward": 1.0, "steps": STEPS},
    {"prompt": "2+2?", "completion": "2+2=5.\nSo 5", "group": "a", "reward": 0.0, "steps": HALF},
    {"prompt": "1+1?", "completion": "<b>two</b> 🎉", "group": "b", "reward": None, "steps": []},
]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert main([*argv, "--json"]) == 0
    out: dict[str, Any] = json.loads(capsys.readouterr().out)
    return out


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(list(argv)) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "parquet"])
def test_score_equals_the_library(tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str) -> None:
    out = tmp_path / f"credit.{ending}"
    schemes = ["--estimator", "grpo", "--estimator", "grpo_process"]
    summary = run(capsys, "score", write(tmp_path / "in.jsonl", ROWS[:2]), *schemes, "--out", str(out))
    assert [row["estimator"] for row in summary["estimators"]] == ["grpo", "grpo_process"]
    assert [row["estimator"] for row in _read(out)] == ["grpo", "grpo", "grpo_process", "grpo_process"]
    assert summary["estimators"][0]["varied_rows"] == 0


def test_an_option_may_name_its_scheme(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write(tmp_path / "in.jsonl", ROWS[:2]), str(tmp_path / "c.jsonl")
    schemes = ["--estimator", "grpo", "--estimator", "pass", "--set", "pass.k=1", "--set", "std_eps=0.5"]
    made = [row["options"] for row in run(capsys, "score", source, *schemes, "--out", out)["estimators"]]
    assert made == [repr(sc.GRPO(std_eps=0.5)), repr(sc.PASS(k=1, std_eps=0.5))]


def test_what_nothing_reads_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {**row, "id": 7, "reference": "4", "offsets": [[0, 11]], "old_logprobs": [-1.0], "teacher_logprobs": [-2.0 * i]}
        for i, row in enumerate(ROWS[:2])
    ]
    source, out = write(tmp_path / "in.jsonl", rows), str(tmp_path / "c.jsonl")
    summary = run(capsys, "score", source, "--estimator", "pass", "--signal", "opd", "--out", out)
    assert summary["ignored_fields"] == ["id"]
    assert "the file's step scores are not read" in summary["notes"][0]


def test_log_probs_feed_the_log_prob_signals_and_spro(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {
            "prompt": "p",
            "completion": "ab",
            "group": 0,
            "reward": r,
            "offsets": [[0, 1], [1, 2]],
            "old_logprobs": [-1.0, -2.0],
            "ref_logprobs": [-1.5, -1.0 - r],
            "teacher_logprobs": [-0.5, -0.1 - r],
        }
        for r in (1.0, 0.0)
    ]
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "c.jsonl"
    fields = {name: [row[name] for row in rows] for name in ("old_logprobs", "ref_logprobs", "teacher_logprobs")}
    batch = sc.RolloutBatch.from_lists([2, 2], [0, 0], [1.0, 0.0], **fields)
    for argv, want in (
        (["--estimator", "spro", "--set", "beta=0.5"], sc.SPRO(beta=0.5)(batch)),
        (["--estimator", "pass", "--signal", "opd"], sc.PASS()(sc.OPD()(batch))),
        (
            ["--estimator", "pass", "--signal", "log_ratio", "--signal-set", "beta=2"],
            sc.PASS()(sc.LogRatio(beta=2)(batch)),
        ),
    ):
        run(capsys, "score", source, *argv, "--out", str(out))
        got = torch.tensor([row["advantages"] for row in _read(out)], dtype=torch.float64)
        torch.testing.assert_close(got, want.advantages)


def test_the_calculator_signal_reads_gsm8k_marks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right = {"prompt": "p", "completion": "16-3 = <<16-3=13>>13\nso\nA: 13", "group": 0, "reward": 1}
    wrong = {"prompt": "p", "completion": "16-3 = <<16-3=12>>12\nso\nA: 12", "group": 0, "reward": 0}
    out = tmp_path / "c.jsonl"
    argv = ["--estimator", "grpo_process", "--signal", "calculator", "--set", "correction=0", "--set", "std_eps=0"]
    run(capsys, "score", write(tmp_path / "in.jsonl", [right, wrong]), *argv, "--out", str(out))
    first, second = _read(out)
    n = sum(end <= 21 for _, end in first["offsets"])
    assert first["advantages"] == [1.0] * n + [0.0] * (len(first["offsets"]) - n)  # z of (1, 0) is (1, -1)
    assert second["advantages"][0] == -1.0


BAD_ROWS: list[tuple[dict[str, Any], str]] = [
    ({"completion": 7}, "row 2: `completion` must be text; got 7"),
    ({"prompt": None}, "row 2: `prompt` must be in every row"),
    ({"group": 1.5}, "row 2: `group` must be text or an integer; got 1.5"),
    ({"reward": "high"}, "row 2: `reward` must be a finite number, smaller than 1e+150; got 'high'"),
    ({"reward": float("nan")}, "row 2: `reward` must be a finite number, smaller than 1e+150; got nan"),
    (
        {"reward": 10**400},
        "row 2: `reward` must be a finite number, smaller than 1e+150; got an integer of over 60 digits",
    ),
    ({"reward": 1e200}, "row 2: `reward` must be a finite number, smaller than 1e+150; got 1e+200"),
    ({"steps": "all"}, "row 2: `steps` must be a list; got 'all'"),
    ({"steps": [{"end": 3}]}, "row 2: `steps` must be a list of {end, score}"),
    (
        {"steps": [{"end": 99, "score": 1}]},
        "row 2: `steps` must lie inside the completion; got (0, 99) of 11 characters",
    ),
    ({"steps": [{"end": 5, "score": 1}, {"end": 3, "score": 1}]}, "row 2: `steps` must"),
    ({"steps": [{"end": 6, "score": 1}, {"start": 0, "end": 11, "score": 1}]}, "row 2: `steps` must be in order"),
    ({"steps": [{"end": 5, "score": "good"}]}, "row 2: `steps.score` must be a finite number"),
    ({"format_reward": 1}, "row 1: `format_reward` must be in every row"),
    ({"offsets": [[0, 1]]}, "row 1: `offsets` must be in every row"),
    ({"old_logprobs": [-1.0]}, "row 1: `old_logprobs` must be in every row"),
]


@pytest.mark.parametrize(("change", "message"), BAD_ROWS, ids=[message[:36] for _, message in BAD_ROWS])
def test_a_bad_row_stops_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], message: str
) -> None:
    source = write(tmp_path / "in.jsonl", [ROWS[0], {**ROWS[1], **change}])
    out = tmp_path / "out.jsonl"
    out.write_text("precious\n")
    assert message in refused(capsys, "score", source, "--estimator", "grpo", "--out", str(out))
    assert out.read_text() == "precious\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format_reward": -1}, "row 1: `format_reward` must be 0 or 1, or come with `format_ok`; got -1.0"),
        ({"format_ok": False}, "row 1: `format_ok` must come with `format_reward`"),
    ],
)
def test_formats_are_refused_in_the_files_terms(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fields: dict[str, Any], message: str
) -> None:
    source = write(tmp_path / "in.jsonl", [{**row, **fields} for row in ROWS[:2]])
    assert message in refused(capsys, "score", source, "--estimator", "pass", "--out", str(tmp_path / "c.jsonl"))


def test_lone_surrogates_survive_or_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "p", "completion": "a\\ud800b", "group": 0, "reward": 1}\n')
    out = tmp_path / "c.jsonl"
    run(capsys, "score", str(source), "--estimator", "grpo", "--out", str(out), "--html", str(tmp_path / "p.html"))
    assert _read(out)[0]["completion"] == "a\ud800b"
    assert run(capsys, "segment", str(source))["rows"][0]["steps"][0]["text"] == "a\ud800b"
    parquet = str(tmp_path / "c.parquet")
    error = refused(capsys, "score", str(source), "--estimator", "grpo", "--out", parquet)
    assert "lone surrogates" in error
    assert not Path(parquet).exists()


def test_a_page_that_cannot_be_written_leaves_the_credit_file_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, page = tmp_path / "c.jsonl", tmp_path / "p.html"
    out.write_text("precious\n")
    page.write_text("old page")

    def full(*args: object, **options: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stepcredit.cli.score.render", full)
    source = write(tmp_path / "in.jsonl", ROWS[:2])
    argv = ["--estimator", "grpo", "--out", str(out), "--html", str(page)]
    assert "No space left on device: " in refused(capsys, "score", source, *argv)
    assert (out.read_text(), page.read_text()) == ("precious\n", "old page")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.jsonl", "in.jsonl", "p.html"]


def test_what_looks_like_a_mistake_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    marked = {"completion": "<<1+1=2>>2", "group": 0, "offsets": [[0, 10]], "steps": [], "old_logprobs": [1.0]}
    empty = {"completion": "", "group": 1, "offsets": [], "steps": [], "old_logprobs": []}
    rows = [{**row, "prompt": f"p{i}", "reward": i} for i, row in enumerate((marked, marked, empty))]
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "c.jsonl"
    summary = run(capsys, "score", source, "--estimator", "grpo", "--signal", "calculator", "--out", str(out))
    notes = " / ".join(summary["notes"])
    assert "the file's step scores are not read: the signal is calculator" in notes
    assert "1 groups hold different prompts, '0' first" in notes
    assert "2 log-probabilities are positive, 1.0 first" in notes
    assert [row["counted"] for row in _read(out)] == [True, True, False]


def test_other_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write(tmp_path / "in.jsonl", ROWS[:2]), str(tmp_path / "out.jsonl")
    plain = write(tmp_path / "plain.jsonl", [{k: v for k, v in row.items() if k != "steps"} for row in ROWS[:2]])
    other = write(tmp_path / "other.jsonl", [{"question": "q", "response": "r"}])
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "broken.jsonl").write_text('{"prompt": \n')
    for argv, message in (
        ([str(tmp_path / "none.jsonl"), "--estimator", "grpo", "--out", out], "must be a file that exists"),
        ([str(tmp_path / "empty.jsonl"), "--estimator", "grpo", "--out", out], "at least one row"),
        ([str(tmp_path / "broken.jsonl"), "--estimator", "grpo", "--out", out], "row 1|line 1"),
        ([source, "--estimator", "grop", "--out", out], "did you mean grpo"),
        ([source, "--estimator", "grpo", "--set", "k=1", "--out", out], "`k` must be an option of grpo"),
        ([source, "--estimator", "grpo", "--out", str(tmp_path / "out.csv")], "`--out` must end in"),
        ([source, "--estimator", "grpo", "--out", str(tmp_path / "no" / "out.jsonl")], "a folder that exists"),
        ([source, "--estimator", "grpo", "--out", source], "`--out` must not be the same file as IN"),
        ([source, "--estimator", "grpo", "--out", out, "--html", source], "`--html` must not be the same file as IN"),
        ([source, "--estimator", "grpo", "--out", out, "--html", out], "`--html` must not be the same file as --out"),
        ([source, "--estimator", "grpo", "--set", "pass.k=1", "--out", out], "must name one of the estimators grpo"),
        ([source, "--estimator", "grpo", "--out", out, "--html", str(tmp_path)], "`--html` must be a file"),
        ([source, "--estimator", "grpo", "--out", out, "--limit", "0"], "`limit` must be at least 1"),
        ([source, "--estimator", "grpo", "--out", out, "--html", ""], "`--html` must name a file"),
        ([other, "--estimator", "grpo", "--out", out], "rows need prompt, completion and group; got fields question"),
        ([source, "--estimator", "spro", "--out", out], "`old_logprobs` must be in the batch for SPRO"),
        ([plain, "--estimator", "pass", "--out", out], "`process_rewards` must be in the batch for PASS"),
        ([source, "--estimator", "pass", "--signal", "opd", "--out", out], "must be in the batch for OPD"),
        ([source, "--estimator", "pass", "--signal", "calc", "--out", out], "did you mean calculator"),
        ([plain, "--estimator", "pass", "--signal", "calculator", "--by", "marker", "--out", out], "`marker` must be"),
        (
            [source, "--estimator", "pass", "--tokenizer", str(tmp_path), "--out", out],
            "`--tokenizer` must be a hub name",
        ),
    ):
        error = refused(capsys, "score", *argv)
        assert any(part in error for part in message.split("|")), (argv, error)
    assert not Path(out).exists()


def test_usage_errors_exit_2() -> None:
    for argv in (
        [],
        ["frobnicate"],
        ["score"],
        ["score", "x", "--estimator", "grpo"],
        ["segment", "x", "--by", "pages"],
    ):
        with pytest.raises(SystemExit) as stop:
            main(argv)
        assert stop.value.code == 2


def test_segment_shows_the_cuts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = run(capsys, "segment", write(tmp_path / "in.jsonl", ROWS[:1]), "--by", "lines")
    assert shown["rows"][0]["steps"] == [
        {"start": 0, "end": 7, "text": "2+2=4.\n"},
        {"start": 7, "end": 11, "text": "So 4"},
    ]
    text = tmp_path / "one.txt"
    text.write_text("One. Two.")
    assert run(capsys, "segment", str(text), "--by", "sentences")["steps"] == 2
    assert run(capsys, "segment", str(text), "--by", "marker", "--marker", ". ")["steps"] == 2
    assert "--field" in refused(capsys, "segment", write(tmp_path / "x.jsonl", [{"a": 1}]))
    assert "marker" in refused(capsys, "segment", str(text), "--by", "marker")


def _read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        import pyarrow.parquet

        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
        return rows
    open_as: Any = gzip.open if path.suffix == ".gz" else open
    with open_as(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]
