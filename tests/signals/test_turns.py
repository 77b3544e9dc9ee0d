"""What the policy wrote of a completion: runs of its tokens, as characters."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepcredit.batch import Rollouts
from stepcredit.errors import InputError
from stepcredit.signals.offsets import policy_turns, token_offsets


class Bytes:
    """A byte a token, 0 the end of sequence."""

    def decode(self, ids: list[int], **_: bool) -> str:
        return bytes(i for i in ids if i).decode(errors="replace")


@pytest.mark.parametrize(
    ("offsets", "mask", "turns"),
    [
        ([], [], []),
        ([(0, 2), (2, 3)], [1, 1], [(0, 3)]),
        ([(0, 2), (2, 3)], [0, 0], []),
        ([(0, 2), (2, 5), (5, 6), (6, 6)], [1, 0, 1, 1], [(0, 2), (5, 6)]),
        ([(0, 2), (2, 2), (2, 5), (5, 5)], [1, 1, 0, 1], [(0, 2), (5, 5)]),  # an end of sequence is a turn, too
        ([(0, 1), (1, 4)], [0, 1], [(1, 4)]),
        # two tokens of one character, one of them the environment's: the character is the environment's
        ([(0, 1), (1, 2), (1, 2), (2, 3)], [1, 1, 0, 1], [(0, 1), (2, 3)]),
        ([(0, 1), (0, 1), (1, 3)], [0, 1, 1], [(1, 3)]),
    ],
)
def test_by_hand(offsets: list[tuple[int, int]], mask: list[int], turns: list[tuple[int, int]]) -> None:
    assert policy_turns(offsets, mask) == turns


def test_lengths_must_agree() -> None:
    with pytest.raises(InputError, match="`policy_mask` must have one entry a token; got 1 for 2 tokens"):
        policy_turns([(0, 1), (1, 2)], [1])


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.binary(max_size=5) | st.sampled_from(["é".encode(), b"ab\n", b"\xe2\x82", b"\x00"]), st.booleans())
    )
)
def test_turns_are_spans_that_rollouts_take_and_no_character_is_both(runs: list[tuple[bytes, bool]]) -> None:
    ids = [byte for part, _ in runs for byte in part]
    mask = [int(mine) for part, mine in runs for _ in part]
    text = Bytes().decode(ids)
    offsets = token_offsets(Bytes(), ids, text)
    turns = policy_turns(offsets, mask)
    Rollouts([""], [text], [0], offsets=[offsets], turns=[turns])  # checks order and bounds
    assert len(turns) == sum(1 for mine, _ in itertools.groupby(mask) if mine)
    owned = {i for start, end in turns for i in range(start, end)}
    written = {
        kept: {i for (a, b), k in zip(offsets, mask, strict=True) if k == kept for i in range(a, b)} for kept in (0, 1)
    }
    assert owned == written[1] - written[0]
