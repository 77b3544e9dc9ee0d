"""Evaluation of a policy on a task: the same completions, and so the same numbers, whatever the batches."""

import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stepcredit.errors import InputError
from stepcredit.runs.policies import encode_prompt
from stepcredit.runs.sampling import GREEDY, SeededSampler
from stepcredit.runs.statistics import Floats, bootstrap_interval, paired_difference, pass_at_k
from stepcredit.tasks import Example, Task

WATCHED_KINDS = ("repeated", "merged")  # the steps by which a policy games a reward for steps


@dataclass(frozen=True)
class Row:
    """One graded completion.

    Attributes:
        id: The problem's.
        sample: Which of its completions; -1 for the greedy one.
        correct: The outcome is positive.
        format_ok: The form is exactly the one asked for.
        length: Tokens that the policy wrote, the end token included.
        entropy: Nats, mean over these tokens of the distribution they were drawn from (greedy: at temperature 1);
            rounded to 6 decimals, beyond which the shape of the batch shows.
        finished: It ended with an end token, not at the limit.
        completion: The text.
        reason: The grader's word on the outcome.
        kinds: The grader's word on each step; empty where the task has none.
    """

    id: str
    sample: int
    correct: bool
    format_ok: bool
    length: int
    entropy: float
    finished: bool
    completion: str
    reason: str
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class Evaluation:
    """Graded completions of every problem.

    Attributes:
        rows: In the order of problem ids (numbers inside ids by value) and sample indices.
        settings: What they were made with; ``problems_digest`` is of ids, prompts and references.
    """

    rows: tuple[Row, ...]
    settings: dict[str, Any]

    def table(self) -> list[dict[str, Any]]:
        """The rows as plain values, for `stepcredit.files.write_rows`."""
        return [{**dataclasses.asdict(row), "kinds": list(row.kinds)} for row in self.rows]

    def summary(self, ks: Sequence[int] = (1,)) -> dict[str, Any]:
        """Plain values: each metric's mean with its 95% interval by problem, the graders' reasons, the settings.

        Args:
            ks: Which pass@k to tell besides pass@1; each at most the samples a problem.

        Returns:
            ``metrics`` holds ``{"mean", "low", "high"}`` by name: ``pass@k`` over the samples and ``greedy`` (one
            greedy completion a problem); over the samples, or the greedy completions where there are none:
            ``length``, ``length_correct``, ``length_wrong`` (None where no completion is), ``entropy``,
            ``finished``, ``format_ok``, and ``repeated_steps`` and ``merged_steps`` a completion where the task
            names its steps. ``reasons`` counts the graders' words over the same completions.

        Raises:
            InputError: A k is below 1 or above the samples a problem.

        Degenerate cases:
            No samples: no pass@k. One problem: intervals of no width.
        """
        rows = self._described()
        metrics: dict[str, dict[str, float] | None] = {}
        for name, values in self.by_problem(ks).items():
            metrics[name] = bootstrap_interval(values)._asdict()
            if name == "length":
                metrics["length_correct"] = _length_where(rows, correct=True)
                metrics["length_wrong"] = _length_where(rows, correct=False)
        reasons = dict(sorted(Counter(row.reason for row in rows).items()))
        problems = len({row.id for row in self.rows})
        return {"problems": problems, "metrics": metrics, "reasons": reasons, "settings": self.settings}

    def by_problem(self, ks: Sequence[int] = (1,)) -> dict[str, Floats]:
        """The values behind the metrics: float64 [problems] by metric, in the order of the rows' problems."""
        samples = self.settings["samples"]
        values: dict[str, Floats] = {}
        for k in ks:
            if not 1 <= k <= max(samples, 1):
                raise InputError(f"`ks` must be from 1 to the samples a problem, {samples}; got {k}.")
        for k in sorted({1, *ks}) if samples else ():
            values[f"pass@{k}"] = pass_at_k(samples, _sums(self._described(), "correct"), k)
        if self.settings["greedy"]:
            values["greedy"] = _sums([row for row in self.rows if row.sample == GREEDY], "correct")
        rows, each = self._described(), samples or 1
        values |= {name: _sums(rows, name) / each for name in ("length", "entropy", "finished", "format_ok")}
        if any(row.kinds for row in rows):
            values |= {f"{kind}_steps": _sums(rows, kind) / each for kind in WATCHED_KINDS}
        return values

    def _described(self) -> list[Row]:
        """The completions that lengths, entropies and so on speak of: the sampled ones, if any."""
        return [row for row in self.rows if row.sample != GREEDY] or list(self.rows)


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
    return Evaluation(tuple(sorted(rows, key=lambda row: (_in_order(row.id), row.sample))), settings)


def compare(a: Evaluation, b: Evaluation, ks: Sequence[int] = (1,)) -> dict[str, Any]:
    """How b differs from a on the same problems: paired by problem, so that a problem's difficulty cancels.

    Args:
        a: The baseline.
        b: The other; evaluated with the same seed, it also met the same random numbers.
        ks: As for `Evaluation.summary`.

    Returns:
        ``metrics`` by name, for those that both have: the mean of b - a with its 95% interval; for pass@k and greedy
        also on how many problems b did better (``won``), worse (``lost``) and the same (``tied``).

    Raises:
        InputError: The problems differ, in their ids or in what the ids stand for.
    """
    ids = [{row.id for row in evaluation.rows} for evaluation in (a, b)]
    if ids[0] != ids[1]:
        odd = min(ids[0] ^ ids[1], key=_in_order)
        raise InputError(f"`b` must have the problems of `a`; got {odd!r} in one of them alone.")
    if a.settings["problems_digest"] != b.settings["problems_digest"]:
        raise InputError("`b` must have the problems of `a`; got the same ids with other prompts or references.")
    first, second = a.by_problem(ks), b.by_problem(ks)
    metrics: dict[str, dict[str, float]] = {}
    for name in [name for name in first if name in second]:
        metrics[name] = paired_difference(first[name], second[name])._asdict()
        if name.startswith("pass@") or name == "greedy":
            d = second[name] - first[name]
            metrics[name] |= {"won": int((d > 0).sum()), "lost": int((d < 0).sum()), "tied": int((d == 0).sum())}
    return {"problems": len(ids[0]), "metrics": metrics}


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


def _sums(rows: Sequence[Row], name: str) -> Floats:
    """Sum a problem of an attribute, or of the steps of a kind; problems in the order of the rows."""
    totals: dict[str, float] = {}
    for row in rows:
        value = row.kinds.count(name) if name in WATCHED_KINDS else getattr(row, name)
        totals[row.id] = totals.get(row.id, 0.0) + value
    return np.array(list(totals.values()), dtype=np.float64)


def _length_where(rows: Sequence[Row], *, correct: bool) -> dict[str, float] | None:
    """Mean length of the correct or the wrong completions; a problem weighs as many as it has."""
    lengths: dict[str, list[int]] = {row.id: [] for row in rows}
    for row in rows:
        if row.correct == correct:
            lengths[row.id].append(row.length)
    weights = [len(found) for found in lengths.values()]
    if not any(weights):
        return None
    return bootstrap_interval([sum(x) / max(len(x), 1) for x in lengths.values()], weights=weights)._asdict()


def _in_order(name: str) -> tuple[list[str | int], str]:
    """Sorts test-2 before test-10: texts and numbers take turns, so like meets like."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))], name


def _digest(examples: Sequence[Example]) -> str:
    plain = json.dumps(sorted((example.id, example.prompt, example.reference) for example in examples))
    return hashlib.blake2b(plain.encode(), digest_size=8).hexdigest()
