"""GSPO-token against its own gradient, and what the clipped and detached losses do to credit off-policy."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.fidelity import Batch, disproportion, make_batch, push, table
from stepcredit import GRPO
from stepcredit.adapters.trl import attach
from trl_trainer import make_trainer

LOW, HIGH = 0.2, 0.3  # the clip range; made uneven, so that a mixed-up side shows


def gspo_trainer(out: Path, **settings: Any) -> Any:
    settings = {"loss_type": "grpo", "epsilon": LOW, "epsilon_high": HIGH, **settings}
    return make_trainer(out, importance_sampling_level="sequence", **settings)


def gspo_token_push(batch: Batch, mask: torch.Tensor) -> list[list[float]]:
    """Minus the gradient of GSPO-token's objective, token by token (arXiv 2507.18071, eq. 14, and its clipping).

    J = mean_i 1/|y_i| sum_t min(s_it A_it, clip(s_it) A_it), where s_it has the value of
    s_i = exp(1/|y_i| sum_t log(pi / pi_old)) and the gradient s_i dlog pi.
    """
    pushed = []
    for i in range(len(mask)):
        tokens = [t for t, on in enumerate(mask[i].tolist()) if on]
        drift = [float(batch.logprobs[i, t]) - float(batch.old[i, t]) for t in tokens]
        s = math.exp(math.fsum(drift) / len(tokens))
        row = [0.0] * mask.shape[1]
        for t in tokens:
            a = float(batch.credit[i, t])
            clipped = (a > 0 and s > 1 + HIGH) or (a < 0 and s < 1 - LOW)
            row[t] = 0.0 if clipped else s * a / len(tokens) / len(mask)
        pushed.append(row)
    return pushed


@pytest.mark.parametrize("holes", [False, True])
def test_gspo_token_has_the_papers_gradient(holes: bool, tmp_path: Path) -> None:
    batch = make_batch(seed=1, rows=24, drift=0.9)
    mask, tool_mask = batch.mask, torch.ones_like(batch.mask)
    if holes:
        tool_mask[:, 1:4] = 0
        mask = mask * tool_mask
        batch = Batch(torch.where(mask.bool(), batch.logprobs, -50.0), batch.old, batch.mask, batch.credit * mask)
    trainer = attach(gspo_trainer(tmp_path), GRPO(), gspo_token=True)
    expected = torch.tensor(gspo_token_push(batch, mask))
    clipped = (expected == 0) & (batch.credit != 0)
    assert set(clipped.any(1).tolist()) == {True, False}
    assert {bool(x > 0) for x in batch.credit[clipped]} == {True, False}  # both sides of the clip range take part
    torch.testing.assert_close(push(trainer, batch.logprobs, {**batch.inputs(), "tool_mask": tool_mask}), expected)


def test_gspo_token_with_one_advantage_a_sequence_is_gspo(tmp_path: Path) -> None:
    batch = make_batch(seed=2, rows=24, drift=0.9)
    advantages = torch.randn(24, generator=torch.Generator().manual_seed(0))
    trainer = gspo_trainer(tmp_path)
    by_trl = push(trainer, batch.logprobs, {**batch.inputs(), "advantages": advantages})
    attach(trainer, GRPO(), gspo_token=True)
    spread = {**batch.inputs(), "advantages": advantages[:, None] * batch.mask}
    torch.testing.assert_close(push(trainer, batch.logprobs, spread), by_trl)


def test_gspo_token_on_policy_needs_no_old_log_probs(tmp_path: Path) -> None:
    batch = make_batch(seed=3)
    trainer = attach(gspo_trainer(tmp_path), GRPO(), gspo_token=True)
    inputs = batch.inputs(on_policy=True)
    with_old = push(trainer, batch.logprobs, inputs)
    without = push(trainer, batch.logprobs, {k: v for k, v in inputs.items() if k != "old_per_token_logps"})
    assert torch.equal(with_old, without)
    assert disproportion(without, batch) < 1e-5


def test_gspo_token_leaves_the_buffered_batch_and_the_trainer_alone(tmp_path: Path) -> None:
    batch = make_batch(seed=4)
    trainer = attach(gspo_trainer(tmp_path), GRPO(), gspo_token=True)
    inputs = batch.inputs()
    before = {name: x.clone() for name, x in inputs.items()}
    first = push(trainer, batch.logprobs, inputs)
    assert inputs.keys() == before.keys()
    assert all(torch.equal(inputs[name], x) for name, x in before.items())
    assert trainer.importance_sampling_level == "sequence"
    assert trainer._gspo_inputs is None
    assert torch.equal(push(trainer, batch.logprobs, inputs), first)  # as a second iteration over the same batch


def test_gspo_token_drops_sequences_by_their_true_old_policy(tmp_path: Path) -> None:
    """DeepSeek's off-policy mask: a token of negative credit counts where the sequence's mean KL is small."""
    limit = 0.05
    batch = make_batch(seed=5, rows=24, drift=0.3)
    trainer = attach(gspo_trainer(tmp_path, off_policy_mask_threshold=limit), GRPO(), gspo_token=True)
    expected = gspo_token_push(batch, batch.mask)
    dropped = 0
    for i, mask in enumerate(batch.mask.tolist()):
        kl = sum(float(batch.old[i, t] - batch.logprobs[i, t]) for t, on in enumerate(mask) if on) / sum(mask)
        for t, on in enumerate(mask):
            if on and kl > limit and batch.credit[i, t] < 0:
                dropped += expected[i][t] != 0
                expected[i][t] = 0.0
    assert dropped > 10
    torch.testing.assert_close(push(trainer, batch.logprobs, batch.inputs()), torch.tensor(expected))


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo", "bnpo", "luspo"])
def test_off_policy_a_token_is_pushed_by_ratio_times_credit_until_it_is_clipped(loss_type: str, tmp_path: Path) -> None:
    batch = make_batch(seed=6, drift=0.3)
    trainer = make_trainer(tmp_path, loss_type=loss_type, epsilon=LOW, epsilon_high=HIGH)
    pushed = push(attach(trainer, GRPO()), batch.logprobs, batch.inputs())
    ratio, a = (batch.logprobs - batch.old).exp(), batch.credit
    clipped = ((a > 0) & (ratio > 1 + HIGH)) | ((a < 0) & (ratio < 1 - LOW))
    assert clipped.any()
    weighed = Batch(batch.logprobs, batch.old, batch.mask, torch.where(clipped, 0.0, ratio * a))
    assert disproportion(pushed, weighed) < 1e-5


def test_the_table_prints_a_line_a_loss() -> None:
    lines = table(["grpo"])
    assert len(lines) == 3
    assert lines[-1].startswith("| grpo | 1.000 / 0.000 | 0.9")
    assert lines[-1].count("/ 1.000") == 2  # what TRL does at sequence level, and why it is refused
