"""Log-probabilities across two tokenizers: what both segmentations of one text share, and the policy's part of it."""

from collections.abc import Sequence
from math import fsum
from typing import NamedTuple

from stepcredit.errors import InputError

Offsets = Sequence[tuple[int, int]]


class SharedSpan(NamedTuple):
    """Characters ``[start, end)`` that both tokenizations spell with whole tokens of their own.

    Attributes:
        start: The first character.
        end: The one after the last.
        policy: The tokens of the first tokenization that spell them, by index.
        teacher: Those of the second.
    """

    start: int
    end: int
    policy: Sequence[int]
    teacher: Sequence[int]


def shared_spans(policy: Offsets, teacher: Offsets) -> list[SharedSpan]:
    """The finest segmentation of a text whose every boundary is one of both tokenizations.

    A boundary is a place that no token reaches over, so the tokens that share a multi-byte character stay together. A
    token without characters goes with the span that begins where it stands, or with the last one at the text's end;
    leave out those that stand for themselves, like an end of sequence.

    Args:
        policy: The characters of each token, as `token_offsets` gives them. Shape: [policy tokens].
        teacher: The same text's characters under another tokenizer. Shape: [teacher tokens].

    Returns:
        The spans in order. Together they have every character once, and every token of either side once.

    Raises:
        InputError: The two sides do not cover the same characters without a gap.

    Degenerate cases:
        - No characters: no span; tokens without characters are then in none.
        - The same tokens on both sides: a span for every token, or for all tokens of one character.
        - Nothing in common but both ends: one span.

    Example:
        >>> shared_spans([(0, 2), (2, 3), (3, 6)], [(0, 1), (1, 3), (3, 4), (4, 6)])
        [SharedSpan(start=0, end=3, policy=range(0, 2), teacher=range(0, 2)),
         SharedSpan(start=3, end=6, policy=range(2, 3), teacher=range(2, 4))]
    """
    cuts, others = _cuts("policy", policy), _cuts("teacher", teacher)
    if max(cuts) != max(others):
        raise InputError(f"`teacher` must cover the policy's {max(cuts)} characters; got {max(others)}.")
    spans: list[SharedSpan] = []
    start = mine = theirs = 0
    for end in sorted((cuts.keys() & others.keys()) - {0}):
        spans.append(SharedSpan(start, end, range(mine, cuts[end]), range(theirs, others[end])))
        start, mine, theirs = end, cuts[end], others[end]
    return spans


def onto_policy_tokens(
    policy_logprobs: Sequence[float], teacher_logprobs: Sequence[float], spans: Sequence[SharedSpan]
) -> list[float]:
    """A teacher's log-probabilities on the policy's tokens, from those on its own.

        l_T[t] = l_P[t] + (S_T - S_P) / n    for each of the n policy tokens t of a span, S its sums on either side

    So ``l_T - l_P``, which distillation reads, is constant in a span, and its sum over one is exactly what the two
    models differ by there.

    Args:
        policy_logprobs: Of the policy's tokens, nats. Shape: [policy tokens].
        teacher_logprobs: Of the teacher's tokens, nats. Shape: [teacher tokens].
        spans: What belongs together, as from `shared_spans`.

    Returns:
        Of the policy's tokens under the teacher, nats. Shape: [policy tokens]. The policy's own for a token that is in
        no span: nothing is known there, and nothing differs.

    Raises:
        InputError: A span has no tokens on one side, or tokens that are not there.

    Degenerate cases:
        A span of one token on each side: the teacher's number itself.

    Example:
        >>> spans = [SharedSpan(0, 3, range(0, 2), range(0, 1)), SharedSpan(3, 4, range(2, 3), range(1, 2))]
        >>> onto_policy_tokens([-1.0, -2.0, -0.5, -9.0], [-2.0, -0.25], spans)
        [-0.5, -1.5, -0.25, -9.0]
    """
    found = [float(x) for x in policy_logprobs]
    for span in spans:
        mine, theirs = span.policy, span.teacher
        if not mine or not theirs or mine[-1] >= len(policy_logprobs) or theirs[-1] >= len(teacher_logprobs):
            raise InputError(
                f"`spans` must have tokens of both sides; got {span} for {len(policy_logprobs)} and "
                f"{len(teacher_logprobs)} tokens."
            )
        whole = fsum(teacher_logprobs[t] for t in theirs)
        if len(mine) == 1:
            found[mine[0]] = whole
            continue
        share = (whole - fsum(policy_logprobs[t] for t in mine)) / len(mine)
        for t in mine:
            found[t] += share
    return found


def _cuts(name: str, offsets: Offsets) -> dict[int, int]:
    """The places that no token reaches over, each with the number of tokens before it."""
    cuts: dict[int, int] = {}
    reached = 0
    for index, (start, end) in enumerate(offsets):
        if start > reached:
            raise InputError(f"`{name}` must cover its text without a gap; got none for {reached} to {start}.")
        if start == reached:
            cuts.setdefault(reached, index)
        reached = max(reached, end)
    cuts[reached] = len(offsets)
    return cuts
