"""``stepcredit prm``: train, score and eval as their user runs them."""

import json
from pathlib import Path

import pytest

from stepcredit.cli import main

SOLUTIONS = [
    {"id": f"s{k}", "problem": f"p{k // 2}", "steps": ["x", "y", "z"], "label": (k % 4) - 1} for k in range(40)
]
PERFECT = [{"id": row["id"], "scores": [0.2 if k == row["label"] else 0.6 for k in range(3)]} for row in SOLUTIONS]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def run(capsys, *argv):
    assert main(["prm", *argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *argv):
    assert main(["prm", *argv]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_raw_scores_of_anyone_are_evaluated(tmp_path, capsys):
    data, raw = write(tmp_path / "d.jsonl", SOLUTIONS), write(tmp_path / "raw.jsonl", PERFECT)
    summary = tmp_path / "s.json"
    words = ("eval", "--data", data, "--scores", raw, "--resamples", "50")
    found = run(capsys, *words, "--threshold", "0.5", "--summary", str(summary))
    assert (found["f1"], found["accuracy_error"], found["accuracy_correct"], found["unit"]) == (1.0, 1.0, 1.0, "share")
    assert (found["solutions"], found["with_error"], found["form"]) == (40, 30, "processbench")
    assert json.loads(summary.read_text()) == found
    flagged = run(capsys, *words, "--threshold", "0.7")  # every first step is under it
    assert (flagged["accuracy_error"], flagged["accuracy_correct"], flagged["f1"]) == (1 / 3, 0.0, 0.0)
    assert main(["prm", *words, "--threshold", "0.5"]) == 0
    shown = capsys.readouterr().out
    assert "f1                1.000 [1.000, 1.000]" in shown
    assert "threshold 0.5, given" in shown


def test_a_threshold_may_be_chosen_on_other_solutions(tmp_path, capsys):
    data, raw = write(tmp_path / "d.jsonl", SOLUTIONS), write(tmp_path / "raw.jsonl", PERFECT)
    words = ("eval", "--data", data, "--scores", raw, "--resamples", "20")
    shared = run(capsys, *words, "--threshold-share", "0.3")
    aside = shared["threshold"]["solutions"]
    assert 0 < aside < 40
    assert (shared["solutions"], shared["f1"]) == (40 - aside, 1.0)
    assert shared["threshold"]["value"] == pytest.approx(0.4)
    assert shared["threshold"]["source"] == f"0.3 of the problems of {data}"
    half = [{"id": row["id"], "scores": [score / 2 for score in row["scores"]]} for row in PERFECT]
    chosen = run(capsys, *words, "--threshold-from", data, "--threshold-scores", write(tmp_path / "h.jsonl", half))
    assert (chosen["threshold"]["value"], chosen["threshold"]["solutions"]) == (pytest.approx(0.2), 40)
    assert chosen["accuracy_correct"] == 1.0  # 0.2 is not under 0.2
    assert chosen["accuracy_error"] == 0.0


def test_unknown_labels_are_counted_and_misfits_named(tmp_path, capsys):
    rows = [
        {"id": "k", "problem": "p", "steps": ["x", "y"], "labels": [1, 0]},
        {"id": "u", "problem": "p", "steps": ["x", "y"], "labels": [None, 1]},
    ]
    data = write(tmp_path / "d.jsonl", rows)
    raw = write(tmp_path / "raw.jsonl", [{"id": "k", "scores": [1, 0]}, {"id": "u", "scores": [1, 0]}])
    found = run(capsys, "eval", "--data", data, "--scores", raw, "--threshold", "0.5", "--resamples", "5")
    assert (found["solutions"], found["left_out"], found["f1"]) == (1, {"first error unknown": 1}, None)
    assert (found["accuracy_error"], found["accuracy_correct"]) == (1.0, None)
    base = ("eval", "--data", data, "--scores")
    broken = write(tmp_path / "b.jsonl", [{"id": "k", "scores": [1]}])
    assert "one a step; got 1 for 2 steps of 'k'" in refused(capsys, *base, broken, "--threshold", "0.5")
    missing = write(tmp_path / "m.jsonl", [{"id": "z", "scores": [1]}])
    assert "1 have none, 'k' first" in refused(capsys, *base, missing, "--threshold", "0.5")
    assert "finite number; got nan" in refused(capsys, *base, raw, "--threshold", "nan")
    assert "`--threshold-scores` must be given" in refused(capsys, *base, raw, "--threshold-from", data)
    told = refused(capsys, *base, raw, "--threshold-share", "0.5")
    assert "with an error and ones without to choose a threshold" in told


def test_usage_asks_for_scores_or_a_model_and_for_a_threshold(tmp_path, capsys):
    data = write(tmp_path / "d.jsonl", SOLUTIONS)
    for words in (("eval", "--data", data, "--threshold", "0.5"), ("eval", "--data", data, "--scores", data), ()):
        with pytest.raises(SystemExit) as error:
            main(["prm", *words])
        assert error.value.code == 2
    capsys.readouterr()


def test_train_on_monte_carlo_labels_then_score_then_evaluate(tmp_path, capsys):
    pytest.importorskip("transformers")
    out, labels, held, raw = (str(tmp_path / name) for name in ("prm", "l.jsonl", "h.jsonl", "r.jsonl"))
    made = run(
        capsys, "train", "--out", out, "--backbone", "tiny-arithmetic", "--policy", "tiny-arithmetic",
        "--task", "arithmetic", "--task-set", "operations=2", "--problems", "8", "--samples", "2",
        "--rollouts-per-step", "2", "--max-new-tokens", "40", "--batch-size", "4", "--hold-out", "0.3",
        "--held-out", held, "--save-labels", labels, "--device", "cpu",
    )  # fmt: skip
    told = made["labels"]
    rows = [json.loads(line) for line in Path(labels).read_text().splitlines()]
    assert told["steps"] == sum(len(row["labels"]) for row in rows)
    assert told["rollouts"] == 2 * (told["steps"] - told["solutions"])
    assert told["tokens"] > 0
    aside = [json.loads(line) for line in Path(held).read_text().splitlines()]
    assert made["solutions"] + len(aside) == len(rows) == told["solutions"]
    assert {row["group"] for row in aside} < {row["group"] for row in rows}
    assert "--rollouts-per-step 2" in (tmp_path / "prm" / "PROVENANCE.md").read_text()
    scored = run(capsys, "score", "--model", out, "--data", held, "--out", raw, "--device", "cpu")
    assert (scored["steps"], scored["unscored_steps"]) == (sum(len(row["steps"]) for row in aside), 0)
    words = ("--data", held, "--threshold", "0.5", "--resamples", "5")
    first = run(capsys, "eval", "--model", out, "--device", "cpu", *words)
    second = run(capsys, "eval", "--scores", raw, *words)
    assert {name: first[name] for name in ("f1", "auc", "ece")} == {name: second[name] for name in ("f1", "auc", "ece")}
    assert "`--out` must name a folder that does not exist" in refused(capsys, "train", "--out", out, "--backbone", "x")


def test_train_from_files_says_what_it_left_out(tmp_path, capsys):
    pytest.importorskip("transformers")
    own = [{"id": "a", "problem": "p", "steps": ["x", " ", "y"], "labels": [1, 0, None]}]
    words = ("--from-scratch", "decoder", "--hidden-size", "16", "--layers", "1", "--heads", "2", "--positions", "64")
    data = write(tmp_path / "d.jsonl", own)
    made = run(capsys, "train", "--out", str(tmp_path / "a"), *words, "--data", data, "--device", "cpu")
    assert (made["solutions"], made["steps"], made["blank_steps"], made["held_out"]) == (1, 1, 1, None)
    out = ("train", "--out", str(tmp_path / "b"), *words)
    assert "one of them; got both or neither" in refused(capsys, *out)
    assert "`--task` must name the task of --policy" in refused(capsys, *out, "--policy", "tiny-arithmetic")
    told = refused(capsys, *out, "--data", data, "--hold-out", "1")
    assert "`--hold-out` must leave solutions to train on" in told
    assert "ids that differ between files" in refused(capsys, *out, "--data", data, data)
    assert not (tmp_path / "b").exists()
