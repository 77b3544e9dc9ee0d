import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepcredit.errors import InputError
from stepcredit.runs.prm_metrics import (
    Judged,
    StepTable,
    best_threshold,
    measures,
    predicted_error,
    reliability,
    step_auc,
    with_intervals,
)
from stepcredit.runs.statistics import bootstrap_interval
from stepcredit.tasks import read_labeled_steps
from tasks.published import published

grid = st.integers(0, 4).map(lambda k: k / 4)  # few values, so that ties abound


@st.composite
def solutions(draw, scores=grid):
    values = draw(st.lists(st.one_of(st.none(), scores), min_size=1, max_size=6))
    return Judged(values, draw(st.integers(-1, len(values) - 1)))


def protocol_by_hand(judged, threshold):
    """Accuracy on solutions with an error and on those without, and F1, by loops alone."""
    hits = {True: [], False: []}
    for scores, first in judged:
        found = -1
        for k in range(len(scores)):
            if scores[k] is not None and scores[k] < threshold:
                found = k
                break
        hits[first != -1].append(1.0 if found == first else 0.0)
    a, b = (sum(hits[kind]) / len(hits[kind]) if hits[kind] else None for kind in (True, False))
    f1 = None if a is None or b is None else 0.0 if a + b == 0 else 2 * a * b / (a + b)
    return {"accuracy_error": a, "accuracy_correct": b, "f1": f1}


def steps_by_hand(judged):
    """(score, right) of every step up to the first error."""
    pairs = []
    for scores, first in judged:
        for k in range(len(scores)):
            if scores[k] is not None:
                pairs.append((scores[k], k != first))
            if k == first:
                break
    return pairs


def auc_by_hand(pairs):
    ups, downs = [s for s, right in pairs if right], [s for s, right in pairs if not right]
    if not ups or not downs:
        return None
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a in ups for b in downs) / len(ups) / len(downs)


def ece_by_hand(pairs, bins):
    if not pairs:
        return None
    total = 0.0
    for index in range(bins):
        low, high = index / bins, (index + 1) / bins
        inside = [(s, right) for s, right in pairs if low <= s < high or (index == bins - 1 and s == 1)]
        if inside:
            gap = sum(s for s, _ in inside) / len(inside) - sum(right for _, right in inside) / len(inside)
            total += len(inside) / len(pairs) * abs(gap)
    return total


def brier_by_hand(pairs):
    return sum((s - right) ** 2 for s, right in pairs) / len(pairs) if pairs else None


def everything_by_hand(judged, threshold, bins):
    pairs = steps_by_hand(judged)
    return protocol_by_hand(judged, threshold) | {
        "auc": auc_by_hand(pairs),
        "ece": ece_by_hand(pairs, bins),
        "brier": brier_by_hand(pairs),
    }


def alike(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == (None if value is None else pytest.approx(value, abs=1e-12)), name


@settings(deadline=None)
@given(st.lists(solutions(), min_size=1, max_size=8), grid, st.integers(1, 10))
def test_every_metric_equals_plain_loops(judged, threshold, bins):
    alike(measures(judged, threshold, bins)(np.ones(len(judged))), everything_by_hand(judged, threshold, bins))


@settings(deadline=None)
@given(st.lists(st.tuples(solutions(), st.integers(0, 3)), min_size=1, max_size=6), grid)
def test_a_weight_is_how_often_a_solution_is_there(weighted, threshold):
    judged, counts = [one for one, _ in weighted], np.array([count for _, count in weighted], dtype=float)
    repeated = [one for one, count in weighted for _ in range(count)]
    alike(measures(judged, threshold, 5)(counts), everything_by_hand(repeated, threshold, 5))


def test_a_worked_example():
    # Error at step 1 found; error at step 2 flagged too early, at 1; right one cleared; right one flagged.
    judged = [
        Judged([0.9, 0.2, 0.1], 1), Judged([0.8, 0.4, 0.1], 2), Judged([0.5, 0.7], -1), Judged([0.6, 0.3], -1),
        Judged([0.9, 0.4], 1),
    ]  # fmt: skip
    found = measures(judged, 0.5, 2)(np.ones(5))
    assert found["accuracy_error"] == pytest.approx(2 / 3)
    assert found["accuracy_correct"] == 1 / 2
    assert found["f1"] == pytest.approx(2 * (2 / 3) * (1 / 2) / (2 / 3 + 1 / 2))
    # Right steps .9 .8 .4 .5 .7 .6 .3 .9, wrong ones .2 .1 .4: of 24 pairs, lost .3 < .4, tied .4 = .4.
    assert found["auc"] == pytest.approx((24 - 1 - 0.5) / 24)
    # Below .5: .2 .4 .1 .3 .4 with 2 right; from .5: six scores, all right.
    low, high = abs(sum((0.2, 0.4, 0.1, 0.3, 0.4)) - 2) / 11, abs(sum((0.9, 0.8, 0.5, 0.7, 0.6, 0.9)) - 6) / 11
    assert found["ece"] == pytest.approx(low + high)


def test_a_score_at_the_threshold_or_none_is_not_under_it():
    assert predicted_error([0.5, 0.5], 0.5) == -1
    assert predicted_error([0.5, np.nextafter(0.5, 0)], 0.5) == 1
    assert predicted_error([None, 0.2], 0.5) == 1
    judged = [Judged([0.5], 0), Judged([0.5], -1)]
    assert measures(judged, 0.5)(np.ones(2))["accuracy_error"] == 0.0
    assert measures(judged, 0.5)(np.ones(2))["accuracy_correct"] == 1.0
    assert measures(judged, 0.5)(np.ones(2))["f1"] == 0.0


def test_one_kind_alone_has_no_f1_and_scores_beyond_one_no_calibration():
    right = measures([Judged([0.9, 0.4], -1)], 0.5)(np.ones(1))
    assert (right["f1"], right["accuracy_error"], right["accuracy_correct"], right["auc"]) == (None, None, 0.0, None)
    wrong = measures([Judged([0.9, 0.4], 1)], 0.5)(np.ones(1))
    assert (wrong["f1"], wrong["accuracy_error"], wrong["accuracy_correct"], wrong["auc"]) == (None, 1.0, None, 1.0)
    margins = measures([Judged([0.9, -0.4], 1)], 0.0)(np.ones(1))
    assert (margins["accuracy_error"], margins["auc"], margins["ece"], margins["brier"]) == (1.0, 1.0, None, None)
    silent = measures([Judged([None], 0), Judged([None], -1)], 0.5)(np.ones(2))
    assert (silent["f1"], silent["auc"], silent["ece"], silent["brier"]) == (0.0, None, None, None)


@settings(deadline=None)
@given(st.lists(solutions(st.floats(-3, 3)), min_size=2, max_size=8) | st.lists(solutions(), min_size=2, max_size=8))
def test_the_chosen_threshold_has_the_highest_f1_of_all(judged):
    kinds = {first >= 0 for _, first in judged}
    values = sorted({score for scores, _ in judged for score in scores if score is not None})
    if kinds != {True, False} or not values:
        with pytest.raises(InputError, match="`judged` must have"):
            best_threshold(judged)
        return
    chosen = best_threshold(judged)
    candidates = [*values, *(np.nextafter(value, np.inf) for value in values)]  # every stretch has one of them
    f1 = {t: protocol_by_hand(judged, t)["f1"] for t in candidates}
    assert chosen.f1 == pytest.approx(max(f1.values()), abs=1e-12)
    assert protocol_by_hand(judged, chosen.value)["f1"] == pytest.approx(chosen.f1, abs=1e-12)
    lower = [t for t in candidates if f1[t] > chosen.f1 - 1e-12]
    assert chosen.value <= max(lower)


def test_a_threshold_lies_between_scores():
    assert best_threshold([Judged([0.8, 0.2], 1), Judged([0.9, 0.6], -1)]).value == pytest.approx(0.4)
    assert best_threshold([Judged([0.5], 0), Judged([0.5], -1)]) == (0.5, 0.0)
    above = best_threshold([Judged([0.5], 0), Judged([None], -1)])
    assert above == (np.nextafter(0.5, 1), 1.0)


def test_auc_and_bins_at_their_edges():
    assert step_auc([0.3, 0.3, 0.3], [True, False, True]) == 0.5
    assert step_auc([], []) is None
    bins = reliability([0.0, 0.1, 0.3, 1.0, 0.7, 0.29999999999999993], [False, True, True, True, False, True])
    assert [row["steps"] for row in bins] == [1, 1, 1, 1, 0, 0, 0, 1, 0, 1]  # 0.3 opens its bin, 1 is in the last
    assert (bins[4]["mean_score"], bins[4]["share_right"], bins[3]["share_right"]) == (None, None, 1.0)


def test_intervals_are_those_of_whole_solutions_drawn_again():
    rng = random.Random(0)
    judged = [Judged([rng.random() for _ in range(4)], rng.randint(-1, 3)) for _ in range(40)]
    found = with_intervals(measures(judged, 0.3), 40, resamples=300, seed=5)
    hits = [float(predicted_error(scores, 0.3) == first) for scores, first in judged]
    wrong = np.array([first >= 0 for _, first in judged], dtype=float)
    for name, weights in (("accuracy_error", wrong), ("accuracy_correct", 1 - wrong)):
        mean, low, high = bootstrap_interval(hits, weights=weights, resamples=300, seed=5)
        assert found[name] == pytest.approx({"mean": mean, "low": low, "high": high})
    counted = StepTable.of(judged)
    by_solution = [(counted.scores - counted.right)[counted.solution == k] ** 2 for k in range(40)]
    means, sizes = [part.mean() for part in by_solution], [part.size for part in by_solution]
    mean, low, high = bootstrap_interval(means, weights=sizes, resamples=300, seed=5)
    assert found["brier"] == pytest.approx({"mean": mean, "low": low, "high": high})
    draws = np.random.default_rng(5)  # F1 and AUC of resamples, by loops
    redrawn = [[judged[k] for k in draws.integers(40, size=40)] for _ in range(300)]
    for name, values in (
        ("f1", [protocol_by_hand(part, 0.3)["f1"] for part in redrawn]),
        ("auc", [auc_by_hand(steps_by_hand(part)) for part in redrawn]),
    ):
        assert (found[name]["low"], found[name]["high"]) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))
    with pytest.raises(InputError, match="`resamples` at least 1; got 0"):
        with_intervals(measures(judged, 0.3), 40, resamples=0)


@pytest.mark.parametrize("name", ["gsm8k", "math", "olympiadbench", "omnimath"])
def test_all_of_published_processbench_against_plain_loops(name):
    data = read_labeled_steps(published(f"processbench/{name}.json.gz"))
    rng = random.Random(name)
    judged = []
    for row in data.solutions:  # a judge that is often right, in hundredths, so that there are ties
        shapes = [(2, 5) if k == row.first_error else (5, 2) for k in range(len(row.steps))]
        judged.append(Judged([round(rng.betavariate(*shape), 2) for shape in shapes], row.first_error))
    at = measures(judged, 0.45)
    alike(at(np.ones(len(judged))), everything_by_hand(judged, 0.45, 10))
    silent = [Judged([1.0] * len(scores), first) for scores, first in judged]  # all steps called right
    found = measures(silent, 0.5)(np.ones(len(silent)))
    wrong = sum(first >= 0 for _, first in silent)
    assert (found["accuracy_error"], found["accuracy_correct"], found["f1"], found["auc"]) == (0.0, 1.0, 0.0, 0.5)
    steps = sum(len(scores) if first < 0 else first + 1 for scores, first in silent)
    assert found["ece"] == pytest.approx(wrong / steps)
    exact = [Judged([float(k != first) for k in range(len(scores))], first) for scores, first in judged]
    assert measures(exact, 0.5)(np.ones(len(exact))) == {
        "f1": 1.0, "accuracy_error": 1.0, "accuracy_correct": 1.0, "auc": 1.0, "ece": 0.0, "brier": 0.0
    }  # fmt: skip
