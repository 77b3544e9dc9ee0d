"""The scripted signal says its script, and refuses to make anything up."""

import pytest

from stepcredit import InputError, Rollouts, ScoredSpan, Span
from stepcredit.config import build_signal
from stepcredit.signals import Signal
from stepcredit.signals.scripted import Scripted

ROLLOUTS = Rollouts(["p", "p"], ["ab", "c"], group_ids=[0, 0], steps=[[Span(0, 1), Span(1, 2)], [Span(0, 1)]])


def test_by_text_by_function_and_by_default() -> None:
    want = [[ScoredSpan(0, 1, 0.25), ScoredSpan(1, 2, 0.5)], [ScoredSpan(0, 1, 0.75)]]
    assert Scripted({"ab": [0.25, 0.5], "c": [0.75]}).score(ROLLOUTS) == want
    assert Scripted(lambda text: [0.25, 0.5] if text == "ab" else None, default=0.75).score(ROLLOUTS) == want
    assert Scripted({"ab": [None, 0.5]}, default=0.75).score(ROLLOUTS) == [want[0][1:], want[1]]
    signal = build_signal("scripted", {"default": 0.5})
    assert isinstance(signal, Signal)
    assert [[s.score for s in row] for row in signal.score(ROLLOUTS)] == [[0.5, 0.5], [0.5]]


@pytest.mark.parametrize(
    ("signal", "match"),
    [
        ({"script": {"ab": [1.0, 1.0]}}, r"`script` must have a line for every completion; got none for 'c' in row 1"),
        ({"script": {"ab": [1.0]}}, r"`script` must have one score a step; got 1 for 2 steps in row 0"),
        ({}, r"`script` must be given for Scripted where there is no `default`; got None"),
        ({"default": "high"}, r"`default` must be float for Scripted; got 'high'"),
    ],
)
def test_a_script_with_a_hole_is_refused(signal: dict[str, object], match: str) -> None:
    with pytest.raises(InputError, match=match):
        Scripted(**signal).score(ROLLOUTS)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="`rollouts` must have steps"):
        Scripted(default=1.0).score(Rollouts(["p"], ["a"], group_ids=[0]))
