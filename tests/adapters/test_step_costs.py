"""What the adapter adds to a training step: nothing that a GPU would wait for where the loss is made."""

from pathlib import Path
from typing import Any

import pytest
import torch
from trl import GRPOTrainer

from stepcredit import GRPO, PASS
from stepcredit.adapters.trl import CreditGRPOTrainer
from stepcredit.batch import Rollouts, ScoredSpan
from stepcredit.tasks.segmentation import segment
from syncs import Syncs
from trl_trainer import generate, make_trainer, scripted


class Lines:
    """Scores lines by their length."""

    name, unit, requires = "lines", "characters", frozenset[str]()

    def score(self, rollouts: Rollouts) -> list[list[ScoredSpan]]:
        return [[ScoredSpan(a, b, float(b - a)) for a, b in segment(text)] for text in rollouts.completions]


class Waiting(CreditGRPOTrainer):
    """Looks at a number where the loss is made: what the tests below have to see."""

    def _see_logprobs(self, logprobs: torch.Tensor) -> None:
        super()._see_logprobs(logprobs)
        self.last_mean = logprobs.mean().item()


KINDS: dict[str, tuple[type, dict[str, Any], dict[str, Any]]] = {
    "plain": (GRPOTrainer, {}, {}),
    "grpo": (CreditGRPOTrainer, {"estimator": GRPO()}, {}),
    "pass": (CreditGRPOTrainer, {"estimator": PASS(), "signal": Lines(), "format": ["has_line_end"]}, {}),
    "gspo": (
        CreditGRPOTrainer, {"estimator": GRPO(), "gspo_token": True}, {"importance_sampling_level": "sequence"},
    ),
    "plain gspo": (GRPOTrainer, {}, {"importance_sampling_level": "sequence"}),
    "waiting": (Waiting, {"estimator": GRPO()}, {}),
}  # fmt: skip


def made(kind: str, folder: Path) -> Any:
    trainer, extra, settings = KINDS[kind]
    return make_trainer(folder, trainer=trainer, extra={**extra, "rollout_func": scripted()}, **settings)


def loss_syncs(kind: str, folder: Path) -> Syncs:
    """What one micro-batch's loss and its gradient wait for."""
    trainer = made(kind, folder)
    inputs = generate(trainer)
    trainer.current_gradient_accumulation_steps = 1
    with Syncs() as syncs:
        trainer.compute_loss(trainer.model, inputs).backward()
    return syncs


@pytest.mark.parametrize("kind", ["grpo", "pass"])
def test_the_loss_waits_for_nothing_that_trls_own_does_not(kind: str, tmp_path: Path) -> None:
    assert loss_syncs(kind, tmp_path).counts == loss_syncs("plain", tmp_path).counts


def test_gspo_token_waits_for_nothing_that_gspo_does_not(tmp_path: Path) -> None:
    assert loss_syncs("gspo", tmp_path).counts == loss_syncs("plain gspo", tmp_path).counts


def test_a_wait_in_the_loss_is_seen(tmp_path: Path) -> None:
    more = loss_syncs("waiting", tmp_path).counts - loss_syncs("plain", tmp_path).counts
    assert dict(more) == {"_local_scalar_dense": 1}


def test_what_counts_as_a_wait() -> None:
    x = torch.arange(4)
    with Syncs() as syncs:
        bool(x[0] > 1), int(x.sum()), float(x.float().mean()), x.tolist(), x[x > 1], x.nonzero(), x.unique()
        x + 1, x.sum(), torch.where(x > 1, x, 0), x[torch.tensor([0, 2])], x.cumsum(0), x.repeat_interleave(2)
    assert syncs.counts == {
        "_local_scalar_dense": 3, "tolist": 1, "boolean index": 1, "nonzero": 1, "_unique2": 1,
    }  # fmt: skip


MOST = {"grpo": 20, "pass": 100}


@pytest.mark.parametrize("kind", list(MOST))
def test_credit_of_a_generation_batch_waits_seldom(kind: str, tmp_path: Path) -> None:
    """Once a batch of rollouts, whatever its size; each is a few microseconds of a GPU beside its generation."""
    totals = []
    for n_prompts in (2, 6):
        counts = []
        for name in ("plain", kind):
            trainer = made(name, tmp_path)
            generate(trainer, n_prompts=n_prompts)  # what is done once
            with Syncs() as syncs:
                generate(trainer, n_prompts=n_prompts)
            counts.append(syncs.counts)
        totals.append((counts[1] - counts[0]).total())
    assert totals[0] == totals[1]
    assert totals[0] <= MOST[kind]
