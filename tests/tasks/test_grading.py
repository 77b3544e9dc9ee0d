import pytest

from stepcredit.batch import ScoredSpan
from stepcredit.errors import InputError
from stepcredit.tasks import Grade


def test_first_error_is_the_first_step_scored_zero():
    steps = tuple(ScoredSpan(i, i + 1, score) for i, score in enumerate((1.0, 1.0, 0.0, 0.0)))
    assert Grade(0.0, steps=steps).first_error == 2
    assert Grade(1.0, steps=steps[:2]).first_error is None
    assert Grade(0.0).first_error is None


def test_kinds_must_match_the_steps():
    with pytest.raises(InputError, match=r"`kinds` must have one word a step; got 2 for 1 steps"):
        Grade(0.0, steps=(ScoredSpan(0, 1, 1.0),), kinds=("one", "one"))


def test_an_unparsed_answer_is_never_rewarded():
    with pytest.raises(InputError, match="`outcome` must be 0 where no answer was parsed"):
        Grade(1.0, parsed=False)
    assert Grade(0.0, parsed=False).outcome == 0.0


def test_correct_is_a_positive_outcome_unless_the_task_says_otherwise():
    assert [Grade(outcome).correct for outcome in (-1.0, 0.0, 0.4, 1.0)] == [False, False, True, True]
    assert not Grade(0.4, correct=False).correct
    with pytest.raises(InputError, match=r"`correct` must be False where the outcome earns nothing; got 0\.0"):
        Grade(0.0, correct=True)
