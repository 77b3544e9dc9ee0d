"""Makes a policy from nothing: supervised training on a noisy tutor's solutions, so that training has where to start.

The folder written is a standard Hugging Face one with a `PROVENANCE.md` that says how to build it again.
"""

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from stepcredit.errors import InputError
from stepcredit.runs.courses import FIRST, Course
from stepcredit.runs.evaluate import evaluate
from stepcredit.runs.policies import load_policy
from stepcredit.runs.tiny import EOS, POSITIONS, tiny_model, tiny_tokenizer
from stepcredit.tasks import SearchTask, Task

UPDATES, BATCH_SIZE, LEARNING_RATE = 3000, 64, 3e-3

_RISE = 50  # updates over which the learning rate rises
FLOOR = 0.05  # of the learning rate is left at the end
_PARTS = 4  # parts of a batch, each padded to its own longest row
_IGNORED = -100


@dataclass(frozen=True)
class WarmStartReport:
    """What a warm start did.

    Attributes:
        course: What was taught, and by whom.
        start: The policy that it went on from; None for random weights.
        batch_size: Solutions an update.
        learning_rate: The highest one.
        seed: Chose the weights at the start, the problems and the tutor's noise.
        threads: Of the CPU; another number may round differently.
        losses: Mean nats a completion token, one an update.
        tokens: Completion tokens trained on, the ends of sequence included.
        seconds: Wall time.
    """

    course: Course
    start: str | None
    batch_size: int
    learning_rate: float
    seed: int
    threads: int
    losses: tuple[float, ...]
    tokens: int
    seconds: float

    @property
    def final_loss(self) -> float:
        """Mean of the last 50 updates' losses."""
        last = self.losses[-50:]
        return sum(last) / len(last)


@dataclass(frozen=True)
class Accuracy:
    """How often a policy's answer is right at one difficulty; shares of the first test problems.

    Attributes:
        exam: The difficulty, in the course's words.
        problems: Test problems, one sampled and one greedy completion each.
        sampled: Share right when sampled at temperature 1.
        greedy: Share right when each token is the most likely one.
        finished: Share of the sampled completions that ended by themselves.
        length: Mean tokens of the sampled completions.
    """

    exam: str
    problems: int
    sampled: float
    greedy: float
    finished: float
    length: float


def warm_start(
    course: Course,
    *,
    updates: int = UPDATES,
    batch_size: int = BATCH_SIZE,
    learning_rate: float = LEARNING_RATE,
    seed: int = 0,
    threads: int = 1,
    start: str | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> tuple[Any, Any, WarmStartReport]:
    """Trains a tiny policy on a course; the loss is on what the tutor writes and its end alone.

    AdamW (betas 0.9 and 0.98, weight decay 0.01), gradients clipped to norm 1. The learning rate rises over 50
    updates, then falls in a line to 5 %. The problems are none of the tasks' training or test seeds (though of the
    9,000 sums with two operations modulo 10, a problem can be met again).

    Args:
        course: `ArithmeticCourse`, `MultiHopCourse`, or another.
        updates: Optimizer steps.
        batch_size: Solutions an update.
        learning_rate: The highest one.
        seed: Chooses the weights at the start, the problems and the tutor's noise.
        threads: CPU threads for the time of the call.
        start: The policy to go on from, by a name that `load_policy` takes; None: `tiny_model`, random weights.
        progress: Called after each update with the updates done and that update's loss.

    Returns:
        The model (in eval mode), its tokenizer, and the report. The same arguments give the same weights, bit by
        bit, on the same machine and versions.

    Raises:
        InputError: An argument is out of its range, ``start`` is no policy of the course's vocabulary, or the loss is
            not finite.
        MissingExtraError: Transformers is not installed.

    Degenerate cases:
        Fewer than 50 updates: the rate only rises.

    Example:
        >>> from stepcredit.runs.courses import ArithmeticCourse
        >>> from stepcredit.tasks import Arithmetic
        >>> model, tokenizer, report = warm_start(ArithmeticCourse(Arithmetic(operations=2)), updates=2, batch_size=4)
        >>> len(report.losses), model.training
        (2, False)
    """
    for name, value, low in (("updates", updates, 1), ("batch_size", batch_size, 1), ("threads", threads, 1)):
        if value < low:
            raise InputError(f"`{name}` must be at least {low}; got {value}.")
    if not 0.0 < learning_rate < math.inf:
        raise InputError(f"`learning_rate` must be a positive number; got {learning_rate}.")
    if seed < 0:
        raise InputError(f"`seed` must not be negative; got {seed}.")
    begun = time.perf_counter()
    tokenizer, model = _beginning(course, seed, start)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    losses, tokens = [], 0
    with _threads(threads):
        for update, rows in enumerate(_batches(course, tokenizer, batch_size, updates, seed)):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * _rate(update, updates)
            count = sum(sum(learnt) for _, _, learnt in rows)
            losses.append(_accumulate(model, rows, count))
            if not math.isfinite(losses[-1]):
                raise InputError(f"`learning_rate` must keep the loss finite; got {losses[-1]} at update {update + 1}.")
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            tokens += count
            if progress is not None:
                progress(update + 1, losses[-1])
    seconds = time.perf_counter() - begun
    report = WarmStartReport(course, start, batch_size, learning_rate, seed, threads, tuple(losses), tokens, seconds)
    return model.eval(), tokenizer, report


def _beginning(course: Course, seed: int, start: str | None) -> tuple[Any, Any]:
    """The tokenizer and the model, in training mode, before the first update."""
    tokenizer = tiny_tokenizer(course.form)
    if start is None:
        return tokenizer, tiny_model(seed, course.form)
    policy = load_policy(start, dtype=torch.float32)
    if policy.tokenizer.get_vocab() != tokenizer.get_vocab():
        raise InputError(f"`start` must have the vocabulary of {course.subject}; {start!r} has another.")
    return tokenizer, policy.model.train()


def measure(model: Any, tokenizer: Any, exam: str, task: Task, *, problems: int = 512, threads: int = 1) -> Accuracy:
    """Evaluates in float64, as the verb ``eval`` does on the CPU: the same problems, seed and numbers.

    Args:
        model: A causal language model with float32 weights; given back as it was.
        tokenizer: Its tokenizer.
        exam: What to call the difficulty.
        task: The task at it.
        problems: How many test problems.
        threads: CPU threads for the time of the call.
    """
    examples = task.examples("test", problems)
    prompt = max(len(ids) for ids in tokenizer([example.prompt for example in examples])["input_ids"])
    wanted = POSITIONS if isinstance(task, SearchTask) else 256  # a search's results count in its length
    with _threads(threads):
        result = evaluate(
            model.double(), tokenizer, task, examples, max_new_tokens=min(wanted, POSITIONS - prompt), batch_size=256
        )
    model.float()
    means = {name: value.mean() for name, value in result.by_problem().items()}
    shares = (float(means[name]) for name in ("pass@1", "greedy", "finished", "length"))
    return Accuracy(exam, problems, *shares)


Row = tuple[
    list[int], list[int], list[bool]
]  # the ids of a prompt and of its completion, and which of these are learnt


def _batches(course: Course, tokenizer: Any, size: int, updates: int, seed: int) -> Iterator[list[Row]]:
    """Lessons, each batch sorted by length."""
    rng = random.Random(seed)  # noqa: S311 - reproducible sampling, no secret
    number = FIRST * (1 + seed)

    def encoded(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    for _ in range(updates):
        rows = []
        for _ in range(size):
            prompt, pieces = course.lesson(rng, number, lambda text: len(encoded(text)))
            parts = [(encoded(text), learnt) for text, learnt in (*pieces, (EOS, True))]
            ids = [token for part, _ in parts for token in part]
            rows.append((tokenizer(prompt)["input_ids"], ids, [learnt for part, learnt in parts for _ in part]))
            number += 1
        yield sorted(rows, key=lambda row: len(row[0]) + len(row[1]))


def _accumulate(model: Any, rows: Sequence[Row], count: int) -> float:
    """Adds the gradients of the mean loss over ``count`` completion tokens; right padding needs no mask."""
    loss = 0.0
    size = -(-len(rows) // _PARTS)
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        width = max(len(prompt) + len(completion) for prompt, completion, _ in part)
        ids, labels = torch.zeros(len(part), width, dtype=torch.long), torch.full((len(part), width), _IGNORED)
        for i, (prompt, completion, learnt) in enumerate(part):
            end = len(prompt) + len(completion)
            ids[i, :end] = torch.tensor(prompt + completion)
            labels[i, len(prompt) : end] = torch.where(torch.tensor(learnt), ids[i, len(prompt) : end], _IGNORED)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        total = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=_IGNORED, reduction="sum")
        (total / count).backward()  # type: ignore[no-untyped-call]
        loss += total.item() / count
    return loss


def _rate(update: int, updates: int) -> float:
    """The share of the learning rate at an update: rises over `_RISE` updates, then falls in a line to `FLOOR`."""
    fallen = max(0, update + 1 - _RISE) / max(1, updates - _RISE)
    return min(1.0, (update + 1) / _RISE) * (1.0 - (1.0 - FLOOR) * fallen)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
