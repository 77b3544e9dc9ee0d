"""Writes a warm-started policy as a Hugging Face folder, with a `PROVENANCE.md` that says how to build it again."""

import hashlib
import math
import textwrap
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from stepcredit.files import new_folder
from stepcredit.runs.policies import no_progress_bars
from stepcredit.runs.warm_start import FLOOR, Accuracy, WarmStartReport

_PURPOSES = {
    "noisy": "The tutor errs often, by design, so that reinforcement learning has something to gain.",
    "clean": "The tutor never errs: this is a teacher for others to be distilled from.",
}


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
        accuracy: What `measure` said, one a difficulty.
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


def _provenance(
    report: WarmStartReport, accuracy: Sequence[Accuracy], digest: str, parameters: int, command: str
) -> str:
    course, updates, problems = report.course, len(report.losses), accuracy[0].problems
    rate, floor = f"{report.learning_rate:g}", f"{FLOOR * report.learning_rate:g}"
    origin = "random weights" if report.start is None else f"the weights of `{report.start}`"
    trained = textwrap.fill(
        f"A Llama-type causal language model of {parameters:,} parameters (float32) and its tokenizer, trained from "
        f"{origin} on text that the package generates: a {course.tutor} tutor's solutions of {course.subject}. "
        f"{_PURPOSES[course.tutor]}",
        width=118,
    )
    rows = "\n".join(
        f"| {row.exam} | {row.sampled:.3f} | {row.greedy:.3f} | {row.finished:.3f} | {row.length:.1f} |"
        for row in accuracy
    )
    return f"""# Where this policy comes from

{trained}

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

| {course.difficulty} | sampled | greedy | sampled and finished | mean tokens sampled |
|---|---|---|---|---|
{rows}

The standard error of a share is at most {50 / math.sqrt(problems):.1f} points. Warm start, training and test share no
problem seeds{course.overlap}.

License: the package's own. No text, weights or data of others went in.
"""
