"""Trains a token classifier on labeled steps: soft cross-entropy at the places where steps are scored."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from stepcredit.errors import InputError
from stepcredit.options import Options, option
from stepcredit.signals.batching import batches

Marked = tuple[list[int], list[int]]  # the ids of an input, and the positions in them where steps are scored
Labels = Sequence[Sequence[float | None]]


@dataclass(frozen=True)
class StepTraining(Options):
    """How a token classifier is trained.

    Attributes:
        epochs: Passes over the rows.
        batch_size: Rows an update.
        learning_rate: The highest one, of AdamW.
        warm_up: The share of the updates over which the rate rises in a line; it then falls in a line to 0.
        weight_decay: Of AdamW, on matrices alone.
        clip: The gradients' largest norm.
        tokens_at_once: The most tokens, padding included, that go through the model at once; a longer row goes alone.
        seed: Chooses the order of the rows and what dropout drops.

    Raises:
        InputError: A value out of its range.
    """

    epochs: int = option(1, at_least=1)
    batch_size: int = option(32, at_least=1)
    learning_rate: float = option(1e-5, above=0)
    warm_up: float = option(0.1, at_least=0, at_most=1)
    weight_decay: float = option(0.01, at_least=0)
    clip: float = option(1.0, above=0)
    tokens_at_once: int = option(8192, at_least=1)
    seed: int = option(0, at_least=0)


def soft_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """``-(y log p + (1 - y) log(1 - p))`` with ``p = softmax(logits)[..., 1]``, in nats, in float32 or wider.

    Args:
        logits: float [..., 2]; class 1 means right.
        labels: float [...], y in [0, 1].

    Returns:
        float [...]; 0 only where a hard label is met with certainty.

    Example:
        >>> round(float(soft_cross_entropy(torch.tensor([0.0, 0.0]), torch.tensor(0.3))), 4)  # log 2
        0.6931
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    log_p = F.log_softmax(wide, -1)
    y = labels.to(dtype=log_p.dtype).to(log_p.device)
    return -(y * log_p[..., 1] + (1 - y) * log_p[..., 0])


def train_steps(
    model: Any,
    inputs: Sequence[Marked],
    labels: Labels,
    options: StepTraining | None = None,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> dict[str, float]:
    """Trains a token classifier in place.

    The loss of an update is the mean of `soft_cross_entropy` over all its known labels, so that neither a row's
    length nor the way the rows are parted for memory changes it.

    Args:
        model: A Transformers token classifier with 2 labels, on its device. Its mode is left as it was; torch's
            random state too.
        inputs: The ids and the marks of each row.
        labels: For each row one label a mark, in [0, 1]; None is not trained on.
        options: The defaults suit a pretrained model.
        optimizer: One that goes on from earlier calls; its own learning rate is then kept as it is, with no schedule
            and no ``weight_decay`` from here. None: an AdamW for this call.
        progress: Called after each update with the updates done, their number and the update's loss in nats.

    Returns:
        ``loss`` (mean of the last epoch's updates), ``first_loss`` (of the first update), ``gradient_norm`` (the
        mean, before clipping), ``updates``, ``rows``, ``unlabeled_rows``, ``steps`` (known labels an epoch) and
        ``tokens`` (an epoch, without padding).

    Raises:
        InputError: Rows, marks and labels do not fit each other, no label is known, the model does not have 2 labels,
            or the loss is not finite.

    Degenerate cases:
        A row without a known label is not trained on and counts as ``unlabeled_rows``. On the CPU with one thread
        the same arguments give the same weights, bit by bit.
    """
    options = options or StepTraining()
    _check(model, inputs, labels)
    rows = [row for row, values in enumerate(labels) if any(value is not None for value in values)]
    if not rows:
        raise InputError("`labels` must have one that is known; got none. Label some steps first.")
    updates = options.epochs * -(-len(rows) // options.batch_size)
    schedule = optimizer is None
    optimizer = optimizer or _adamw(model, options)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    losses: list[float] = []
    norms: list[float] = []
    with _training(model, options.seed):
        for batch in _batches(rows, options):
            if schedule:
                for group in optimizer.param_groups:
                    group["lr"] = options.learning_rate * rate(len(losses), updates, options.warm_up)
            optimizer.zero_grad()
            losses.append(_accumulate(model, batch, inputs, labels, options.tokens_at_once))
            if not math.isfinite(losses[-1]):
                raise InputError(f"`learning_rate` must keep the loss finite; got {losses[-1]} at {len(losses)}.")
            norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, options.clip)))
            optimizer.step()
            if progress is not None:
                progress(len(losses), updates, losses[-1])
        optimizer.zero_grad()
    last = losses[-(updates // options.epochs) :]
    return {
        "loss": sum(last) / len(last),
        "first_loss": losses[0],
        "gradient_norm": sum(norms) / len(norms),
        "updates": len(losses),
        "rows": len(rows),
        "unlabeled_rows": len(inputs) - len(rows),
        "steps": sum(value is not None for row in rows for value in labels[row]),
        "tokens": sum(len(inputs[row][0]) for row in rows),
    }


@torch.no_grad()
def step_probabilities(model: Any, inputs: Sequence[Marked], *, tokens_at_once: int = 8192) -> list[list[float]]:
    """The probability of class 1 at each mark of each row, in [0, 1]; what training makes meet the labels.

    Args:
        model: As for `train_steps`; runs in evaluation mode and is left in its own.
        inputs: The ids and the marks of each row.
        tokens_at_once: As for `StepTraining`.
    """
    training = model.training
    model.eval()
    found: list[list[float]] = [[] for _ in inputs]
    try:
        for part in _parts([row for row, (_, marks) in enumerate(inputs) if marks], inputs, tokens_at_once):
            logits = _logits_at_marks(model, [inputs[row] for row in part])
            p = iter(logits.float().softmax(-1)[:, 1].tolist())
            for row in part:
                found[row] = [next(p) for _ in inputs[row][1]]
    finally:
        model.train(training)
    return found


def fit_length(
    inputs: Sequence[Marked], labels: Labels, most: int
) -> tuple[list[Marked], list[list[float | None]], int]:
    """Rows cut to the most tokens that a model reads.

    Args:
        inputs: The ids and the marks of each row.
        labels: One a mark.
        most: Tokens.

    Returns:
        The rows, the labels of the marks that are left, and how many marks are not.
    """
    fitting = [[mark for mark in marks if mark < most] for _, marks in inputs]
    cut = sum(len(marks) for _, marks in inputs) - sum(map(len, fitting))
    kept = [list(values[: len(marks)]) for values, marks in zip(labels, fitting, strict=True)]
    return [(ids[:most], marks) for (ids, _), marks in zip(inputs, fitting, strict=True)], kept, cut


def rate(update: int, updates: int, warm_up: float) -> float:
    """The share of the learning rate at an update: rises over ``warm_up`` of them in a line, then falls to 0.

    Example:
        >>> [round(rate(update, 10, 0.2), 3) for update in range(10)]
        [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
    """
    rise = math.ceil(warm_up * updates)
    if update < rise:
        return (update + 1) / rise
    return (updates - update) / max(1, updates - rise)


def _check(model: Any, inputs: Sequence[Marked], labels: Labels) -> None:
    if getattr(model.config, "num_labels", None) != 2:
        raise InputError(f"`model` must have 2 labels; got {getattr(model.config, 'num_labels', None)}.")
    if len(inputs) != len(labels):
        raise InputError(f"`labels` must have one row an input; got {len(labels)} for {len(inputs)}.")
    for row, ((ids, marks), values) in enumerate(zip(inputs, labels, strict=True)):
        if len(marks) != len(values):
            raise InputError(f"`labels` must be one a mark; got {len(values)} for {len(marks)} in row {row}.")
        if marks and not 0 <= min(marks) <= max(marks) < len(ids):
            raise InputError(f"`inputs` must have marks inside their ids; got {max(marks)} of {len(ids)} in row {row}.")
        for value in values:
            if value is not None and not 0.0 <= value <= 1.0:
                raise InputError(f"`labels` must be from 0 to 1, or None; got {value} in row {row}.")


def _adamw(model: Any, options: StepTraining) -> torch.optim.AdamW:
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": options.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=options.learning_rate)


@contextmanager
def _training(model: Any, seed: int) -> Iterator[None]:
    """The model in training mode, and torch's random numbers by the seed; both are left as they were."""
    training, device = model.training, next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        model.train()
        try:
            yield
        finally:
            model.train(training)


def _batches(rows: list[int], options: StepTraining) -> Iterator[list[int]]:
    rng = random.Random(options.seed)  # noqa: S311 - reproducible order, no secret
    for _ in range(options.epochs):
        order = rng.sample(rows, len(rows))
        for first in range(0, len(order), options.batch_size):
            yield order[first : first + options.batch_size]


def _parts(rows: Sequence[int], inputs: Sequence[Marked], most: int) -> Iterator[list[int]]:
    """The rows in parts of like length, of at most so many tokens with their padding."""
    for part in batches([len(inputs[row][0]) for row in rows], most):
        yield [rows[index] for index in part]


def _accumulate(model: Any, batch: list[int], inputs: Sequence[Marked], labels: Labels, most: int) -> float:
    """Adds the gradients of the mean loss over the batch's known labels."""
    count = sum(value is not None for row in batch for value in labels[row])
    loss = 0.0
    for part in _parts(batch, inputs, most):
        known = [
            (inputs[row][0], [mark for mark, y in zip(inputs[row][1], labels[row], strict=True) if y is not None])
            for row in part
        ]
        logits = _logits_at_marks(model, known)
        y = torch.tensor([y for row in part for y in labels[row] if y is not None], dtype=torch.float64)
        total = soft_cross_entropy(logits, y).sum()
        (total / count).backward()  # type: ignore[no-untyped-call]
        loss += float(total.detach()) / count
    return loss


def _logits_at_marks(model: Any, inputs: Sequence[Marked]) -> Tensor:
    """The logits at the marks of all rows, row after row: [marks, 2]. Padding is on the right and masked."""
    device = next(model.parameters()).device
    ids = torch.zeros(len(inputs), max(len(row) for row, _ in inputs), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, (row, _) in enumerate(inputs):
        ids[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = 1
    rows = torch.tensor([index for index, (_, marks) in enumerate(inputs) for _ in marks], device=device)
    places = torch.tensor([mark for _, marks in inputs for mark in marks], device=device)
    logits: Tensor = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
    return logits[rows, places]
