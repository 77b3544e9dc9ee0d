"""Where a signal's scores meet a batch's tokens: spans or token values in, `process_rewards` out."""

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from stepcredit.batch import RolloutBatch, Rollouts
from stepcredit.batch.ranges import ScoredRanges
from stepcredit.errors import InputError
from stepcredit.signals.protocol import Scores
from stepcredit.signals.scored_spans import token_scores


def place_scores(batch: RolloutBatch, rollouts: Rollouts, scores: Scores) -> RolloutBatch:
    """The batch with a signal's scores as its process rewards.

    Scored spans are put on tokens by `project_scores` and bring their own ``step_ids``. Token values stay as they
    are, or are summed over the steps of a batch that has ``step_ids``.

    Args:
        batch: The rollouts as tensors, padded or packed.
        rollouts: The same rollouts as text.
        scores: What the signal's ``score`` gave for them.

    Returns:
        The batch with ``process_rewards``, and with ``step_ids`` if spans were scored.

    Raises:
        InputError: Not one row a rollout or not one value a token, a value of a response token that is not finite,
            or what `project_scores` refuses.

    Degenerate cases:
        No scores at all: nothing is covered.

    Example:
        >>> batch = RolloutBatch.from_lists([3], [0], step_ids=[[0, 0, 1]])
        >>> rollouts = Rollouts(["1+1="], ["so 2"], group_ids=[0])
        >>> place_scores(batch, rollouts, [[0.25, 0.5, -1.0]]).process_rewards.tolist()
        [[0.75, 0.75, -1.0]]
    """
    if len(scores) != len(rollouts):
        raise InputError(f"`scores` must have one row a rollout; got {len(scores)} for {len(rollouts)} rollouts.")
    if are_token_values(scores):
        values = torch.from_numpy(np.fromiter(chain.from_iterable(scores), np.float64))
        (signal,) = _on_tokens(batch, [len(row) for row in scores], (values, 0.0))
        return with_token_signal(batch, batch.layout.pack(signal), batch.dtype)
    steps, found = map(torch.from_numpy, token_scores(rollouts, scores))  # type: ignore[arg-type]
    values, step_ids = _on_tokens(batch, _token_counts(rollouts), (found.to(batch.dtype), 0.0), (steps, -1))
    return batch.replace(process_rewards=values, step_ids=step_ids)


def are_token_values(scores: Scores) -> bool:
    """Whether rows hold numbers, one a token; else they hold scored spans."""
    rows = (row for row in scores if not isinstance(row, ScoredRanges))
    return any(isinstance(value, (int, float)) for row in rows for value in row[:1])


def place_steps(batch: RolloutBatch, rollouts: Rollouts) -> RolloutBatch:
    """The batch with the ``step_ids`` of the rollouts' own steps, for token values that are to be summed over them.

    Raises:
        InputError: The rollouts have no steps, or no offsets.
    """
    if rollouts.steps is None:
        raise InputError("`rollouts` must have steps; got none. Segment the completions first.")
    spans = [[(start, end, 0.0) for start, end in row] for row in rollouts.steps]
    steps, _ = token_scores(rollouts, spans)  # type: ignore[arg-type]
    (step_ids,) = _on_tokens(batch, _token_counts(rollouts), (torch.from_numpy(steps), -1))
    return batch.replace(step_ids=step_ids)


def with_token_signal(batch: RolloutBatch, signal: Tensor, dtype: torch.dtype) -> RolloutBatch:
    """The batch with a packed token signal, float64 [N], as its process rewards; in step mode a step has its sum."""
    layout, steps = batch.layout, batch.steps
    if batch.step_ids is not None:
        inside = steps.of_token >= 0
        sums = signal.new_zeros(steps.ends.numel()).index_add_(0, steps.of_token[inside], signal[inside])
        signal = steps.spread(sums)
    return batch.replace(process_rewards=layout.unpack(signal, fill=0.0, out=layout.empty(dtype)))


def _token_counts(rollouts: Rollouts) -> list[int]:
    return [len(row) for row in rollouts.offsets or ()]


def _on_tokens(batch: RolloutBatch, counts: Sequence[int], *given: tuple[Tensor, float]) -> list[Tensor]:
    """Values a token, the rollouts one after the other, as token tensors of the batch; each with what is elsewhere."""
    device, width = batch.response_mask.device, batch.response_mask.shape[-1]
    exact = batch.cu_seqlens is not None
    if batch.cu_seqlens is not None:
        lengths = batch.cu_seqlens.diff().tolist()
    else:
        places = torch.arange(1, width + 1, device=device)
        lengths = torch.where(batch.response_mask, places, 0).amax(1).tolist()  # up to the last response token
    for i, (count, length) in enumerate(zip(counts, lengths, strict=True)):
        if count != length if exact else not length <= count <= width:
            raise InputError(f"`scores` must have one value a token; got {count} for {length} tokens in row {i}.")
    if exact:
        return [values.to(device) for values, _ in given]
    inside = torch.arange(width) < torch.tensor(counts).unsqueeze(1)
    return [
        torch.full(inside.shape, fill, dtype=values.dtype).masked_scatter_(inside, values).to(device)
        for values, fill in given
    ]
