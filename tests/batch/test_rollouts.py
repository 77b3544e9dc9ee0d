"""`Rollouts`: every length and span is checked."""

from typing import Any

import pytest

from stepcredit import InputError, Rollouts, Span


def make(**fields: Any) -> Rollouts:
    return Rollouts(**{"prompts": ["p", "q"], "completions": ["one two", "3"], "group_ids": [0, 0], **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"completions": ["one"]}, "`completions` must have one entry a rollout; got 1 for 2 prompts"),
        (
            {"offsets": [[(0, 3), (3, 7)], []], "response_mask": [[True], []]},
            "one entry a token; got 1 for 2 tokens, row 0|got",
        ),
        (
            {"offsets": [[(0, 3), (3, 8)], []]},
            r"`offsets` must lie inside the completion; got \(3, 8\) of 7 characters, row 0",
        ),
        ({"offsets": [[(0, 3), (2, 1)], []]}, r"`offsets` must lie inside the completion; got \(2, 1\)"),
        ({"offsets": [[(3, 5), (0, 3)], []]}, r"`offsets` must be in order; got \(0, 3\) after \(3, 5\)"),
        ({"steps": [[Span(0, 4), Span(3, 7)], []]}, r"`steps` must be in order; got \(3, 7\) after \(0, 4\)"),
        ({"turns": [[Span(-1, 4)], []]}, "`turns` must lie inside"),
    ],
)
def test_bad_fields_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(**fields)


def test_tokens_may_share_a_character_and_steps_may_touch() -> None:
    rollouts = make(offsets=[[(0, 1), (0, 1), (1, 7)], [(0, 1)]], steps=[[Span(0, 3), Span(3, 7)], []])
    assert rollouts.token_counts == [3, 1]
    assert len(rollouts) == 2
    assert rollouts.replace(group_ids=[0, 1]).group_ids == [0, 1]
