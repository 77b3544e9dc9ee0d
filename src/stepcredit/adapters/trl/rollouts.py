"""From what TRL's trainer holds after generation to `Rollouts`."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from stepcredit.batch import Rollouts, Span
from stepcredit.batch.rollouts import prompt_text
from stepcredit.errors import InputError
from stepcredit.signals.decoding import decoded
from stepcredit.signals.offsets import decoded_offsets, policy_turns

POLICY_MASK = "policy_mask"
"""The column of `inputs` that tells reward functions which tokens of each completion the policy wrote."""

Cut = Callable[[str], Sequence[Span]]


def loss_mask(output: dict[str, Any]) -> Tensor:
    """The tokens that TRL's loss trains on: bool [batch, time]; tool tokens, padding and masked rows are False."""
    mask: Tensor = output["completion_mask"]
    if output.get("tool_mask") is not None:
        mask = mask * output["tool_mask"]
    return mask.bool()


def group_ids(n_rows: int, num_generations: int, rank: int, device: torch.device) -> Tensor:
    """The group of each local row, the same label on every rank that holds rows of it. int64 [batch].

    TRL hands out a prompt's generations one after the other over the ranks' equally long local batches.
    """
    return torch.div(
        torch.arange(rank * n_rows, (rank + 1) * n_rows, device=device), num_generations, rounding_mode="floor"
    )


def generated_mask(output: Sequence[Any]) -> list[list[int]] | None:
    """What the trainer's ``_generate`` says of who wrote each token: 1 the policy, 0 an environment; None: all policy.

    Args:
        output: What it returned: prompt ids, completion ids, this mask, ...

    Raises:
        InputError: There is something else in its place: another TRL than those that this adapter knows.
    """
    ids, mask = output[1], output[2]
    if mask is None:
        return None
    if not isinstance(mask, list) or [len(row) for row in mask] != [len(row) for row in ids]:
        raise InputError(
            "`trainer` must generate a mask of the policy's tokens, one number a token of each completion; got a "
            f"{type(mask).__name__} of other lengths. Use a version of TRL that stepcredit is tested with, or an "
            "`env_mask` as long as its completion."
        )
    return [[int(kept) for kept in row] for row in mask]


def with_policy_mask(inputs: Sequence[dict[str, Any]], mask: Sequence[Sequence[int]] | None) -> list[dict[str, Any]]:
    """The rows of the data set with the column `POLICY_MASK`, as they are where there is no mask.

    Raises:
        InputError: The data set has a column of that name.
    """
    if mask is None:
        return list(inputs)
    if any(POLICY_MASK in row for row in inputs):
        raise InputError(f"`train_dataset` must have no column {POLICY_MASK!r}, which tells reward functions who wrote "
                         "each token; got one. Rename it.")  # fmt: skip
    return [{**row, POLICY_MASK: list(kept)} for row, kept in zip(inputs, mask, strict=True)]


def text_rollouts(
    inputs: Sequence[dict[str, Any]],
    completion_ids: Sequence[Sequence[int]],
    mask: Tensor,
    groups: Tensor,
    tokenizer: Any,
    *,
    cut: Cut | None,
    reference: str,
    offsets: bool = False,
    prompt_ids: Sequence[Sequence[int]] | None = None,
) -> Rollouts:
    """The rollouts as text, with offsets and steps where a text signal needs them.

    The completion's text is what its ids decode to, special tokens left out, tool output included. Where the rows
    say who wrote each token (`POLICY_MASK`) the policy's turns are spans of it, and steps are cut inside each turn:
    never across what an environment wrote, and never in it.

    Args:
        inputs: The rows of the data set, one a rollout; with the column `POLICY_MASK` where an environment wrote, too.
        completion_ids: The sampled ids, ragged, tool tokens included.
        mask: The tokens that are trained on. Shape: [batch, time].
        groups: Shape: [batch].
        tokenizer: The policy's.
        cut: Cuts a completion into steps; None leaves steps out.
        reference: The column of the gold answer; left out where the data set has none.
        offsets: Whether the tokens' characters are asked for without steps, too.
        prompt_ids: What the policy was given.
    """
    ids, texts = decoded(tokenizer, completion_ids)
    references = [row.get(reference) for row in inputs]
    masks = [row.get(POLICY_MASK) for row in inputs]
    several = any(kept is not None and not all(kept) for kept in masks)
    ranges = turns = None
    if cut or offsets or several:
        ranges = decoded_offsets(tokenizer, ids, texts)
    if several and ranges is not None:
        turns = [policy_turns(row, kept or []) for row, kept in zip(ranges, masks, strict=True)]
    return Rollouts(
        [prompt_text(row.get("prompt", "")) for row in inputs],
        texts,
        groups.tolist(),
        token_ids=ids,
        response_mask=_rows_of(mask, ids),
        references=[str(x) for x in references] if all(x is not None for x in references) else None,
        offsets=ranges,
        steps=_steps(cut, texts, turns) if cut else None,
        turns=turns,
        prompt_ids=prompt_ids,
        messages=[_chat(row.get("prompt")) for row in inputs],
    )


def _rows_of(mask: Tensor, ids: Sequence[Sequence[int]]) -> list[list[bool]]:
    """The mask of each completion's own tokens; it has no True behind them."""
    rows = mask.cpu().numpy()
    counts = zip(rows, rows.sum(1).tolist(), map(len, ids), strict=True)
    return [[True] * size if count == size else row[:size].tolist() for row, count, size in counts]  # mostly the first


def _steps(cut: Cut, texts: Sequence[str], turns: Sequence[Sequence[Span]] | None) -> list[Sequence[Span]]:
    """The steps of each text; where there are turns, those of each turn alone."""
    if turns is None:
        return [cut(text) for text in texts]
    return [
        [Span(a + start, b + start) for start, end in row for a, b in cut(text[start:end])]
        for text, row in zip(texts, turns, strict=True)
    ]


def _chat(prompt: Any) -> list[dict[str, Any]] | None:
    return None if prompt is None or isinstance(prompt, str) else list(prompt)
