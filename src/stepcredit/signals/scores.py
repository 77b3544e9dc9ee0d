"""Where a signal's scores meet a batch's tokens: spans or token values in, `process_rewards` out."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stepcredit.batch import RolloutBatch, Rollouts
from stepcredit.errors import InputError
from stepcredit.signals.protocol import Scores
from stepcredit.signals.spans import project_scores


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
        signal = _on_tokens(batch, scores, 0.0, torch.float64)
        return with_token_signal(batch, batch.layout.pack(signal), batch.dtype)
    projected = project_scores(rollouts, scores)  # type: ignore[arg-type]
    return batch.replace(
        process_rewards=_on_tokens(batch, projected.process_rewards, 0.0, batch.dtype),
        step_ids=_on_tokens(batch, projected.step_ids, -1, torch.int64),
    )


def are_token_values(scores: Scores) -> bool:
    """Whether rows hold numbers, one a token; else they hold scored spans."""
    return any(isinstance(value, (int, float)) for row in scores for value in row[:1])


def place_steps(batch: RolloutBatch, rollouts: Rollouts) -> RolloutBatch:
    """The batch with the ``step_ids`` of the rollouts' own steps, for token values that are to be summed over them.

    Raises:
        InputError: The rollouts have no steps, or no offsets.
    """
    if rollouts.steps is None:
        raise InputError("`rollouts` must have steps; got none. Segment the completions first.")
    spans = [[(start, end, 0.0) for start, end in row] for row in rollouts.steps]
    projected = project_scores(rollouts, spans)  # type: ignore[arg-type]
    return batch.replace(step_ids=_on_tokens(batch, projected.step_ids, -1, torch.int64))


def with_token_signal(batch: RolloutBatch, signal: Tensor, dtype: torch.dtype) -> RolloutBatch:
    """The batch with a packed token signal, float64 [N], as its process rewards; in step mode a step has its sum."""
    layout, steps = batch.layout, batch.steps
    if batch.step_ids is not None:
        inside = steps.of_token >= 0
        sums = signal.new_zeros(steps.ends.numel()).index_add_(0, steps.of_token[inside], signal[inside])
        signal = steps.spread(sums)
    return batch.replace(process_rewards=layout.unpack(signal, fill=0.0, out=layout.empty(dtype)))


def _on_tokens(batch: RolloutBatch, rows: Sequence[Sequence[Any]], fill: float, dtype: torch.dtype) -> Tensor:
    """Ragged rows, one value a token, as a token tensor of the batch."""
    shape, device = batch.response_mask.shape, batch.response_mask.device
    if batch.cu_seqlens is not None:
        lengths = batch.cu_seqlens.diff().tolist()
    else:
        real = batch.response_mask.cumsum(1).argmax(1) + batch.response_mask.any(1)  # up to the last response token
        lengths = real.tolist()
    placed = torch.full(shape, fill, dtype=dtype)
    flat, width = placed.view(-1), shape[-1]
    begin = 0
    for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        exact = batch.cu_seqlens is not None
        if len(row) != length if exact else not length <= len(row) <= width:
            raise InputError(f"`scores` must have one value a token; got {len(row)} for {length} tokens in row {i}.")
        at = begin if exact else i * width
        flat[at : at + len(row)] = torch.tensor(row, dtype=dtype)
        begin += length
    return placed.to(device)
