"""Trains a process reward model on labeled solutions and says what it has learned from and what was left out."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import torch

from stepcredit.errors import InputError
from stepcredit.runs.prm_folder import probe_solution
from stepcredit.runs.prm_metrics import step_auc
from stepcredit.signals.prm.layouts import SeparatedLayout
from stepcredit.signals.prm.training import (
    Marked,
    StepTraining,
    fit_length,
    soft_cross_entropy,
    step_probabilities,
    train_steps,
)
from stepcredit.tasks.labeled_steps import LabeledSteps

SEPARATOR = "\n"


@dataclass(frozen=True)
class PRMReport:
    """What a training run did.

    Attributes:
        options: How it trained.
        separator: What ends every step in the model's input.
        max_length: The most tokens of an input.
        solutions: How many it was given to train on.
        blank_steps: Their steps of white space alone, which no model sees.
        unread_steps: Their steps beyond ``max_length``.
        held_out: ``solutions``, ``steps``, ``loss`` (nats) and ``auc`` on solutions that it was not trained on; None
            where there are none. ``auc`` is None where all their steps are right, or wrong.
        metrics: What `train_steps` said.
        probe: The trained model's scores of `probe_solution`.
        seconds: Wall time of the training.
    """

    options: StepTraining
    separator: str
    max_length: int
    solutions: int
    blank_steps: int
    unread_steps: int
    held_out: dict[str, float | None] | None
    metrics: dict[str, float]
    probe: tuple[float, ...]
    seconds: float


def train_prm(
    model: Any,
    tokenizer: Any,
    solutions: Sequence[LabeledSteps],
    *,
    held_out: Sequence[LabeledSteps] = (),
    options: StepTraining | None = None,
    separator: str = SEPARATOR,
    max_length: int | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> PRMReport:
    """Trains in place on solutions fed as TRL's `PRMTrainer` feeds them: problem, then each step and the separator.

    Args:
        model: A token classifier with 2 labels, in evaluation mode afterwards.
        tokenizer: Its tokenizer.
        solutions: With labels in [0, 1] or None, a step.
        held_out: Others, to measure on; their labels of 0.5 and more count as right for the AUC.
        options: See `StepTraining`.
        separator: What ends every step; `save_prm` writes it beside the weights.
        max_length: The most tokens of an input; None: as many as the model has positions.
        progress: See `train_steps`.

    Raises:
        InputError: ``max_length`` is above the model's positions; or see `train_steps`.
    """
    options = options or StepTraining()
    positions = getattr(model.config, "max_position_embeddings", None)
    most = max_length or positions or 4096
    if most < 1 or (positions is not None and most > positions):
        raise InputError(f"`max_length` must be from 1 to the model's {positions} positions; got {max_length}.")
    inputs, labels, blank = encode_solutions(tokenizer, solutions, separator)
    inputs, labels, unread = fit_length(inputs, labels, most)
    begun = time.perf_counter()
    metrics = train_steps(model, inputs, labels, options, progress=progress)
    seconds = time.perf_counter() - begun
    model.eval()
    measured = _measure(model, tokenizer, held_out, separator, most, options) if held_out else None
    layout = SeparatedLayout("trl", tokenizer, separator)
    problem, steps = probe_solution()
    probe = step_probabilities(model, [layout.encode(problem, steps)])[0]
    return PRMReport(
        options, separator, most, len(solutions), blank, unread, measured, metrics, tuple(probe), seconds
    )  # fmt: skip


def encode_solutions(
    tokenizer: Any, solutions: Sequence[LabeledSteps], separator: str = SEPARATOR
) -> tuple[list[Marked], list[list[float | None]], int]:
    """Solutions as ids with marks, exactly as `PRM` feeds them: steps without the white space around them.

    Returns:
        The inputs, the label of each mark, and how many steps have none because they are white space alone.
    """
    layout = SeparatedLayout("trl", tokenizer, separator)
    inputs: list[Marked] = []
    labels: list[list[float | None]] = []
    blank = 0
    for solution in solutions:
        kept = [(words, y) for step, y in zip(solution.steps, solution.labels, strict=True) if (words := step.strip())]
        blank += len(solution.steps) - len(kept)
        inputs.append(layout.encode(solution.problem, [words for words, _ in kept]))
        labels.append([y for _, y in kept])
    return inputs, labels, blank


def _measure(
    model: Any, tokenizer: Any, held_out: Sequence[LabeledSteps], separator: str, most: int, options: StepTraining
) -> dict[str, float | None]:
    inputs, labels, _ = encode_solutions(tokenizer, held_out, separator)
    inputs, labels, _ = fit_length(inputs, labels, most)
    found = step_probabilities(model, inputs, tokens_at_once=options.tokens_at_once)
    pairs = [
        (p, y) for row, ys in zip(found, labels, strict=True) for p, y in zip(row, ys, strict=True) if y is not None
    ]
    if not pairs:
        return {"solutions": len(held_out), "steps": 0, "loss": None, "auc": None}
    p = torch.tensor([p for p, _ in pairs], dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
    y = torch.tensor([y for _, y in pairs], dtype=torch.float64)
    losses = soft_cross_entropy(torch.stack([(1 - p).log(), p.log()], -1), y)
    auc = step_auc(p.numpy(), (y >= 0.5).numpy())
    return {"solutions": len(held_out), "steps": len(pairs), "loss": float(losses.mean()), "auc": auc}


def provenance(
    report: PRMReport, *, command: str, start: str, labels: str, parameters: int, notes: Sequence[str] = ()
) -> str:
    """The text of a folder's `PROVENANCE.md`; ``{digest}`` stands for the weights' SHA-256.

    Args:
        report: What `train_prm` said.
        command: What builds the folder again.
        start: What the model started from.
        labels: Where the labels come from.
        parameters: The model's size.
        notes: Further lines, one a bullet.
    """
    metrics, held = report.metrics, report.held_out
    lines = [
        f"start: {start}",
        f"labels: {labels}",
        f"{report.solutions} solutions, {metrics['steps']:.0f} labeled steps, {metrics['tokens']:.0f} tokens an epoch",
        f"left out: {report.blank_steps} blank steps, {report.unread_steps} beyond {report.max_length} tokens, "
        f"{metrics['unlabeled_rows']:.0f} solutions without a known label",
        f"{metrics['updates']:.0f} updates in {report.seconds:.0f} s; loss {metrics['first_loss']:.4f} nats a step at "
        f"first, {metrics['loss']:.4f} over the last epoch",
        f"options: {asdict(report.options)}",
        f"versions: torch {torch.__version__}, transformers {version('transformers')}; CPU threads: "
        f"{torch.get_num_threads()}",
        "SHA-256 of `model.safetensors`: {digest}",
        *notes,
    ]
    if held is not None:
        shown = {name: None if value is None else round(value, 4) for name, value in held.items()}
        lines.insert(4, f"held out: {shown}")
    bullets = "\n".join(f"- {line}" for line in lines)
    return f"""# Where this process reward model comes from

A token classifier of {parameters:,} parameters. Its input is the problem, then each step followed by
{report.separator!r}; the probability of class 1 at a separator is the step's score. `stepcredit_prm.json` says so to
`PRM(model=FOLDER)`.

    {command}

builds it again.

{bullets}
"""
