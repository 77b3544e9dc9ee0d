"""Evaluation of a policy on a task: the same completions, and so the same numbers, whatever the batches."""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from stepcredit.errors import InputError
from stepcredit.runs.conversing import Dialogue, converse
from stepcredit.runs.evaluation import Evaluation, Row, in_order
from stepcredit.runs.generating import SeededTurns, plain_generation
from stepcredit.runs.grading import grade_rollout
from stepcredit.runs.protocols import protocol_of
from stepcredit.runs.sampling import GREEDY
from stepcredit.signals.offsets import policy_turns, token_offsets
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

    Where the task searches, the policy writes turns and an environment answers them (`converse`); lengths and
    entropies are of what the policy wrote.

    Args:
        model: A Hugging Face causal language model; its weights, mode and torch's random state are left as they were.
        tokenizer: Its tokenizer.
        task: Grades; `protocol_of` says how its prompts become tokens, and how its searches are answered.
        examples: Problems with ids of their own.
        samples: Completions a problem at ``temperature``; 0 for the greedy ones alone.
        greedy: Also one greedy completion a problem.
        temperature: Divides the logits; 0 makes every sample the greedy one.
        max_new_tokens: Limit of a completion, what an environment wrote included; one that meets it is unfinished.
        batch_size: Completions at a time.
        seed: Chooses the random numbers; the same for two policies pairs them.
        progress: Called with the completions done and their number.

    Raises:
        InputError: No problems or nothing to sample; ids that repeat; a prompt without tokens, or too long for the
            model's positions; no end token; an argument out of its range; a model whose logits are not finite.

    Degenerate cases:
        An empty completion (the end token at once) has length 1. An end token at the very limit still finishes.
    """
    _check(examples, samples=samples, greedy=greedy, max_new_tokens=max_new_tokens, batch_size=batch_size)
    protocol = protocol_of(task, tokenizer)
    prompts = {example.id: protocol.prompt(example.prompt) for example in examples}
    _check_lengths(model, prompts, max_new_tokens)
    indices = [*([GREEDY] if greedy else []), *range(samples)]
    jobs = [(example, sample) for example in examples for sample in indices]
    jobs.sort(key=lambda job: -len(prompts[job[0].id]))  # like lengths together; the worst for memory first
    rows: list[Row] = []
    with plain_generation(model, tokenizer, max_new_tokens) as ends:
        for start in range(0, len(jobs), batch_size):
            batch = jobs[start : start + batch_size]
            keys = [(example.id, sample) for example, sample in batch]
            write = SeededTurns(
                model, protocol, keys, seed=seed, max_new_tokens=max_new_tokens, temperature=temperature, ends=ends
            )
            dialogues = converse(
                protocol, [prompts[example.id] for example, _ in batch], [example.reference for example, _ in batch],
                write, max_new_tokens=max_new_tokens, ends=ends,
            )  # fmt: skip
            graded = zip(batch, dialogues, write.entropies, strict=True)
            rows += [_row(tokenizer, task, *job, dialogue, nats) for job, dialogue, nats in graded]
            if progress:
                progress(len(rows), len(jobs))
    settings = {
        "task": repr(task) if dataclasses.is_dataclass(task) else task.name,
        "kinds": list(task.kinds),
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


def _check(examples: Sequence[Example], *, samples: int, greedy: bool, max_new_tokens: int, batch_size: int) -> None:
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


def _row(tokenizer: Any, task: Task, example: Example, sample: int, dialogue: Dialogue, nats: Sequence[float]) -> Row:
    ids = dialogue.ids[: len(dialogue.ids) - dialogue.finished]  # the end token has no part in the text
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    turns = None
    if not all(dialogue.mask):
        offsets = [*token_offsets(tokenizer, ids, text), *[(len(text), len(text))] * dialogue.finished]
        turns = tuple(policy_turns(offsets, dialogue.mask))
    grade = grade_rollout(task, example.reference, text, finished=dialogue.finished, turns=turns)
    return Row(
        id=example.id,
        sample=sample,
        correct=grade.correct,
        format_ok=grade.format_ok,
        length=len(nats),
        entropy=round(sum(nats) / len(nats), 6),
        finished=dialogue.finished,
        completion=text,
        reason=grade.reason,
        kinds=grade.kinds,
        measures=dict(grade.measures),
        turns=dialogue.turns,
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
