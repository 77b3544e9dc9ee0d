"""Signals that learn inside a run: what they learn from, and their state in the trainer's checkpoints."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from stepcredit.batch import RolloutBatch, Rollouts
from stepcredit.errors import InputError
from stepcredit.files import replacing
from stepcredit.signals import LearningSignal

FILE = "signal_state.pt"  # in every checkpoint of a run whose signal learns


def update(trainer: Any, signal: LearningSignal, rollouts: Rollouts, batch: RolloutBatch) -> dict[str, float]:
    """Lets a signal learn from all ranks' rollouts that count, on every rank alike; gives its numbers to log."""
    if batch.rewards is None:
        raise InputError(f"`rewards` must be in the batch for {signal.name} to learn from; got None.")
    live = batch.layout.live.tolist()
    parts = [(chosen(rollouts, live), batch.rewards[batch.layout.live].tolist())]
    if trainer.accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        parts = gather_object(parts)
    outcomes = [outcome for _, some in parts for outcome in some]
    if not outcomes:
        return {}
    numbers = signal.update(joined([part for part, _ in parts]), outcomes)
    return {f"signal/{name}": float(value) for name, value in numbers.items()}


def save_state(signal: LearningSignal, checkpoint: str | Path) -> None:
    """Puts the state beside the weights that it belongs to."""
    with replacing(Path(checkpoint) / FILE) as file:
        torch.save(signal.state_dict(), file)


def load_state(signal: LearningSignal, checkpoint: str | Path) -> None:
    """Goes on from a checkpoint.

    Raises:
        InputError: The checkpoint has no state: the run was started without this signal.
    """
    path = Path(checkpoint) / FILE
    if not path.is_file():
        raise InputError(f"`resume_from_checkpoint` must have {FILE} for {signal.name}; got {str(checkpoint)!r}.")
    signal.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))


def chosen(rollouts: Rollouts, rows: list[int]) -> Rollouts:
    """Some of the rollouts, by row."""
    given = {f.name: getattr(rollouts, f.name) for f in dataclasses.fields(Rollouts)}
    fields: dict[str, Any] = {name: None if x is None else [x[i] for i in rows] for name, x in given.items()}
    return Rollouts(**fields)


def joined(parts: list[Rollouts]) -> Rollouts:
    """Rollouts one after the other; a field that one of them lacks is left out."""
    names = [f.name for f in dataclasses.fields(Rollouts) if all(getattr(part, f.name) is not None for part in parts)]
    return Rollouts(**{name: [x for part in parts for x in getattr(part, name)] for name in names})
