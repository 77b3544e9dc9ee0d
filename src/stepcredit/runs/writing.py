"""Writing completions token by token: equal prompts are read once, and completions that have ended leave the batch."""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from stepcredit.runs.decoding import read

_SHRINK = 0.85  # rows are dropped once fewer than this share of them are still being written

Draw = Callable[[Tensor, Tensor], Tensor]
"""(logits [rows, vocabulary], the index of the completion that each row is [rows]) -> the next token of each [rows]."""


@torch.no_grad()
def write(
    model: Any,
    prompt_ids: Sequence[Sequence[int]],
    draw: Draw,
    *,
    limits: int | Sequence[int],
    ends: Sequence[int],
    pad_id: int,
    stops: Callable[[Sequence[int]], bool] | None = None,
) -> list[list[int]]:
    """Writes one completion a prompt; equal prompts that follow each other share their reading.

    Args:
        model: A Transformers causal language model with a dynamic cache, in evaluation mode.
        prompt_ids: Ids, ragged; one entry a completion. Shape: [batch][tokens].
        draw: Draws the next tokens. A row that has ended may be drawn a few times more; nothing is made of that.
        limits: The most tokens of a completion, one for all or one each; at least 1.
        ends: The ids that end a completion; they are part of it.
        pad_id: Fills prompts on the left where they differ in length.
        stops: Says whether the ids of a completion so far end it, beside ``ends``.

    Returns:
        The ids of each completion. Shape: [batch][tokens].
    """
    device, count = model.device, len(prompt_ids)
    groups = [(ids, len(list(same))) for ids, same in groupby(prompt_ids)]
    sizes = torch.tensor([size for _, size in groups], device=device)
    most = torch.tensor(limits, device=device).expand(count)
    lengths, longest = most.clone(), int(most.max())
    of_row = torch.arange(len(groups), device=device).repeat_interleave(sizes)
    logits, reading = read(model, [ids for ids, _ in groups], of_row, room=longest, pad_id=pad_id)
    rows = torch.arange(count, device=device)  # which completion each row of the batch is
    written = torch.full((count, longest), pad_id, device=device)
    ended = torch.zeros_like(rows, dtype=torch.bool)
    last = torch.tensor(sorted(ends), device=device)
    for position in range(longest):
        token = draw(logits, rows)
        written[rows, position] = token
        ends_now = torch.isin(token, last)
        if stops is not None:
            ends_now |= torch.tensor([stops(ids) for ids in written[rows, : position + 1].tolist()], device=device)
        ends_now &= ~ended
        lengths[rows[ends_now]] = position + 1
        ended |= ends_now | (most[rows] <= position + 1)
        left = len(ended) - int(ended.sum())
        if not left:
            break
        if left < _SHRINK * len(ended):
            kept = (~ended).nonzero().squeeze(1)
            reading.keep(kept)
            rows, token, ended = rows[kept], token[kept], ended[kept]
        logits = reading.next(token)
    return [ids[:n] for ids, n in zip(written.tolist(), lengths.tolist(), strict=True)]
