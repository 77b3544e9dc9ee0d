"""Makes a policy from nothing: supervised training on a noisy tutor's solutions, so that training has where to start.

The folder written is a standard Hugging Face one with a `PROVENANCE.md` that says how to build it again.
"""

import hashlib
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch.nn import functional as F

from stepcredit.errors import InputError
from stepcredit.files import new_folder
from stepcredit.runs.evaluate import evaluate
from stepcredit.runs.policies import no_progress_bars
from stepcredit.runs.tiny import EOS, POSITIONS, tiny_model, tiny_tokenizer
from stepcredit.tasks import Arithmetic

Tutor = Literal["noisy", "clean"]

UPDATES, BATCH_SIZE, LEARNING_RATE = 3000, 64, 3e-3

_FIRST_PROBLEM = 2**64  # above every seed of the task's own training and test problems
_RISE = 50  # updates over which the learning rate rises
_FLOOR = 0.05  # of the learning rate is left at the end
_PARTS = 4  # parts of a batch, each padded to its own longest row
_IGNORED = -100


@dataclass(frozen=True)
class WarmStartReport:
    """What a warm start did.

    Attributes:
        task: The task, at its largest number of operations.
        tutor: Who wrote the solutions.
        batch_size: Solutions an update.
        learning_rate: The highest one.
        seed: Chose the weights at the start, the problems and the tutor's noise.
        threads: Of the CPU; another number may round differently.
        losses: Mean nats a completion token, one an update.
        tokens: Completion tokens trained on, the ends of sequence included.
        seconds: Wall time.
    """

    task: Arithmetic
    tutor: Tutor
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
    """How often a policy's answer is right, at one number of operations; shares of the first test problems.

    Attributes:
        operations: Operations a problem.
        problems: Test problems, one sampled and one greedy completion each.
        sampled: Share right when sampled at temperature 1.
        greedy: Share right when each token is the most likely one.
        finished: Share of the sampled completions that ended by themselves.
        length: Mean tokens of the sampled completions.
    """

    operations: int
    problems: int
    sampled: float
    greedy: float
    finished: float
    length: float


def warm_start(
    task: Arithmetic,
    *,
    tutor: Tutor = "noisy",
    updates: int = UPDATES,
    batch_size: int = BATCH_SIZE,
    learning_rate: float = LEARNING_RATE,
    seed: int = 0,
    threads: int = 1,
    progress: Callable[[int, float], None] | None = None,
) -> tuple[Any, Any, WarmStartReport]:
    """Trains `tiny_model` on a tutor's solutions; the loss is on the completion and its end alone.

    AdamW (betas 0.9 and 0.98, weight decay 0.01), gradients clipped to norm 1. The learning rate rises over 50
    updates, then falls in a line to 5 %. The number of operations is uniform from 2 to ``task.operations``; the
    problems are none of the task's training or test seeds (though of the 9,000 with two operations modulo 10, a
    problem can be met again).

    Args:
        task: The task at its largest number of operations.
        tutor: "noisy" errs often (a policy to be trained further); "clean" never does (a teacher).
        updates: Optimizer steps.
        batch_size: Solutions an update.
        learning_rate: The highest one.
        seed: Chooses the weights at the start, the problems and the tutor's noise.
        threads: CPU threads for the time of the call.
        progress: Called after each update with the updates done and that update's loss.

    Returns:
        The model (in eval mode), its tokenizer, and the report. The same arguments give the same weights, bit by
        bit, on the same machine and versions.

    Raises:
        InputError: An argument is out of its range, or the loss is not finite.
        MissingExtraError: Transformers is not installed.

    Degenerate cases:
        ``operations=1``: every problem has one operation. Fewer than 50 updates: the rate only rises.

    Example:
        >>> model, tokenizer, report = warm_start(Arithmetic(operations=2), updates=2, batch_size=4)
        >>> len(report.losses), model.training
        (2, False)
    """
    for name, value, low in (("updates", updates, 1), ("batch_size", batch_size, 1), ("threads", threads, 1)):
        if value < low:
            raise InputError(f"`{name}` must be at least {low}; got {value}.")
    if not 0.0 < learning_rate < math.inf:
        raise InputError(f"`learning_rate` must be a positive number; got {learning_rate}.")
    if tutor not in get_args(Tutor):
        raise InputError(f"`tutor` must be noisy or clean; got {tutor!r}.")
    if seed < 0:
        raise InputError(f"`seed` must not be negative; got {seed}.")
    begun = time.perf_counter()
    tokenizer, model = tiny_tokenizer(), tiny_model(seed)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    losses, tokens = [], 0
    with _threads(threads):
        for update, rows in enumerate(_batches(task, tutor, tokenizer, batch_size, updates, seed)):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * _rate(update, updates)
            count = sum(len(completion) for _, completion in rows)
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
    report = WarmStartReport(task, tutor, batch_size, learning_rate, seed, threads, tuple(losses), tokens, seconds)
    return model.eval(), tokenizer, report


def measure(model: Any, tokenizer: Any, task: Arithmetic, *, problems: int = 512, threads: int = 1) -> Accuracy:
    """Evaluates in float64, as the verb ``eval`` does on the CPU: the same problems, seed and numbers.

    Args:
        model: A causal language model with float32 weights; given back as it was.
        tokenizer: Its tokenizer.
        task: Says the number of operations.
        problems: How many test problems.
        threads: CPU threads for the time of the call.
    """
    examples = task.examples("test", problems)
    texts = [task.solution(task.parse(example.reference)) for example in examples]
    prompt, gold = (
        max(map(len, tokenizer(rows)["input_ids"])) for rows in ([example.prompt for example in examples], texts)
    )
    limit = min(max(256, 2 * gold), POSITIONS - prompt)
    with _threads(threads):
        result = evaluate(model.double(), tokenizer, task, examples, max_new_tokens=limit, batch_size=256)
    model.float()
    means = {name: value.mean() for name, value in result.by_problem().items()}
    shares = (float(means[name]) for name in ("pass@1", "greedy", "finished", "length"))
    return Accuracy(task.operations, problems, *shares)


def save_warm_start(
    folder: str | Path,
    model: Any,
    tokenizer: Any,
    report: WarmStartReport,
    accuracy: Sequence[Accuracy],
    *,
    command: str,
) -> str:
    """Writes a standard Hugging Face folder and its `PROVENANCE.md`, whole or not at all.

    Args:
        folder: Must not exist; its parent must.
        model: The trained model.
        tokenizer: Its tokenizer.
        report: What `warm_start` said.
        accuracy: What `measure` said, one a number of operations.
        command: What builds the folder again.

    Returns:
        The SHA-256 of ``model.safetensors``, in hexadecimal.

    Raises:
        InputError: The folder exists, or its parent does not.
        OSError: The disk refused; nothing is left behind.
    """
    with new_folder(folder) as made:
        with no_progress_bars():
            model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        digest = hashlib.sha256((made / "model.safetensors").read_bytes()).hexdigest()
        (made / "PROVENANCE.md").write_text(_provenance(report, accuracy, digest, model.num_parameters(), command))
    return digest


Row = tuple[list[int], list[int]]  # the ids of a prompt and of its completion


def _batches(task: Arithmetic, tutor: Tutor, tokenizer: Any, size: int, updates: int, seed: int) -> Iterator[list[Row]]:
    """Tutor solutions of random problems, each batch sorted by length."""
    rng = random.Random(seed)  # noqa: S311 - reproducible sampling, no secret
    number = _FIRST_PROBLEM * (1 + seed)
    for _ in range(updates):
        prompts, completions = [], []
        for _ in range(size):
            drawn = replace(task, operations=rng.randint(min(2, task.operations), task.operations))
            problem = drawn.problem(number)
            prompts.append(problem.prompt + "\n")
            text = drawn.sample_solution(problem, number) if tutor == "noisy" else drawn.solution(problem)
            completions.append(text + EOS)
            number += 1
        left = tokenizer(prompts)["input_ids"]
        right = tokenizer(completions, add_special_tokens=False)["input_ids"]
        yield sorted(zip(left, right, strict=True), key=lambda row: len(row[0]) + len(row[1]))


def _accumulate(model: Any, rows: Sequence[Row], count: int) -> float:
    """Adds the gradients of the mean loss over ``count`` completion tokens; right padding needs no mask."""
    loss = 0.0
    size = -(-len(rows) // _PARTS)
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        width = max(len(prompt) + len(completion) for prompt, completion in part)
        ids, labels = torch.zeros(len(part), width, dtype=torch.long), torch.full((len(part), width), _IGNORED)
        for i, (prompt, completion) in enumerate(part):
            end = len(prompt) + len(completion)
            ids[i, :end] = torch.tensor(prompt + completion)
            labels[i, len(prompt) : end] = torch.tensor(completion)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        total = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=_IGNORED, reduction="sum")
        (total / count).backward()  # type: ignore[no-untyped-call]
        loss += total.item() / count
    return loss


def _rate(update: int, updates: int) -> float:
    """The share of the learning rate at an update: rises over `_RISE` updates, then falls in a line to `_FLOOR`."""
    fallen = max(0, update + 1 - _RISE) / max(1, updates - _RISE)
    return min(1.0, (update + 1) / _RISE) * (1.0 - (1.0 - _FLOOR) * fallen)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_PURPOSES = {
    "noisy": "The tutor errs often, by design, so that reinforcement learning has\nsomething to gain.",
    "clean": "The tutor never errs: this is a teacher for others to be\ndistilled from.",
}


def _provenance(
    report: WarmStartReport, accuracy: Sequence[Accuracy], digest: str, parameters: int, command: str
) -> str:
    task, updates, problems = report.task, len(report.losses), accuracy[0].problems
    rate, floor = f"{report.learning_rate:g}", f"{_FLOOR * report.learning_rate:g}"
    rows = "\n".join(
        f"| {row.operations} | {row.sampled:.3f} | {row.greedy:.3f} | {row.finished:.3f} | {row.length:.1f} |"
        for row in accuracy
    )
    return f"""# Where this policy comes from

A Llama-type causal language model of {parameters:,} parameters (float32) and its tokenizer, trained from random
weights on text that the package generates: a {report.tutor} tutor's solutions of the built-in arithmetic task, 2 to
{task.operations} operations modulo {task.modulus}. {_PURPOSES[report.tutor]}

    {command}

builds it again, on one thread to the same bits where versions and machine are the same; on several the last bits
may differ.

- versions: torch {torch.__version__}, transformers {version("transformers")}
- {updates} updates of {report.batch_size} solutions, {report.tokens:,} completion tokens in all, seed {report.seed}
- AdamW, learning rate {rate} falling to {floor}, CPU threads: {report.threads}
- loss in nats a completion token: {report.losses[0]:.3f} at first, {report.final_loss:.4f} over the last
  {min(50, updates)} updates
- SHA-256 of `model.safetensors`: {digest}

Share of right answers on the first {problems} test problems, one sampled at temperature 1 and one greedy each:

| operations | sampled | greedy | sampled and finished | mean tokens sampled |
|---|---|---|---|---|
{rows}

The standard error of a share is at most {50 / math.sqrt(problems):.1f} points. Warm start, training and test share no
problem seeds; but there are so few problems with two operations that training meets many of the test's too.

License: the package's own. No text, weights or data of others went in.
"""
