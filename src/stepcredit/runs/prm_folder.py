"""Writes a process reward model as a folder that `PRM` loads by its path alone, whole or not at all."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from stepcredit.batch import Rollouts, Span
from stepcredit.errors import InputError
from stepcredit.files import new_folder
from stepcredit.runs.policies import no_progress_bars
from stepcredit.signals.prm import PRM
from stepcredit.signals.prm.described import DESCRIPTION

PROVENANCE = "PROVENANCE.md"
_PROBE = ("What is 2+3?", ("Add 2 and 3.", "The answer is 5."))
_TOLERANCE = 1e-3  # of a probability: what a dtype's rounding may differ between two layouts of a batch


def save_prm(
    folder: str | Path, model: Any, tokenizer: Any, *, separator: str, provenance: str, probe: Sequence[float]
) -> str:
    """Writes the model, its tokenizer, how it is fed, and where it comes from; then reads it back.

    Args:
        folder: Must not exist; its parent must.
        model: A token classifier with 2 labels.
        tokenizer: Its tokenizer.
        separator: What ends every step in its input.
        provenance: The text of `PROVENANCE.md`; ``{digest}`` in it becomes the SHA-256 of ``model.safetensors``.
        probe: What the model in memory says of `probe_solution`: the folder must say the same.

    Returns:
        The SHA-256 of ``model.safetensors``, in hexadecimal.

    Raises:
        InputError: The folder exists, or its parent does not; or what was written does not score as the model does.
        OSError: The disk refused; nothing is left behind.
    """
    with new_folder(folder) as made:
        with no_progress_bars():
            model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        (made / DESCRIPTION).write_text(json.dumps({"preset": "trl", "separator": separator}) + "\n")
        digest = hashlib.sha256((made / "model.safetensors").read_bytes()).hexdigest()
        (made / PROVENANCE).write_text(provenance.replace("{digest}", digest), encoding="utf-8")
        _check(made, folder, probe)
    return digest


def probe_solution() -> tuple[str, tuple[str, ...]]:
    """A problem and its steps, to try a model on."""
    return _PROBE


def _check(made: Path, folder: str | Path, probe: Sequence[float]) -> None:
    problem, steps = _PROBE
    spans, start = [], 0
    for step in steps:
        spans.append(Span(start, start + len(step)))
        start += len(step) + 1
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with no_progress_bars():
        read = PRM(str(made), device=device).score(Rollouts([problem], ["\n".join(steps)], [0], steps=[spans]))[0]
    scores = [score for _, _, score in read]
    if len(scores) != len(probe) or max(abs(a - b) for a, b in zip(scores, probe, strict=True)) > _TOLERANCE:
        raise InputError(f"`out` must score as the model does; {str(folder)!r} would give {scores}, not {list(probe)}.")
