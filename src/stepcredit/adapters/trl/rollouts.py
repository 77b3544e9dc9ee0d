"""From what TRL's trainer holds after generation to `Rollouts`."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from stepcredit.batch import Rollouts, Span
from stepcredit.signals.offsets import token_offsets

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

    The completion's text is what its ids decode to, special tokens left out, tool output included.

    Args:
        inputs: The rows of the data set, one a rollout.
        completion_ids: The sampled ids, ragged, tool tokens included.
        mask: The tokens that are trained on. Shape: [batch, time].
        groups: Shape: [batch].
        tokenizer: The policy's.
        cut: Cuts a completion into steps; None leaves steps out.
        reference: The column of the gold answer; left out where the data set has none.
        offsets: Whether the tokens' characters are asked for without steps, too.
        prompt_ids: What the policy was given.
    """
    ids = [list(map(int, row)) for row in completion_ids]
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    references = [row.get(reference) for row in inputs]
    pairs = list(zip(ids, texts, strict=True))
    return Rollouts(
        [prompt_text(row.get("prompt", "")) for row in inputs],
        texts,
        groups.tolist(),
        token_ids=ids,
        response_mask=[kept[: len(row)] for kept, row in zip(mask.tolist(), ids, strict=True)],
        references=[str(x) for x in references] if all(x is not None for x in references) else None,
        offsets=[token_offsets(tokenizer, row, text) for row, text in pairs] if cut or offsets else None,
        steps=[cut(text) for text in texts] if cut else None,
        prompt_ids=prompt_ids,
        messages=[_chat(row.get("prompt")) for row in inputs],
    )


def prompt_text(prompt: Any) -> str:
    """A prompt's own words: the text itself, or the last message of a user.

    Example:
        >>> prompt_text([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}])
        '1+1?'
    """
    if isinstance(prompt, str):
        return prompt
    contents = [message.get("content") for message in prompt if message.get("role") == "user"] or [""]
    parts = contents[-1] if isinstance(contents[-1], list) else [{"text": contents[-1] or ""}]
    return "".join(str(part.get("text", "")) for part in parts)


def _chat(prompt: Any) -> list[dict[str, Any]] | None:
    return None if prompt is None or isinstance(prompt, str) else list(prompt)
