"""The one place where character spans become policy tokens, and the proof that they did."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from math import isfinite
from typing import Any

import numpy as np

from stepcredit.batch.ranges import Ranges
from stepcredit.batch.rollouts import Rollouts, ScoredSpan, Span, check_spans
from stepcredit.errors import InputError

Offsets = Sequence[tuple[int, int]]
AnySpans = Sequence[tuple[int, int] | tuple[int, int, float]]
Array = np.ndarray[Any, np.dtype[Any]]


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


@dataclass(frozen=True)
class ProjectedScores:
    """A text signal on the tokens of a batch, ragged: [batch][tokens], and what it does not reach.

    Attributes:
        process_rewards: The score of the token's span, in the signal's unit; 0.0 where there is none.
        step_ids: The index of the token's span; -1 where there is none. Says which zeros are scores.
        uncovered: For each rollout its trainable tokens without a score, by index.
        empty_spans: For each rollout the scored spans that own no trainable token, by index: lost scores.
    """

    process_rewards: list[list[float]]
    step_ids: list[list[int]]
    uncovered: list[list[int]]
    empty_spans: list[list[int]]

    @property
    def uncovered_count(self) -> int:
        """The number of trainable tokens without a score, over the batch."""
        return sum(map(len, self.uncovered))

    @property
    def empty_span_count(self) -> int:
        """The number of scored spans that own no trainable token, over the batch."""
        return sum(map(len, self.empty_spans))


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
    return _projection(list(_vote(spans, offsets, text, response_mask)), len(spans), response_mask)


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


def project_scores(rollouts: Rollouts, scores: Sequence[Sequence[ScoredSpan]]) -> ProjectedScores:
    """Puts a text signal's scores on the policy's tokens.

    Args:
        rollouts: The rollouts that were scored; must have ``offsets``. Without ``response_mask`` all tokens count.
        scores: The scored character spans of each completion, in order, not overlapping. Shape: [batch][spans].

    Returns:
        The `ProjectedScores`: for each token its span's score and index by the rule of `project`, with the tokens
        and the spans that found no partner.

    Raises:
        InputError: ``rollouts`` has no offsets, ``scores`` has another length, a score is nan or infinite, or a
            span leaves its completion or overlaps the one before; the message names the row.

    Degenerate cases:
        - A rollout without scored spans: zeros, with every trainable token uncovered.

    Example:
        >>> rollouts = Rollouts(["1+1="], ["2."], group_ids=[0], offsets=[[(0, 1), (1, 2)]])
        >>> project_scores(rollouts, [[ScoredSpan(0, 1, 0.9)]])
        ProjectedScores(process_rewards=[[0.9, 0.0]], step_ids=[[0, -1]], uncovered=[[1]], empty_spans=[[]])
    """
    steps, found = token_scores(rollouts, scores)
    result = ProjectedScores([], [], [], [])
    end = 0
    for row, offsets in enumerate(rollouts.offsets or ()):
        start, end = end, end + len(offsets)
        mask = None if rollouts.response_mask is None else rollouts.response_mask[row]
        projection = _projection(steps[start:end].tolist(), len(scores[row]), mask)
        result.process_rewards.append(found[start:end].tolist())
        result.step_ids.append(projection.step_ids)
        result.uncovered.append(projection.uncovered)
        result.empty_spans.append(projection.empty_spans)
    return result


def token_scores(rollouts: Rollouts, scores: Sequence[Sequence[ScoredSpan]]) -> tuple[Array, Array]:
    """What `project_scores` says, token by token, the rollouts one after the other.

    Returns:
        int64 [tokens]: the step of each token, -1 for none; float64 [tokens]: its score, 0.0 for none.

    Raises:
        InputError: As `project_scores`.
    """
    if rollouts.offsets is None:
        raise InputError("`rollouts` must have offsets; got none. Make them with `token_offsets`.")
    if len(scores) != len(rollouts):
        raise InputError(f"`scores` must have one entry a rollout; got {len(scores)} for {len(rollouts)} rollouts.")
    spans = np.array([len(of_row) for of_row in scores], np.int64)
    starts, ends, values = _flat(scores, rollouts.completions, spans)
    tokens_to = np.cumsum([0, *map(len, rollouts.offsets)])
    first, last, whole = _whole_tokens(rollouts, starts, ends, spans)
    row = np.repeat(np.arange(spans.size), spans)
    kept = np.flatnonzero(whole[row])
    lengths = (last - first)[kept]
    before = np.cumsum(lengths) - lengths
    tokens = np.repeat(first[kept] - before, lengths) + np.arange(lengths.sum())
    steps, found = np.full(tokens_to[-1], -1), np.zeros(tokens_to[-1])
    first_span = np.cumsum(spans) - spans
    steps[tokens] = np.repeat(kept - first_span[row[kept]], lengths)
    found[tokens] = np.repeat(values[kept], lengths)
    for i in np.flatnonzero(~whole).tolist():
        mask = None if rollouts.response_mask is None else rollouts.response_mask[i]
        at, own = slice(tokens_to[i], tokens_to[i + 1]), values[first_span[i] : first_span[i] + spans[i]]
        steps[at] = list(_vote(scores[i], rollouts.offsets[i], rollouts.completions[i], mask))
        found[at] = np.append(own, 0.0)[steps[at]]  # -1, no step, reads the last
    return steps, found


def _flat(scores: Sequence[Sequence[ScoredSpan]], texts: Sequence[str], spans: Array) -> tuple[Array, Array, Array]:
    """The spans of all rollouts in one, checked: where they start, where they end, and their scores."""
    flat = list(chain.from_iterable(scores))
    starts, ends, values = zip(*flat, strict=True) if flat else ((), (), ())
    numbers = all(hasattr(kind, "__float__") for kind in {*map(type, values)})  # float() would take "0.5", too
    low, high = np.array(starts), np.array(ends)
    found = np.fromiter(map(float, values if numbers else ()), np.float64)
    right = numbers and {*map(type, starts), *map(type, ends)} <= {int} and bool(np.isfinite(found).all())
    if right:
        before = np.concatenate([[0], high])[:-1]
        before[(np.cumsum(spans) - spans)[np.flatnonzero(spans)]] = 0  # each rollout's first
        right = bool(((before <= low) & (low <= high) & (high <= np.repeat([*map(len, texts)], spans))).all())
    for row, (of_row, text) in enumerate(zip(scores, texts, strict=True) if not right else ()):
        _check(row, of_row, text)
    return low.astype(np.int64), high.astype(np.int64), found


def _check(row: int, spans: Sequence[ScoredSpan], text: str) -> None:
    """Refuses the scored spans of one rollout, if they are wrong."""
    check_spans("scores", row, [(span[0], span[1]) for span in spans], text)
    for index, (start, end, score) in enumerate(spans):
        if not hasattr(score, "__float__") or not isfinite(score):
            raise InputError(
                f"`scores` must be finite numbers; got {score!r:.40} for span {index}, ({start}, {end}), in row {row}. "
                "Leave a span out to leave it unscored."
            )


def _whole_tokens(rollouts: Rollouts, starts: Array, ends: Array, spans: Array) -> tuple[Array, Array, Array]:
    """Nearly all spans begin and end with a token: these are found at once, without a vote.

    All tokens of the batch, rollout after rollout, stand on one axis of characters, one more between two rollouts.
    Tokens without characters stand between equal bounds, of which the last is taken: they belong to what is before.

    Args:
        rollouts: The rollouts.
        starts: Where the spans of all rollouts begin in their own.
        ends: Where they end.
        spans: How many each rollout has.

    Returns:
        The first token of each span, and the one after its last, int64 [spans]: they mean something in the rollouts
        where, bool [batch], every span begins and ends with a token, each of which is trained on.
    """
    offsets: Sequence[Offsets] = rollouts.offsets or []
    masks: Sequence[Sequence[bool] | None] = rollouts.response_mask or [None] * len(rollouts)
    trained = [mask is None or all(mask) for mask in masks]
    own = [x.bounds if isinstance(x, Ranges) else np.zeros(len(x) + 1, np.int64) for x in offsets]
    sizes = np.array([len(text) + 1 for text in rollouts.completions], np.int64)
    row = np.repeat(np.arange(spans.size), spans)
    shift = np.cumsum(sizes) - sizes
    bounds = np.concatenate([*own, sizes[:0]]) + np.repeat(shift, np.array([x.size for x in own], np.int64))
    starts, ends = starts + shift[row], ends + shift[row]
    first, last = (np.searchsorted(bounds, at, "right") - 1 for at in (starts, ends))
    whole = np.array([isinstance(x, Ranges) for x in offsets], bool) & np.array(trained, bool)
    whole[row[(bounds[first] != starts) | (bounds[last] != ends)]] = False
    return first - row, last - row, whole  # each rollout has one bound more than it has tokens


def _projection(step_ids: list[int], spans: int, mask: Sequence[bool] | None) -> Projection:
    """With the tokens and the spans that found no partner."""
    owners = set(step_ids)
    uncovered: list[int] = []
    if -1 in owners:
        uncovered = [i for i, step in enumerate(step_ids) if step < 0 and (mask is None or mask[i])]
    return Projection(step_ids, uncovered, [span for span in range(spans) if span not in owners])


def _vote(spans: AnySpans, offsets: Offsets, text: str, mask: Sequence[bool] | None) -> Iterator[int]:
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
