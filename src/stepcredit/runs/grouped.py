"""Sampling for policies that TRL would generate with Transformers: a prompt is read once for its whole group."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stepcredit.errors import InputError
from stepcredit.runs.writing import write


class GroupedSampler:
    """A `rollout_func` for TRL: plain sampling at the trainer's temperature, with the policy's own weights.

    Each distinct prompt is read once and its cache repeated for the group; completions that have ended leave the
    batch. The distribution is that of `generate`.

    Raises:
        InputError: On the first call, if the trainer's settings ask for what plain sampling does not do.
    """

    def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        """Ids of the prompts and of one completion each; no log-probabilities: the trainer computes its own."""
        prompt_ids = trainer._tokenize_prompts(prompts)[0]
        with plain_sampling(trainer) as model:
            completions = sample_groups(
                model, prompt_ids, eos_ids=end_ids(trainer), max_new_tokens=trainer.max_completion_length,
                temperature=trainer.temperature, pad_id=trainer.processing_class.pad_token_id,
            )  # fmt: skip
        return {"prompt_ids": prompt_ids, "completion_ids": completions, "logprobs": None}


@contextmanager
def plain_sampling(trainer: Any) -> Iterator[Any]:
    """The trainer's policy, in evaluation mode while it samples.

    Raises:
        InputError: The trainer's settings ask for what plain sampling does not do.
    """
    settings = trainer.generation_config
    plain = {"top_p": 1.0, "min_p": None, "repetition_penalty": 1.0}
    for name, value in plain.items():
        if getattr(settings, name, value) not in (value, None):
            raise InputError(f"`run.sampler` must be 'trl' with {name} {getattr(settings, name)}; got 'grouped'.")
    model = trainer.accelerator.unwrap_model(trainer.model)
    training = model.training
    model.eval()
    try:
        yield model
    finally:
        model.train(training)


def end_ids(trainer: Any) -> list[int]:
    """The ids that end a completion; older versions of TRL know the tokenizer's alone."""
    found: Sequence[int] = getattr(trainer, "eos_token_ids", None) or [trainer.processing_class.eos_token_id]
    return list(found)


def sample_groups(
    model: Any,
    prompt_ids: list[list[int]],
    *,
    eos_ids: Sequence[int],
    max_new_tokens: int | Sequence[int],
    temperature: float,
    pad_id: int,
    stops: Callable[[Sequence[int]], bool] | None = None,
) -> list[list[int]]:
    """Samples one completion a prompt; equal prompts that follow each other share their reading.

    Args:
        model: A Transformers causal language model with a dynamic cache.
        prompt_ids: Ids, ragged; one entry a completion. Shape: [batch][tokens].
        eos_ids: The ids that end a completion; they are part of it.
        max_new_tokens: Limit of a completion, one for all or one each; at least 1.
        temperature: Divides the logits; above 0.
        pad_id: Fills prompts on the left where they differ in length.
        stops: Says whether the ids of a completion so far end it, beside ``eos_ids``.

    Returns:
        The ids of each completion, drawn with torch's random state. Shape: [batch][tokens].
    """
    drawn = partial(_draw, temperature=temperature)
    return write(model, prompt_ids, drawn, limits=max_new_tokens, ends=eos_ids, pad_id=pad_id, stops=stops)


def _draw(logits: Tensor, _rows: Tensor, *, temperature: float) -> Tensor:
    """A token a row from the softmax, by the Gumbel-max trick."""
    noise = torch.empty_like(logits, dtype=torch.float32).exponential_().log_()
    return (logits.float() / temperature - noise).argmax(-1)
