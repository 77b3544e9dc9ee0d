"""Evaluation of a policy on a task: the same completions, and so the same numbers, whatever the batches."""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from stepcredit.errors import InputError
from stepcredit.runs.evaluation import Evaluation, Row, in_order
from stepcredit.runs.policies import encode_prompt
from stepcredit.runs.sampling import GREEDY, SeededSampler
from stepcredit.tasks import Example, Task


def evaluate(
    model: Any,
    tokenizer: Any,
    task: Task,
    examples: Sequence[Example],
    *,
    samples: int = 1,
    greedy: bool = True,
    temperature: float = 1.0,
    max_new_tokens: int = 256,
    batch_size: int = 64,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Samples completions for every problem and grades them.

    A completion is a function of the model, the problem, the seed and its sample index (`SeededSampler`); batches,
    their order and the order of the examples do not enter. That holds up to the rounding of the model's own forward
    pass, which differs with a batch's shape: in float64 it does not show; in coarser types a token whose random
    number lies that near to a boundary can flip, and the completion with it. Only the temperature shapes the
    distribution: what the model's generation config asks for (penalties, top-k) is set aside.

    Args:
        model: A Hugging Face causal language model; its weights, mode and torch's random state are left as they were.
        tokenizer: Its tokenizer.
        task: Grades; `encode_prompt` puts its prompts into tokens.
        examples: Problems with ids of their own.
        samples: Completions a problem at ``temperature``; 0 for the greedy ones alone.
        greedy: Also one greedy completion a problem.
        temperature: Divides the logits; 0 makes every sample the greedy one.
        max_new_tokens: Limit of a completion; one that meets it is unfinished.
        batch_size: Completions at a time.
        seed: Chooses the random numbers; the same for two policies pairs them.
        progress: Called with the completions done and their number.

    Raises:
        InputError: No problems or nothing to sample; ids that repeat; a prompt without tokens, or too long for the
            model's positions; no end token; an argument out of its range; a model whose logits are not finite.

    Degenerate cases:
        An empty completion (the end token at once) has length 1. An end token at the very limit still finishes.
    """
    limits = {"samples": (samples, 0), "max_new_tokens": (max_new_tokens, 1), "batch_size": (batch_size, 1)}
    for name, (value, least) in limits.items():
        if value < least:
            raise InputError(f"`{name}` must be at least {least}; got {value}.")
    if not samples and not greedy:
        raise InputError("`samples` must be at least 1 where `greedy` is off; got 0.")
    if not examples:
        raise InputError("`examples` must hold at least one problem; got none.")
    repeated = [name for name, n in Counter(example.id for example in examples).items() if n > 1]
    if repeated:
        raise InputError(f"`examples` must have ids of their own; got {repeated[0]!r} more than once.")
    prompts = {example.id: encode_prompt(tokenizer, task, example.prompt) for example in examples}
    _check_lengths(model, prompts, max_new_tokens)
    indices = [*([GREEDY] if greedy else []), *range(samples)]
    jobs = [(example, sample) for example in examples for sample in indices]
    jobs.sort(key=lambda job: -len(prompts[job[0].id]))  # like lengths together; the worst for memory first
    rows: list[Row] = []
    with _plain_generation(model, tokenizer, max_new_tokens) as ends:
        for start in range(0, len(jobs), batch_size):
            batch = jobs[start : start + batch_size]
            sampler = SeededSampler(
                [(example.id, sample) for example, sample in batch],
                seed=seed,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
            )
            written = _generate(model, [prompts[example.id] for example, _ in batch], sampler)
            entropies = torch.stack(sampler.entropies, dim=1).tolist()
            rows += [
                _row(tokenizer, task, example, sample, ids, ends, nats)
                for (example, sample), ids, nats in zip(batch, written, entropies, strict=True)
            ]
            if progress:
                progress(len(rows), len(jobs))
    settings = {
        "task": repr(task) if dataclasses.is_dataclass(task) else task.name,
        "problems_digest": _digest(examples),
        "samples": samples,
        "greedy": greedy,
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        "batch_size": batch_size,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
    }
    return Evaluation(tuple(sorted(rows, key=lambda row: (in_order(row.id), row.sample))), settings)


def _generate(model: Any, prompts: Sequence[list[int]], sampler: SeededSampler) -> list[list[int]]:
    """The new tokens of each prompt; prompts are padded on the left and the padding masked."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    written = model.generate(input_ids=ids, attention_mask=mask, logits_processor=[sampler])
    new: list[list[int]] = written[:, width:].tolist()
    return new


@contextmanager
def _plain_generation(model: Any, tokenizer: Any, max_new_tokens: int) -> Iterator[frozenset[int]]:
    """The model in evaluation mode, without its own wishes about decoding; gives the end tokens."""
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


def _row(
    tokenizer: Any, task: Task, example: Example, sample: int, ids: list[int], ends: frozenset[int], nats: list[float]
) -> Row:
    length = next((i + 1 for i, token in enumerate(ids) if token in ends), len(ids))
    finished = ids[length - 1] in ends
    body = ids[: length - 1] if finished else ids
    text = tokenizer.decode(body, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    grade = task.grade(example.reference, text, finished=finished)
    return Row(
        id=example.id,
        sample=sample,
        correct=grade.outcome > 0,
        format_ok=grade.format_ok,
        length=length,
        entropy=round(sum(nats[:length]) / length, 6),
        finished=finished,
        completion=text,
        reason=grade.reason,
        kinds=grade.kinds,
    )


def _check_lengths(model: Any, prompts: dict[str, list[int]], max_new_tokens: int) -> None:
    empty = [name for name, ids in prompts.items() if not ids]
    if empty:
        raise InputError(f"`examples` must have prompts with at least one token; got none for {empty[0]!r}.")
    room, longest = getattr(model.config, "max_position_embeddings", None), max(map(len, prompts.values()))
    if room is not None and longest + max_new_tokens > room:
        raise InputError(
            f"`max_new_tokens` must fit the model's {room} positions with the longest prompt, {longest} tokens; "
            f"got {max_new_tokens}."
        )


def _digest(examples: Sequence[Example]) -> str:
    plain = json.dumps(sorted((example.id, example.prompt, example.reference) for example in examples))
    return hashlib.blake2b(plain.encode(), digest_size=8).hexdigest()
