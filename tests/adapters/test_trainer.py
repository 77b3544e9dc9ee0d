"""Training, logging and evaluation with credit: every micro-batch trains on its own rows' credit, and TRL says so."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import references
from adapters.independent import HighDigits, check_seen, plain_batch
from stepcredit import GDPO, GRPO, PASS, SPRO, DrGRPO
from stepcredit.adapters.trl import CreditGRPOTrainer, CreditStep, attach
from trl_trainer import (
    Ledger,
    Witness,
    generate,
    has_line_end,
    make_data,
    make_model,
    make_tokenizer,
    make_trainer,
    plain_logprobs,
    scripted,
    share_of_even,
)

NAMES = {"outcome": ["share_of_even"], "format": ["has_line_end"]}
CUTS: dict[str, tuple[dict[str, Any], int]] = {  # settings, and how many rows the loss sees in all
    "one": ({"max_steps": 2}, 16),
    "a group over two": ({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "max_steps": 2}, 16),
    "used three times": ({"num_iterations": 3, "max_steps": 4}, 32),
    "several an update": (
        {"per_device_train_batch_size": 4, "steps_per_generation": 4, "gradient_accumulation_steps": 2, "max_steps": 3},
        24,
    ),
    "all at once": (
        {
            "per_device_train_batch_size": 2, "steps_per_generation": 4, "gradient_accumulation_steps": 2,
            "num_iterations": 2, "pad_to_multiple_of": 8, "max_steps": 5,
        },
        20,
    ),
}  # fmt: skip


def expected_pass(generation: Any) -> list[list[float]]:
    return references.pass_(plain_batch(generation, 4, signal=True, **NAMES), k=0.7)


@pytest.mark.parametrize(("settings", "rows"), CUTS.values(), ids=CUTS.keys())
def test_a_micro_batch_trains_on_its_own_rows_credit(settings: dict[str, Any], rows: int, tmp_path: Path) -> None:
    ledger = Ledger()
    trainer = make_trainer(
        tmp_path, trainer=Witness, reward_funcs=ledger.watch(share_of_even, has_line_end), learning_rate=0.1, **settings
    )
    attach(trainer, PASS(k=0.7), signal=HighDigits(), format=["has_line_end"])
    trainer.seen.clear()
    trainer.train()
    assert check_seen(trainer.seen, ledger.generations, expected_pass) == rows


@pytest.mark.parametrize(
    ("estimator", "settings"),
    [
        (GRPO(std_eps=1e-4), {}),
        (DrGRPO(), {"scale_rewards": "none"}),
        (GDPO(std_eps=1e-4), {"multi_objective_aggregation": "normalize_then_sum"}),
    ],
    ids=["group", "none", "gdpo"],
)
def test_credit_is_trls_own_advantage_where_the_schemes_agree(
    estimator: Any, settings: dict[str, Any], tmp_path: Path
) -> None:
    def sometimes(completions: list[str], **_: Any) -> list[float | None]:
        return [None if "9" in text else len(text) / 10 for text in completions]

    functions = [share_of_even, has_line_end] if isinstance(estimator, GDPO) else [sometimes]
    advantages = []
    for ours in (False, True):
        trainer = make_trainer(tmp_path, reward_funcs=functions, extra={"rollout_func": scripted()}, **settings)
        if ours:  # in GDPO every function is a channel of its own
            attach(trainer, estimator, outcome=["share_of_even"] if len(functions) > 1 else None)
        advantages.append(generate(trainer, n_prompts=5))
    by_trl, by_us = advantages
    assert by_trl["advantages"].any()
    spread = by_trl["advantages"][:, None] * by_trl["completion_mask"]
    torch.testing.assert_close(by_us["advantages"], spread, rtol=0, atol=1e-5)
    assert {name: x.shape for name, x in by_trl.items() if name != "advantages"} == {
        name: x.shape for name, x in by_us.items() if name != "advantages"
    }


def test_the_class_trains_as_the_attached_trainer_does(tmp_path: Path) -> None:
    options = {"signal": HighDigits(), "format": ["has_line_end"]}
    attached = attach(make_trainer(tmp_path), PASS(), **options)
    attached.train()
    made = make_trainer(tmp_path, trainer=CreditGRPOTrainer, extra={"estimator": PASS(), **options})
    made.train()
    assert type(attached).__name__ == type(made).__name__ == "CreditGRPOTrainer"
    for left, right in zip(attached.model.parameters(), made.model.parameters(), strict=True):
        assert torch.equal(left, right)


# ---------------------------------------------------------------------------------------------- what is logged


def test_the_completions_table_shows_the_credit_that_trained(tmp_path: Path) -> None:
    seen: list[CreditStep] = []
    trainer = make_trainer(
        tmp_path, log_completions=True, per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=3
    )
    attach(trainer, PASS(), signal=HighDigits(), format=["has_line_end"], on_credit=lambda step: seen.append(step))
    trainer.train()
    tables = sorted((tmp_path / "completions").glob("*.parquet"))
    assert len(tables) == len(seen) == 3
    for path, step in zip(tables, seen, strict=True):
        table = pd.read_parquet(path)
        means = []
        for row, mask in zip(step.credit.advantages.tolist(), step.batch.response_mask.tolist(), strict=True):
            means.append(math.fsum(row) / sum(mask))
        assert table["advantage"].tolist() == pytest.approx(means, abs=1e-6)
        assert table["completion"].tolist() == list(step.rollouts.completions)
    assert len(trainer._logs["advantages"]) == len(trainer._logs["completion"]) == 8


def test_which_rollouts_are_right_is_the_callers_word(tmp_path: Path) -> None:
    seen: list[CreditStep] = []
    long = lambda rollouts: [len(text) > 4 for text in rollouts.completions]  # noqa: E731
    for correct in (None, long):
        trainer = make_trainer(tmp_path, max_steps=1, extra={"rollout_func": scripted()})
        attach(trainer, GRPO(), correct=correct, on_credit=lambda step: seen.append(step))
        trainer.train()
    default, asked = (step.batch for step in seen)
    assert default.correct is None
    assert asked.correct is not None
    assert asked.correct.tolist() == long(seen[1].rollouts)
    assert {*asked.correct.tolist()} == {True, False}
    assert torch.equal(asked.rewards, default.rewards)


def test_an_observers_numbers_are_logged_with_trls(tmp_path: Path) -> None:
    seen: list[tuple[int, str]] = []

    def observe(step: CreditStep) -> dict[str, float]:
        seen.append((step.step, step.mode))
        return {"mine/rows": float(len(step.batch))}

    trainer = attach(make_trainer(tmp_path, logging_steps=2), GRPO(), on_credit=observe)
    trainer.train()
    assert seen == [(0, "train"), (1, "train")]
    logged = trainer.state.log_history[0]
    assert logged["mine/rows"] == 8.0
    assert logged["credit/rollouts"] == 8.0
    assert logged["credit/seconds"] > 0.0
    assert logged["credit/outcome/share"] == 1.0


@pytest.mark.parametrize(("every", "logged"), [(0, []), (1, [0, 1, 2]), (2, [0, 2])])
def test_the_kl_is_logged_as_often_as_asked(every: int, logged: list[int], tmp_path: Path) -> None:
    model = make_model()
    ledger = Ledger(model)
    trainer = make_trainer(
        tmp_path, model=model, reward_funcs=ledger.watch(share_of_even), max_steps=3, learning_rate=0.1
    )
    attach(trainer, GRPO(), kl_every=every)
    trainer.train()
    history = [row for row in trainer.state.log_history if "loss" in row]
    assert [i for i, row in enumerate(history) if row.get("credit/kl_to_reference") is not None] == logged
    current, initial = make_model(), make_model()
    for i in logged:
        generation = ledger.generations[i]
        current.load_state_dict(generation.weights)
        each = []
        for prompt, ids in zip(generation.prompts, generation.ids, strict=True):
            now, then = (plain_logprobs(m, prompt, ids) for m in (current, initial))
            each += [math.exp(r - p) - (r - p) - 1 for p, r in zip(now, then, strict=True)]
        assert history[i]["credit/kl_to_reference"] == pytest.approx(sum(each) / len(each), rel=1e-3, abs=1e-7)


# ---------------------------------------------------------------------------------------------- evaluation


def test_evaluation_has_its_own_groups_and_metrics(tmp_path: Path) -> None:
    ledger = Ledger()
    seen: list[CreditStep] = []
    trainer = make_trainer(
        tmp_path, trainer=Witness, reward_funcs=ledger.watch(share_of_even, has_line_end), num_generations_eval=2,
        per_device_eval_batch_size=6, max_steps=1,
    )  # fmt: skip
    attach(trainer, PASS(k=0.7), signal=HighDigits(), format=["has_line_end"], on_credit=lambda step: seen.append(step))
    trainer.seen.clear()
    trainer.evaluate(trainer.train_dataset.select(range(6)))
    loops = lambda generation: references.pass_(plain_batch(generation, 2, signal=True, **NAMES), k=0.7)  # noqa: E731
    assert check_seen(trainer.seen, ledger.generations, loops) == 12
    assert [step.mode for step in seen] == ["eval", "eval"]
    assert trainer.state.log_history[-1]["eval_credit/rollouts"] == 6.0  # the mean of two batches
    assert not trainer._metrics["train"]
    trainer.train()  # and then with the groups of training
    assert check_seen(trainer.seen[2:], ledger.generations[2:], expected_pass) == 8


def test_training_may_evaluate_on_the_way(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, eval_strategy="steps", eval_steps=1, num_generations_eval=1, per_device_eval_batch_size=2,
        importance_sampling_level="sequence", loss_type="grpo", extra={"eval_dataset": make_data(2)},
    )  # fmt: skip
    attach(trainer, SPRO(), ref_model=make_model(seed=1), gspo_token=True)
    trainer.train()
    modes = ["eval" if "eval_loss" in row else "train" for row in trainer.state.log_history if "train_loss" not in row]
    assert modes == ["train", "eval"] * 2
    assert all(row["eval_credit/rollouts"] == 2.0 for row in trainer.state.log_history if "eval_loss" in row)


# ---------------------------------------------------------------------------------------------- other inputs


def test_conversations_train_too(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    seen: list[CreditStep] = []
    flat: list[str] = []

    def outcome(completions: list[list[dict[str, str]]], **_: Any) -> list[float]:
        flat[:] = [messages[-1]["content"] for messages in completions]
        return share_of_even(flat)

    class Conversational(Witness):
        def __init__(self, **arguments: Any) -> None:
            data = arguments["train_dataset"].map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})
            super().__init__(**{**arguments, "train_dataset": data, "processing_class": tokenizer})

    trainer = make_trainer(tmp_path, trainer=Conversational, reward_funcs=[outcome], max_steps=1)
    attach(trainer, PASS(), signal=HighDigits(), on_credit=lambda step: seen.append(step))
    trainer.train()
    assert list(seen[0].rollouts.completions) == flat
    assert all(prompt in {f"{i}{(7 * i) % 10}\n" for i in range(10)} for prompt in seen[0].rollouts.prompts)
    assert seen[0].credit.advantages.any()
