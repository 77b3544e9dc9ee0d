"""The one place where character spans become policy tokens, and the proof that they did: of one completion."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stepcredit.batch.ranges import ScoredSpan, Span
from stepcredit.batch.rollouts import check_spans
from stepcredit.errors import InputError

Offsets = Sequence[tuple[int, int]]
AnySpans = Sequence[tuple[int, int] | tuple[int, int, float]]


@dataclass(frozen=True)
class Projection:
    """Where the spans of one completion went.

    Attributes:
        step_ids: For each token the index of its span; -1 where it is uncovered or masked. A span keeps its own
            index, so a span without tokens leaves a gap. Never decreases over the covered tokens.
        uncovered: The trainable tokens that belong to no span, by index.
        empty_spans: The spans that own no trainable token, by index.
    """

    step_ids: list[int]
    uncovered: list[int]
    empty_spans: list[int]


def project(
    spans: Sequence[Span | ScoredSpan], offsets: Offsets, text: str, response_mask: Sequence[bool] | None = None
) -> Projection:
    r"""Gives each trainable token of one completion to at most one character span.

    A token belongs to the span that holds most of its non-space characters; on a tie (as when it has only spaces),
    most of its characters; then to the earlier one. The text between spans takes part like a span: a token that lies
    mostly there is uncovered. A token without characters belongs where the trainable token before it does (so an
    end-of-sequence token ends the last step). Linear in tokens, spans and characters.

    Args:
        spans: Character spans of ``text``, in order, not overlapping; gaps are allowed. Shape: [spans].
        offsets: The characters of each token, as `token_offsets` gives them. Shape: [tokens].
        text: The completion, which tells spaces from other characters.
        response_mask: True where the policy sampled the token; None: everywhere. Shape: [tokens]. Other tokens get
            -1 and change nothing for the rest.

    Returns:
        The `Projection`: each trainable token is either in one span or in ``uncovered``.

    Raises:
        InputError: Spans or offsets leave the text or run backward, spans overlap, or the lengths differ.

    Degenerate cases:
        - Tokens without characters after an uncovered token are uncovered too.
        - A token without characters before every trainable token: uncovered.
        - A span without characters owns no token.

    Example:
        >>> project([Span(0, 3), Span(3, 5)], [(0, 2), (2, 5), (5, 7), (7, 7)], "a+ bb\n\n")
        Projection(step_ids=[0, 1, -1, -1], uncovered=[2, 3], empty_spans=[])
    """
    check_spans("spans", 0, [(span[0], span[1]) for span in spans], text)
    check_spans("offsets", 0, offsets, text)
    if response_mask is not None and len(response_mask) != len(offsets):
        raise InputError(
            f"`response_mask` must have one entry a token; got {len(response_mask)} for {len(offsets)} tokens."
        )
    return projection_of(list(votes(spans, offsets, text, response_mask)), len(spans), response_mask)


def token_spans(step_ids: Sequence[int], offsets: Offsets) -> dict[int, Span]:
    """The character spans that a projection credits: the way back from tokens.

    Args:
        step_ids: The span index of each token, -1 for none. Shape: [tokens].
        offsets: The characters of each token. Shape: [tokens].

    Returns:
        For each span index in use, in order, from the first to the last character of its tokens. Equal to the
        projected span where that starts and ends with a token.

    Raises:
        InputError: The lengths differ.

    Degenerate cases:
        - A token without characters extends nothing.
        - Masked tokens between two tokens of a span lie inside the result.

    Example:
        >>> token_spans([0, 2, 2, -1], [(0, 2), (2, 4), (4, 4), (4, 6)])
        {0: Span(start=0, end=2), 2: Span(start=2, end=4)}
    """
    if len(step_ids) != len(offsets):
        raise InputError(f"`step_ids` must have one entry a token; got {len(step_ids)} for {len(offsets)} tokens.")
    found: dict[int, Span] = {}
    for step, (start, end) in zip(step_ids, offsets, strict=True):
        if step >= 0 and start < end:
            found[step] = Span(found[step].start if step in found else start, end)
    return found


def projection_of(step_ids: list[int], spans: int, mask: Sequence[bool] | None) -> Projection:
    """With the tokens and the spans that found no partner."""
    owners = set(step_ids)
    uncovered: list[int] = []
    if -1 in owners:
        uncovered = [i for i, step in enumerate(step_ids) if step < 0 and (mask is None or mask[i])]
    return Projection(step_ids, uncovered, [span for span in range(spans) if span not in owners])


def votes(spans: AnySpans, offsets: Offsets, text: str, mask: Sequence[bool] | None) -> Iterator[int]:
    """The span of each token by a vote of its characters."""
    first = 0  # the first span that the tokens have not passed; token starts never decrease, so it only moves on
    previous = -1
    for token, (start, end) in enumerate(offsets):
        if mask is not None and not mask[token]:
            yield -1
            continue
        if start < end:
            while first < len(spans) and spans[first][1] <= start:
                first += 1
            previous = _owner(spans, first, start, end, text)
        yield previous


def _owner(spans: AnySpans, first: int, start: int, end: int, text: str) -> int:
    """The span, from ``first`` on, that owns the characters ``[start, end)``; -1 if the text between spans does."""
    if first == len(spans) or end <= spans[first][0]:
        return -1
    if spans[first][0] <= start and end <= spans[first][1]:  # nearly every token lies in one span: no need to vote
        return first
    owner, most = -1, (0, 0)
    for index in range(first, len(spans) + 1):
        low, high = (spans[index][0], spans[index][1]) if index < len(spans) else (end, end)
        pieces = ((-1, start, min(low, end)), (index, max(low, start), min(high, end)))  # the gap before it, and it
        for piece, left, right in pieces:
            shared = text[left:right] if left < right else ""
            votes = (sum(map(len, shared.split())), len(shared))
            if votes > most:
                owner, most = piece, votes
        start = max(start, high)
        if start >= end:
            break
    return owner
