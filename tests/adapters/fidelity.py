"""How much of a token's credit reaches that token, in every loss of the installed TRL.

`python tests/adapters/fidelity.py` prints the table. The trainer's own `_compute_loss` runs with a leaf tensor in place
of the log-probabilities, so that its gradient says what each token is pushed by: -dL/dlogp should be the token's credit
times a number that its rollout shares, and 0 where the credit is 0.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from trl import GRPOTrainer

from stepcredit import GRPO
from stepcredit.adapters.trl import attach
from trl_trainer import make_trainer

LOSS_TYPES = ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo")
_LOGPROBS = "_get_per_token_logps_and_entropies"


@dataclass(frozen=True)
class Batch:
    """A micro-batch as TRL's loss takes it, with token-level credit."""

    logprobs: Tensor
    old: Tensor
    mask: Tensor
    credit: Tensor

    def inputs(self, *, on_policy: bool = False) -> dict[str, Any]:
        ones = torch.ones(len(self.mask), 1, dtype=torch.long)
        return {
            "prompt_ids": ones * 3, "prompt_mask": ones, "completion_ids": torch.full_like(self.mask, 4),
            "completion_mask": self.mask, "advantages": self.credit, "num_items_in_batch": self.mask.sum(),
            "old_per_token_logps": self.logprobs if on_policy else self.old,
        }  # fmt: skip


def make_batch(seed: int = 0, rows: int = 8, time: int = 12, drift: float = 0.1) -> Batch:
    """Random credit, a fifth of it 0; the policy has moved by ``drift`` nats a token since it sampled."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(rows, time, generator=generator)  # noqa: E731
    lengths = torch.randint(time // 2, time + 1, (rows, 1), generator=generator)
    mask = (torch.arange(time) < lengths).long()
    credit = draw() * (torch.rand(rows, time, generator=generator) > 0.2) * mask
    logprobs = -1.0 - draw().abs()
    return Batch(logprobs, logprobs + drift * draw(), mask, credit)


def push(trainer: Any, logprobs: Tensor, inputs: dict[str, Any]) -> Tensor:
    """-dL/dlogp of the trainer's own loss, [batch, time]."""
    leaf, scored = logprobs.clone().requires_grad_(), getattr(GRPOTrainer, _LOGPROBS)

    def stand_in(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
        with torch.no_grad():
            return (leaf, *scored(*args, **kwargs)[1:])  # whatever else this version returns

    trainer.current_gradient_accumulation_steps = 1
    with mock.patch.object(GRPOTrainer, _LOGPROBS, stand_in):
        loss = trainer._compute_loss(trainer.model, inputs)
    return -torch.autograd.grad(loss, leaf)[0]


def correlation(pushed: Tensor, batch: Batch) -> float:
    """The correlation of push and credit over a rollout's tokens, the mean over rollouts."""
    each = [torch.corrcoef(torch.stack([pushed[i, on], batch.credit[i, on]]))[0, 1] for i, on in _rows(batch)]
    return float(torch.stack(each).nan_to_num(0.0).mean())  # a push that is the same on every token explains nothing


def leak(pushed: Tensor, batch: Batch) -> float:
    """The largest push on a token without credit, of the largest push."""
    return float(pushed[batch.credit == 0].abs().max() / pushed.abs().max())


def disproportion(pushed: Tensor, batch: Batch) -> float:
    """How far the push is from a positive multiple of the credit in each rollout, relative to the largest push."""
    worst = 0.0
    for i, on in _rows(batch):
        a, g = batch.credit[i, on], pushed[i, on]
        scale = (a * g).sum() / (a * a).sum()
        worst = max(worst, float((g - scale * a).abs().max() / g.abs().max()), float(scale <= 0))
    return worst


def _rows(batch: Batch) -> list[tuple[int, Tensor]]:
    return [(i, mask.bool()) for i, mask in enumerate(batch.mask)]


def table(loss_types: Sequence[str] = LOSS_TYPES) -> list[str]:
    """Markdown lines: correlation / leak by loss and level, on-policy and after the policy has moved."""
    lines = ["| loss | token, on | token, off | sequence, on | sequence, off | GSPO-token, on | GSPO-token, off |"]
    lines.append("|---" * 7 + "|")
    batch = make_batch()
    with tempfile.TemporaryDirectory() as folder:
        for loss in loss_types:
            cells = []
            for level, gspo_token in (("token", False), ("sequence", False), ("sequence", True)):
                trainer = make_trainer(Path(folder), loss_type=loss, importance_sampling_level=level)
                if gspo_token:
                    attach(trainer, GRPO(), gspo_token=True)
                for on_policy in (True, False):
                    pushed = push(trainer, batch.logprobs, batch.inputs(on_policy=on_policy))
                    cells.append(f"{correlation(pushed, batch):.3f} / {leak(pushed, batch):.3f}")
            lines.append(f"| {loss} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    print("\n".join(table()))
