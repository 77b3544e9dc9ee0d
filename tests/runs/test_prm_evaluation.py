import json
import math

import pytest

from stepcredit.errors import InputError
from stepcredit.runs.prm_evaluation import ChosenThreshold, choose_threshold, evaluate_scores, judge, read_scores
from stepcredit.tasks import LabeledSteps, read_labeled_steps
from tasks.published import published

SOLUTIONS = (
    LabeledSteps("a", "p", ("x", "y", "z"), (1.0, 0.0, None)),
    LabeledSteps("b", "p", ("x", "y"), (1.0, 1.0)),
    LabeledSteps("c", "q", ("x",), (1.0,)),
)
SCORES = {"a": [0.9, 0.1, None], "b": [0.8, 0.3], "c": [0.5]}


def test_what_was_measured_is_told_with_the_numbers():
    found = evaluate_scores(judge(SOLUTIONS, SCORES), ChosenThreshold(0.5), resamples=50)
    assert (found["accuracy_error"], found["accuracy_correct"]) == (1.0, 0.5)
    assert found["f1"] == pytest.approx(2 * 1 * 0.5 / 1.5)
    counts = {name: found[name] for name in ("solutions", "with_error", "without_error", "steps", "unscored_steps")}
    assert counts == {"solutions": 3, "with_error": 1, "without_error": 2, "steps": 5, "unscored_steps": 1}
    assert found["threshold"] == {"value": 0.5, "source": "given", "solutions": 0, "with_error": 0, "f1": None}
    assert found["intervals"]["accuracy_error"] == {"low": 1.0, "high": 1.0}
    assert sum(row["steps"] for row in found["reliability"]) == 5
    assert json.loads(json.dumps(found)) == found
    margins = evaluate_scores(judge(SOLUTIONS, SCORES | {"c": [-0.5]}), ChosenThreshold(0.5), resamples=5)
    assert (margins["reliability"], margins["ece"], margins["intervals"]["ece"]) == (None, None, None)


def test_a_chosen_threshold_says_where_it_comes_from():
    judged = judge(SOLUTIONS, SCORES)
    chosen = choose_threshold(judged, "some")
    assert vars(chosen) == {
        "value": pytest.approx(0.2), "source": "some", "solutions": 3, "with_error": 1, "f1": 1.0
    }  # fmt: skip
    with pytest.raises(InputError, match="`threshold` must be a finite number; got nan"):
        ChosenThreshold(math.nan)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"a": SCORES["a"], "c": SCORES["c"]}, "must cover every solution; 1 have none, 'b' first"),
        (SCORES | {"d": [0.5]}, "must be of these solutions alone; 1 ids are others, 'd' first"),
        (SCORES | {"b": [0.5]}, "must be one a step; got 1 for 2 steps of 'b'"),
        (SCORES | {"b": [0.5, math.nan]}, "must be finite; got [0.5, nan] for 'b'"),
    ],
)
def test_scores_that_do_not_fit_their_solutions_are_refused(scores, message):
    with pytest.raises(InputError) as error:
        judge(SOLUTIONS, scores)
    assert message in str(error.value)
    if "others" in message:
        assert len(judge(SOLUTIONS, scores, others=True)) == 3


def test_solutions_without_a_known_first_error_and_none_at_all_are_refused():
    unknown = LabeledSteps("u", "p", ("x", "y"), (None, 0.0))
    with pytest.raises(InputError, match="'u' has unknown labels before it"):
        judge([unknown], {"u": [0.5, 0.5]})
    with pytest.raises(InputError, match="got none to evaluate on"):
        evaluate_scores([], ChosenThreshold(0.5))
    with pytest.raises(InputError, match="`bins` must be at least 1; got 0"):
        evaluate_scores(judge(SOLUTIONS, SCORES), ChosenThreshold(0.5), bins=0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "b", "scores": [0.5, NaN]}', "step 1: nan"),
        ('{"id": "b", "scores": [Infinity]}', "step 0: inf"),
        ('{"id": "b", "scores": ["0.5"]}', "step 0: '0.5'"),
        ('{"id": "b", "scores": [true]}', "step 0: True"),
        ('{"id": "b", "score": 0.5}', "an `id` and a list `scores` in every row"),
        ('{"id": "a", "scores": [0.5]}', "each id once"),
    ],
)
def test_raw_scores_are_checked_row_by_row(tmp_path, line, message):
    path = tmp_path / "raw.jsonl"
    path.write_text('{"id": "a", "scores": [1, null], "more": 0}\n')
    assert read_scores(path) == {"a": [1.0, None]}
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(InputError) as error:
        read_scores(path)
    assert message in str(error.value)
    assert "raw.jsonl, row 2" in str(error.value)


def test_published_processbench_scored_by_its_own_labels_is_perfect_and_by_ones_clears_all():
    data = read_labeled_steps(published("processbench/gsm8k.json.gz"))
    perfect = {row.id: [float(k != row.first_error) for k in range(len(row.steps))] for row in data.solutions}
    found = evaluate_scores(judge(data.solutions, perfect), ChosenThreshold(1.0), resamples=20)
    assert (found["f1"], found["auc"], found["ece"]) == (1.0, 1.0, 0.0)
    assert (found["with_error"], found["without_error"]) == (207, 193)
    ones = {name: [1.0] * len(values) for name, values in perfect.items()}
    found = evaluate_scores(judge(data.solutions, ones), ChosenThreshold(1.0), resamples=20)
    assert (found["accuracy_error"], found["accuracy_correct"], found["f1"]) == (0.0, 1.0, 0.0)
