"""A text signal's scored spans on the tokens of a batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from math import isfinite
from typing import Any

import numpy as np

from stepcredit.batch.ranges import Ranges, ScoredRanges, ScoredSpan
from stepcredit.batch.rollouts import Rollouts, check_spans
from stepcredit.errors import InputError
from stepcredit.signals.spans import Offsets, projection_of, votes

Array = np.ndarray[Any, np.dtype[Any]]


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
        projection = projection_of(steps[start:end].tolist(), len(scores[row]), mask)
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
        steps[at] = list(votes(scores[i], rollouts.offsets[i], rollouts.completions[i], mask))
        found[at] = np.append(own, 0.0)[steps[at]]  # -1, no step, reads the last
    return steps, found


def _flat(scores: Sequence[Sequence[ScoredSpan]], texts: Sequence[str], spans: Array) -> tuple[Array, Array, Array]:
    """The spans of all rollouts in one, checked: where they start, where they end, and their scores."""
    opens = (np.cumsum(spans) - spans)[np.flatnonzero(spans)]  # each rollout's first span
    if {*map(type, scores)} == {ScoredRanges}:
        high = np.fromiter(chain.from_iterable(x.ends for x in scores), np.int64)  # type: ignore[attr-defined]
        found = np.fromiter(chain.from_iterable(x.scores for x in scores), np.float64)  # type: ignore[attr-defined]
        low, right = _behind(high, opens), True
    else:
        flat = list(chain.from_iterable(scores))
        starts, ends, values = zip(*flat, strict=True) if flat else ((), (), ())
        right = all(hasattr(kind, "__float__") for kind in {*map(type, values)})  # float() would take "0.5", too
        low, high = np.array(starts), np.array(ends)
        found = np.fromiter(map(float, values if right else ()), np.float64)
        right = right and {*map(type, starts), *map(type, ends)} <= {int}
    if right:
        inside = (low <= high) & (high <= np.repeat([*map(len, texts)], spans)) & np.isfinite(found)
        right = bool(((_behind(high, opens) <= low) & inside).all())
    for row, (of_row, text) in enumerate(zip(scores, texts, strict=True) if not right else ()):
        _check(row, of_row, text)
    return low.astype(np.int64), high.astype(np.int64), found


def _behind(ends: Array, opens: Array) -> Array:
    """Where each span may begin at the earliest: at the end of the one before, or at 0."""
    before = np.concatenate([[0], ends])[:-1]
    before[opens] = 0
    return before


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
