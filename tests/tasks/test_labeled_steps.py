import gzip
import json
from collections import Counter

import pytest

from stepcredit.errors import InputError
from stepcredit.tasks import LabeledSteps, labeled_rows, read_labeled_steps, split_groups
from tasks.published import published

PRMBENCH = {
    "idx": "p1", "source_file": "prm800k_train_x.jsonl", "classification": "circular", "question": "q?",
    "modified_question": "m?", "original_process": ["a", "b"], "modified_process": ["a", "x", "y", "z"],
    "error_steps": [2, 4],
}  # fmt: skip
MR = {
    "uuid": "u", "question": "q?", "model_output_steps": ["a", "b", "c"], "model_output_solution_first_error_step": 2,
    "model_output_solution_correctness": "wrong",
}  # fmt: skip


def written(folder, *rows, name="a.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def refused(path, **options):
    with pytest.raises(InputError) as error:
        read_labeled_steps(path, **options)
    return str(error.value)


def test_prmbench_counts_its_error_steps_from_one_and_gives_originals_once(tmp_path):
    rows = [
        PRMBENCH,
        PRMBENCH | {"classification": "deception", "error_steps": [1]},
        PRMBENCH | {"classification": "deception", "error_steps": [5]},  # of four steps
        PRMBENCH | {"idx": "p2", "classification": "deception", "error_steps": [0], "original_process": ["c"]},
        PRMBENCH | {"idx": "p3", "source_file": "prm800k_test_x.jsonl"},
    ]
    data = read_labeled_steps(written(tmp_path, *rows), origin="train")
    assert data.form == "prmbench"
    assert [(row.id, row.problem, row.labels, row.first_error, row.group) for row in data.solutions] == [
        ("circular/p1", "m?", (1, 0, 1, 0), 1, "p1"),
        ("original/circular/p1", "q?", (1, 1), -1, "p1"),
        ("deception/p1", "m?", (0, 1, 1, 1), 0, "p1"),
        ("original/deception/p2", "q?", (1,), -1, "p2"),
    ]
    assert data.left_out == {"repeated original": 2, "error step out of range": 2, "of another origin": 1}
    without = read_labeled_steps(written(tmp_path, *rows), originals=False)
    assert [row.id for row in without.solutions] == ["circular/p1", "deception/p1", "circular/p3"]


def test_first_errors_count_from_zero_in_processbench_and_from_one_in_mr_gsm8k(tmp_path):
    rows = [{"id": f"b-{label}", "problem": "q", "steps": ["x", "y", "z"], "label": label} for label in (-1, 0, 1, 2)]
    found = read_labeled_steps(written(tmp_path, *rows)).solutions
    assert [row.labels for row in found] == [(1, 1, 1), (0, None, None), (1, 0, None), (1, 1, 0)]
    assert [row.first_error for row in found] == [-1, 0, 1, 2]
    right = MR | {"uuid": "v", "model_output_solution_correctness": "correct"}
    found = read_labeled_steps(written(tmp_path, MR, right, name="b.json")).solutions
    assert [(row.id, row.labels) for row in found] == [("u", (1, 0, None)), ("v", (1, 1, 1))]


def test_ones_own_rows_keep_soft_unknown_and_true_or_false_labels(tmp_path):
    own = {"id": 7, "problem": "q", "steps": ["x", "y", "z"], "labels": [0.5, None, False], "group": "g"}
    found = read_labeled_steps(written(tmp_path, own)).solutions[0]
    assert (found.id, found.labels, found.first_error, found.settled, found.group) == (
        "7", (0.5, None, 0.0), 2, False, "g"
    )  # fmt: skip
    trl = {"prompt": "q", "completions": ["x", "y"], "labels": [True, False]}
    found = read_labeled_steps(written(tmp_path, trl, trl)).solutions
    assert [(row.id, row.labels, row.settled) for row in found] == [("1", (1, 0), True), ("2", (1, 0), True)]


def test_rows_come_back_as_they_went(tmp_path):
    solutions = (LabeledSteps("a", "q", ("x", "y\n"), (0.25, None), "g"), LabeledSteps("b", "r", ("z",), (1.0,)))
    assert read_labeled_steps(written(tmp_path, *labeled_rows(solutions))).solutions == solutions


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (PRMBENCH | {"error_steps": ["2"]}, "`error_steps` must be whole numbers; got ['2']"),
        ({"id": "a", "problem": "q", "steps": ["x"], "label": 1}, "`label` must be a whole number from -1 to 0; got 1"),
        (
            {"id": "a", "problem": "q", "steps": ["x"], "label": True},
            "`label` must be a whole number from -1 to 0; got True",
        ),
        (
            MR | {"model_output_solution_first_error_step": 0},
            "`model_output_solution_first_error_step` must be a whole number from 1 to 3; got 0",
        ),
        ({"id": "a", "problem": "q", "steps": [], "labels": []}, "`steps` must be a list of texts, one or more"),
        ({"id": "a", "problem": "q", "steps": ["x"], "labels": [1, 0]}, "`labels` must be one a step"),
        (
            {"id": "a", "problem": "q", "steps": ["x"], "labels": [1.5]},
            "`labels` must be from 0 to 1, or None; got 1.5",
        ),
        (
            {"id": "a", "problem": "q", "steps": ["x"], "labels": [float("nan")]},
            "must be from 0 to 1, or None; got nan",
        ),
        ({"id": "a", "problem": "q", "steps": ["x"], "labels": ["+"]}, "numbers, booleans or nulls; got ['+']"),
        ({"id": None, "problem": "q", "steps": ["x"], "labels": [1]}, "the id must be text or a whole number"),
    ],
)
def test_what_is_wrong_with_a_row_is_told_with_its_file_and_number(tmp_path, row, message):
    good = {
        "error_steps": PRMBENCH, "label": {"id": "g", "problem": "q", "steps": ["x"], "label": 0}, "uuid": MR,
        "labels": {"id": "g", "problem": "q", "steps": ["x"], "labels": [1]},
    }  # fmt: skip
    first = next(value for field, value in good.items() if field in row)
    told = refused(written(tmp_path, first, row))
    assert "a.jsonl, row 2" in told
    assert message in told


def test_files_that_fit_no_format_or_leave_nothing_are_refused(tmp_path):
    assert "got question, answer in" in refused(written(tmp_path, {"question": "q", "answer": "a"}))
    row = {"id": "a", "problem": "q", "steps": ["x"], "label": 0}
    assert "row 2 lacks 'label'" in refused(
        written(tmp_path, row, {key: row[key] for key in ("id", "problem", "steps")})
    )
    assert "'a' more than once" in refused(written(tmp_path, row, row))
    assert "`origin` must be None" in refused(written(tmp_path, row), origin="train")
    told = refused(written(tmp_path, PRMBENCH), origin="test")
    assert "a solution that is not left out; got none" in told


def test_a_split_keeps_groups_together_and_only_grows():
    solutions = [LabeledSteps(str(k), f"problem {k % 50}", ("x",), (1.0,)) for k in range(200)]
    small, rest = split_groups(solutions, 0.2)
    large, _ = split_groups(solutions, 0.5)
    assert {row.group for row in small}.isdisjoint(row.group for row in rest)
    assert set(small) < set(large)
    assert sorted((*small, *rest), key=lambda row: int(row.id)) == solutions
    assert [len(part) for share in (0.0, 1.0) for part in split_groups(solutions, share)] == [0, 200, 200, 0]
    with pytest.raises(InputError, match=r"`share` must be from 0 to 1; got 1\.5"):
        split_groups(solutions, 1.5)


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [("gsm8k", 207, 193), ("math", 594, 406), ("olympiadbench", 661, 339), ("omnimath", 759, 241)],
)
def test_published_processbench_has_the_published_counts(name, wrong, right):
    path = published(f"processbench/{name}.json.gz")
    data = read_labeled_steps(path)
    labels = [row["label"] for row in json.loads(gzip.decompress(path.read_bytes()))]
    assert [row.first_error for row in data.solutions] == labels
    assert Counter(row.first_error >= 0 for row in data.solutions) == {True: wrong, False: right}
    assert data.left_out == {}


def test_published_prmbench_and_mr_gsm8k_against_a_plain_reading():
    path = published("prmbench/prmbench.jsonl.gz")
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    ranged = [row for row in rows if not [e for e in row["error_steps"] if e < 1 or e > len(row["modified_process"])]]
    data = read_labeled_steps(path, originals=False)
    assert data.left_out == {"error step out of range": 100} == {"error step out of range": len(rows) - len(ranged)}
    assert [row.first_error for row in data.solutions] == [min(row["error_steps"], default=0) - 1 for row in ranged]
    assert sum(label == 0 for row in data.solutions for label in row.labels) == sum(
        len(set(row["error_steps"])) for row in ranged
    )
    train = read_labeled_steps(path, origin="train")
    assert train.left_out["of another origin"] == 3013
    assert len({row.group for row in train.solutions}) == 401
    mr = read_labeled_steps(published("mr_gsm8k_subset/mr_gsm8k_errors.jsonl.gz"))
    assert (len(mr.solutions), sum(row.first_error >= 0 for row in mr.solutions)) == (590, 590)
