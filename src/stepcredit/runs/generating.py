"""Generation whose tokens belong to the completion: turns drawn by `SeededSampler`.

They are written by our own loop where that steps through the model's layers, else by Transformers' ``generate``.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from stepcredit.errors import InputError
from stepcredit.runs.conversing import TurnProtocol
from stepcredit.runs.decoding import steps_through_layers
from stepcredit.runs.sampling import SeededSampler
from stepcredit.runs.writing import write


class SeededTurns:
    """Writes the next turn of some of a batch's rollouts, for `converse`.

    Args:
        model: In `plain_generation`.
        protocol: Says what ends a turn beside the end tokens.
        keys: ``(example id, sample index)`` of each rollout.
        seed: Chooses the random numbers.
        max_new_tokens: Limit of a completion, as `plain_generation` was told.
        temperature: Divides the logits.
        ends: The policy's end tokens.

    Attributes:
        entropies: For each rollout the nats of every token that it sampled.
    """

    def __init__(
        self,
        model: Any,
        protocol: TurnProtocol,
        keys: Sequence[tuple[str, int]],
        *,
        seed: int,
        max_new_tokens: int,
        temperature: float,
        ends: frozenset[int],
    ) -> None:
        self.model, self.keys = model, list(keys)
        self._seed, self._max_new_tokens, self._temperature = seed, max_new_tokens, temperature
        self._ends, self._stops = ends | protocol.stop_ids, protocol.stops
        self._alone = not protocol.stop_ids and protocol.stops is None  # the end tokens say all there is to say
        self.entropies: list[list[float]] = [[] for _ in self.keys]

    def __call__(self, rows: Sequence[int], contexts: list[list[int]], limits: list[int]) -> list[list[int]]:
        """The ids of the next turns, each up to and including what ended it."""
        sampler = SeededSampler(
            [self.keys[i] for i in rows],
            seed=self._seed,
            max_new_tokens=self._max_new_tokens,
            temperature=self._temperature,
            starts=[len(self.entropies[i]) for i in rows],
        )
        if steps_through_layers(self.model):
            turns = write(
                self.model, contexts, sampler.draw, limits=limits, ends=sorted(self._ends), pad_id=0, stops=self._stops
            )
        else:
            turns = self._generated(contexts, limits, sampler)
        nats = torch.stack(sampler.entropies, dim=1).tolist()
        for i, turn, row in zip(rows, turns, nats, strict=True):
            self.entropies[i] += row[: len(turn)]
        return turns

    def _generated(self, contexts: list[list[int]], limits: list[int], sampler: SeededSampler) -> list[list[int]]:
        """The turns by the model's ``generate``."""
        end = _TurnEnd(max(map(len, contexts)), limits, self._ends, self._stops)
        alone = self._alone and min(limits) == self._max_new_tokens
        options = {} if alone else {"stopping_criteria": [end], "max_new_tokens": max(limits)}
        written = _generate(self.model, contexts, sampler, **options)
        return [end.cut(ids, limit) for ids, limit in zip(written, limits, strict=True)]


class _TurnEnd:
    """A stopping criterion of ``generate``: where each row's turn is over."""

    def __init__(
        self, width: int, limits: Sequence[int], ends: frozenset[int], stops: Callable[[Sequence[int]], bool] | None
    ) -> None:
        self.width, self.limits, self.ends, self.stops = width, torch.tensor(limits), ends, stops

    def __call__(self, input_ids: Tensor, _scores: Tensor, **_: Any) -> Tensor:
        """True for the rows that are over, bool [rows]."""
        new = input_ids[:, self.width :]
        over = self.limits.to(new.device) <= new.shape[1]
        over |= torch.isin(new[:, -1], torch.tensor(sorted(self.ends), device=new.device))
        if self.stops is not None:
            over |= torch.tensor([self.stops(row) for row in new.tolist()], device=new.device)
        return over

    def cut(self, ids: list[int], limit: int) -> list[int]:
        """A row's new ids up to and including what ended its turn."""
        for n, token in enumerate(ids[:limit], 1):
            if token in self.ends or (self.stops is not None and self.stops(ids[:n])):
                return ids[:n]
        return ids[:limit]


def _generate(model: Any, prompts: Sequence[list[int]], sampler: SeededSampler, **options: Any) -> list[list[int]]:
    """The new tokens of each prompt; prompts are padded on the left and the padding masked."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    written = model.generate(input_ids=ids, attention_mask=mask, logits_processor=[sampler], **options)
    new: list[list[int]] = written[:, width:].tolist()
    return new


@contextmanager
def plain_generation(model: Any, tokenizer: Any, max_new_tokens: int) -> Iterator[frozenset[int]]:
    """The model in evaluation mode, without its own wishes about decoding; gives the end tokens.

    Raises:
        InputError: There is no end token.
    """
    from transformers import GenerationConfig

    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # the one that an adapter wraps
    saved = [(part, part.generation_config) for part in (model, inner) if "generation_config" in vars(part)]
    named, training = model.generation_config.eos_token_id, model.training
    ends = frozenset({*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id} - {None})
    if not ends:
        raise InputError("`tokenizer` must have an end token, or the model's generation config; got none.")
    plain = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=sorted(ends), pad_token_id=min(ends)
    )
    for part, _ in saved:
        part.generation_config = plain
    model.eval()
    try:
        yield ends
    finally:
        for part, config in saved:
            part.generation_config = config
        model.train(training)
