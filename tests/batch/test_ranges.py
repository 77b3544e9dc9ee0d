import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepcredit.batch import Rollouts, ScoredSpan
from stepcredit.batch.ranges import Ranges, ScoredRanges
from stepcredit.errors import InputError

BOUNDS = st.lists(st.integers(0, 4), max_size=8).map(lambda steps: [sum(steps[:i]) for i in range(len(steps) + 1)])


@given(BOUNDS)
def test_ranges_read_as_the_list_of_pairs(bounds: list[int]) -> None:
    pairs = [(bounds[i], bounds[i + 1]) for i in range(len(bounds) - 1)]
    ranges = Ranges(bounds)
    assert len(ranges) == len(pairs)
    assert ranges == pairs
    assert pairs == ranges
    assert [ranges[i] for i in range(-len(pairs), len(pairs))] == pairs + pairs
    assert ranges[1:] == pairs[1:]
    assert pickle.loads(pickle.dumps(ranges)) == pairs
    assert ranges != [*pairs, (0, 1)]
    with pytest.raises(IndexError):
        ranges[len(pairs)]


@given(BOUNDS, st.randoms())
def test_scored_ranges_read_as_the_tuple_of_spans(bounds: list[int], rng) -> None:
    scores = [rng.choice([0.0, 0.5, 1.0]) for _ in bounds[1:]]
    spans = tuple(ScoredSpan(bounds[i], bounds[i + 1], score) for i, score in enumerate(scores))
    ranges = ScoredRanges(bounds[1:], scores)
    assert len(ranges) == len(spans)
    assert tuple(ranges) == ranges == spans
    assert spans == ranges
    assert hash(ranges) == hash(spans)
    assert repr(ranges) == repr(spans)
    assert [ranges[i] for i in range(-len(spans), len(spans))] == [*spans, *spans]
    assert ranges[1:] == spans[1:]
    assert pickle.loads(pickle.dumps(ranges)) == spans
    assert ranges != (*spans, ScoredSpan(0, 1, 1.0))
    with pytest.raises(IndexError):
        ranges[len(spans)]


def test_rollouts_refuse_ranges_that_leave_the_text() -> None:
    Rollouts(["p"], ["abc"], [0], offsets=[Ranges([0, 1, 3])])
    with pytest.raises(InputError, match=r"`offsets` must lie inside the completion; got \(1, 4\) of 3 characters"):
        Rollouts(["p"], ["abc"], [0], offsets=[Ranges([0, 1, 4])])
