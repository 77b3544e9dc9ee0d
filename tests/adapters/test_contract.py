"""What the adapter asks of TRL, whichever version is installed: run by `versions.sh` under each of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from trl import GRPOTrainer

import references
from adapters.fidelity import LOSS_TYPES, correlation, disproportion, leak, make_batch, push
from adapters.independent import HighDigits, check_seen, plain_batch
from stepcredit import GRPO, PASS, SPRO, InputError
from stepcredit.adapters.trl import CreditGRPOTrainer, CreditStep, attach
from trl_trainer import (
    Ledger,
    Witness,
    generate,
    has_line_end,
    make_model,
    make_trainer,
    plain_logprobs,
    scripted,
    share_of_even,
)

REUSED = {  # two groups a generation batch, cut into four micro-batches, each used twice
    "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "steps_per_generation": 4, "num_iterations": 2,
    "max_steps": 8,
}  # fmt: skip


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_every_loss_carries_credit_token_by_token(loss_type: str, tmp_path: Path) -> None:
    trainer = attach(make_trainer(tmp_path, loss_type=loss_type), GRPO())
    batch = make_batch()
    pushed = push(trainer, batch.logprobs, batch.inputs(on_policy=True))
    assert disproportion(pushed, batch) < 1e-5
    assert leak(pushed, batch) == 0.0
    moved = push(trainer, batch.logprobs, batch.inputs())
    assert leak(moved, batch) == 0.0
    assert correlation(moved, batch) > 0.9  # clipped tokens push no more


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_at_sequence_level_credit_survives_or_is_refused(loss_type: str, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, loss_type=loss_type, importance_sampling_level="sequence")
    batch = make_batch()
    pushed = push(trainer, batch.logprobs, batch.inputs(on_policy=True))
    if loss_type in ("cispo", "vespo"):
        assert disproportion(pushed, batch) < 1e-5
        attach(trainer, GRPO())
        return
    assert leak(pushed, batch) == pytest.approx(1.0)  # what the refusal is for
    with pytest.raises(InputError, match=r"`importance_sampling_level` must be 'token'.*gspo_token=True"):
        attach(trainer, GRPO())
    attach(trainer, GRPO(), gspo_token=True)
    assert disproportion(push(trainer, batch.logprobs, batch.inputs()), batch) < 1e-3  # sapo's heat goes by sign


@pytest.mark.parametrize("settings", [{}, REUSED], ids=["aligned", "reused"])
def test_group_relative_credit_trains_as_trl_alone_does(settings: dict[str, Any], tmp_path: Path) -> None:
    runs = []
    for ours in (False, True):
        trainer = make_trainer(tmp_path, optim="sgd", learning_rate=0.1, **settings)
        if ours:
            attach(trainer, GRPO(std_eps=1e-4))
        trainer.train()
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        runs.append((losses, trainer.model.state_dict()))
    (losses, weights), (our_losses, our_weights) = runs
    assert our_losses == pytest.approx(losses, abs=1e-6)
    assert len(losses) == settings.get("max_steps", 2)
    for name, tensor in weights.items():
        torch.testing.assert_close(our_weights[name], tensor, rtol=0, atol=1e-6)
    assert any(not torch.equal(tensor, make_model().state_dict()[name]) for name, tensor in weights.items())


def test_a_text_signals_credit_reaches_the_loss(tmp_path: Path) -> None:
    ledger = Ledger()
    rewards = ledger.watch(share_of_even, has_line_end)
    trainer = make_trainer(tmp_path, trainer=Witness, reward_funcs=rewards, **REUSED)
    attach(trainer, PASS(k=0.7), signal=HighDigits(), format=["has_line_end"])
    trainer.seen.clear()
    trainer.train()
    names = {"outcome": ["share_of_even"], "format": ["has_line_end"]}
    expected = lambda generation: references.pass_(plain_batch(generation, 4, signal=True, **names), k=0.7)  # noqa: E731
    assert check_seen(trainer.seen, ledger.generations, expected) == 32  # 8 steps x 2 micro-batches x 2 rows
    assert len(ledger.generations) == 2


def test_log_ratios_are_those_of_a_plain_forward(tmp_path: Path) -> None:
    temperature, model = 0.7, make_model()
    ledger = Ledger(model)
    trainer = make_trainer(
        tmp_path, trainer=Witness, model=model, reward_funcs=ledger.watch(share_of_even), temperature=temperature,
        learning_rate=0.1, max_steps=3,
    )  # fmt: skip
    attach(trainer, SPRO(beta=0.5))
    trainer.seen.clear()
    trainer.train()
    initial, current = make_model(), make_model()

    def expected(generation: Any) -> list[list[float]]:
        current.load_state_dict(generation.weights)
        rows = list(zip(generation.prompts, generation.ids, strict=True))
        old, ref = ([plain_logprobs(m, p, ids, temperature) for p, ids in rows] for m in (current, initial))
        batch = plain_batch(generation, 4, outcome=["share_of_even"], old=old, ref=ref)
        return references.spro(batch, beta=0.5)

    assert check_seen(trainer.seen, ledger.generations, expected) == 24
    moved = [k for k, x in ledger.generations[-1].weights.items() if not torch.equal(x, initial.state_dict()[k])]
    assert moved


def test_environment_tokens_get_no_credit_and_the_samplers_log_probs_are_not_read(tmp_path: Path) -> None:
    credits = []
    for claimed in (None, -1e6):
        rollouts = {"rollout_func": scripted(holes=True, logprob=claimed)}
        trainer = attach(make_trainer(tmp_path, extra=rollouts), SPRO(beta=0.5), ref_model=make_model(seed=1))
        output = generate(trainer)
        credits.append(output["advantages"])
        assert bool((output["tool_mask"] == 0).any())
        assert not output["advantages"][(output["completion_mask"] * output["tool_mask"]) == 0].any()
    assert output["sampling_per_token_logps"].min() == -1e6
    assert torch.equal(*credits)


def test_making_the_trainer_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    before, state, random_state = dict(vars(trainer)), trainer.model.state_dict(), torch.get_rng_state()
    weights = {name: x.clone() for name, x in state.items()}
    assert isinstance(attach(trainer, SPRO()), GRPOTrainer)
    assert {name: x for name, x in vars(trainer).items() if name != "_credit"} == before
    assert not any(trainer._metrics[mode] for mode in trainer._metrics)
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert all(torch.equal(x, weights[name]) for name, x in state.items())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_what_is_logged_is_what_trains(tmp_path: Path) -> None:
    seen: list[CreditStep] = []
    trainer = make_trainer(tmp_path)
    attach(trainer, PASS(), signal=HighDigits(), format=["has_line_end"], on_credit=lambda step: seen.append(step))
    output = generate(trainer)
    means = [
        sum(row[: sum(mask)]) / sum(mask)
        for row, mask in zip(output["advantages"].tolist(), output["completion_mask"].tolist(), strict=True)
    ]
    assert list(trainer._logs["advantages"]) == pytest.approx(means)
    assert torch.equal(seen[0].credit.advantages, output["advantages"])
    assert seen[0].rollouts.completions == list(trainer._logs["completion"])
    assert trainer._metrics["train"]["credit/rollouts"] == [8.0]


def test_the_class_form_evaluates_one_rollout_a_prompt(tmp_path: Path) -> None:
    class Trainer(CreditGRPOTrainer):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments, eval_dataset=arguments["train_dataset"].select(range(4)), estimator=GRPO())

    trainer = make_trainer(tmp_path, trainer=Trainer, num_generations_eval=1, per_device_eval_batch_size=4)
    trainer.evaluate()
    numbers = trainer.state.log_history[-1]
    assert numbers["eval_credit/rollouts"] == 4.0
    assert numbers["eval_credit/mean_abs"] == 0.0  # alone in its group, a rollout says nothing
