"""A run's settings in verl's words: what is said, what has no counterpart, and how a value is written."""

from pathlib import Path
from typing import Any

import pytest

from stepcredit import InputError
from stepcredit.config.run import load_config
from stepcredit.config.tables import recipes
from stepcredit.runs.verl.overrides import arguments, prompts_a_step, verl_overrides
from stepcredit.runs.verl.run import on_cpu

ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"


def overrides(recipe: str, *, reads: frozenset[str] = frozenset(), **settings: Any) -> dict[str, Any]:
    config = load_config(recipe, {"run.engine": "verl", **{k.replace("__", "."): v for k, v in settings.items()}})
    return verl_overrides(config, Path("/runs/one"), reads=reads)


def test_the_demos_settings() -> None:
    found = overrides("demo-pass")
    assert found["algorithm.adv_estimator"] == "stepcredit_pass"
    assert found["algorithm.stepcredit.k"] == 0.7
    assert not any(name.startswith("algorithm.stepcredit.signal") for name in found)  # the reward function's own steps
    assert found["data.train_batch_size"] == found[f"{ACTOR}.ppo_mini_batch_size"] == 32  # 64 x 4 rollouts in eights
    assert found[f"{ROLLOUT}.n"] == 8
    assert found[f"{ACTOR}.optim.lr"] == 3e-4
    assert found[f"{ACTOR}.optim.betas"] == [0.9, 0.95]
    assert (found[f"{ACTOR}.clip_ratio_low"], found[f"{ACTOR}.clip_ratio_high"]) == (0.2, 0.28)
    assert found[f"{ACTOR}.loss_agg_mode"] == "token-mean"
    assert found[f"{ACTOR}.use_kl_loss"] is False
    assert found["data.max_response_length"] == 100
    assert found["trainer.total_training_steps"] == 36
    assert found["trainer.v1.trainer_mode"] == "stepcredit_sync"
    assert found["reward.reward_manager.name"] == "stepcredit"


def test_a_scheme_that_reads_the_reference_brings_it_without_a_penalty() -> None:
    found = overrides("demo-spro", reads=frozenset({"ref_logprobs"}))
    assert found[f"{ACTOR}.use_kl_loss"] is True
    assert found[f"{ACTOR}.kl_loss_coef"] == 0.0
    assert overrides("demo-spro", trainer__beta=0.01)[f"{ACTOR}.kl_loss_coef"] == 0.01


def test_dr_grpo_divides_by_the_limit_as_on_trl() -> None:
    found = overrides("demo-grpo", trainer__loss_type="dr_grpo")
    assert found[f"{ACTOR}.loss_agg_mode"] == "seq-mean-token-sum-norm"
    assert found[f"{ACTOR}.loss_scale_factor"] == 100


@pytest.mark.parametrize(
    ("schedule", "warmup", "want"),
    [("constant", 20, 0), ("constant_with_warmup", 20, 20), ("constant_with_warmup", 0.1, 4), ("cosine", 0, 0)],
)
def test_warm_up_is_as_on_trl(schedule: str, warmup: float, want: int) -> None:
    found = overrides("demo-grpo", trainer__lr_scheduler_type=schedule, trainer__warmup_steps=warmup)
    assert found[f"{ACTOR}.optim.lr_warmup_steps"] == want


def test_seeds_follow_the_runs() -> None:
    found = overrides("demo-grpo", run__seed=7)
    assert {name: x for name, x in found.items() if name.endswith("seed")} == {
        "data.seed": 7, f"{ROLLOUT}.seed": 7, f"{ACTOR}.data_loader_seed": 7, f"{ACTOR}.fsdp_config.seed": 7,
    }  # fmt: skip


def test_a_teacher_brings_log_probabilities_and_no_loss_of_its_own() -> None:
    found = overrides("math-opd-pass", reads=frozenset({"teacher_logprobs"}))
    assert found["algorithm.stepcredit.signal.type"] == "opd"
    assert found["distillation.enabled"] is True
    assert found["distillation.distillation_loss.distillation_loss_coef"] == 0.0
    assert found["distillation.teacher_models.teacher_model.model_path"].endswith("tiny_arithmetic_teacher")


def test_a_custom_scheme_is_named_where_verl_does_not_know_it() -> None:
    found = overrides("demo-grpo", estimator__type="stepcredit.estimators.grpo:GRPO")
    assert found["algorithm.adv_estimator"] == "stepcredit"
    assert found["algorithm.stepcredit.type"] == "stepcredit.estimators.grpo:GRPO"


def test_batches_are_counted_a_device_as_on_trl() -> None:
    config = load_config(
        "demo-grpo", {"run.engine": "verl", "verl.trainer.nnodes": 2, "verl.trainer.n_gpus_per_node": 3}
    )
    assert prompts_a_step(config) == 6 * 32
    with pytest.raises(InputError, match=r"`trainer.num_generations` must divide the 256 rollouts of a step; got 7"):
        overrides("demo-grpo", trainer__num_generations=7)


def test_verls_own_table_wins() -> None:
    found = overrides("demo-grpo", verl__data__train_batch_size=5, verl__trainer__balance_batch=False)
    assert found["data.train_batch_size"] == 5
    config = load_config("demo-grpo", {"run.engine": "verl", "verl.data.train_batch_size": 5})
    assert prompts_a_step(config) == 5
    assert found["trainer.balance_batch"] is False


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trainer__loss_type": "cispo"}, r"`trainer.loss_type` must be one of dapo, grpo, dr_grpo on verl"),
        ({"trainer__lr_scheduler_type": "linear"}, r"`trainer.lr_scheduler_type` must be one of constant"),
        ({"trainer__mask_truncated_completions": True}, r"must have a counterpart on verl.*under \[verl\]"),
        ({"trainer__loss_type": "bnpo"}, r"`trainer.loss_type` must be one of dapo, grpo, dr_grpo on verl"),
        ({"trainer__num_iterations": 2}, r"`trainer.num_iterations` must have a counterpart on verl"),
        ({"trainer__num_generations": "8"}, r"`trainer.num_generations` must be int; got '8'"),
        ({"policy__lora__r": 4}, r"`policy.lora` must not be given on verl"),
        ({"policy__dtype": "bfloat16"}, r"`policy.dtype` must not be given on verl"),
        ({"credit__gspo_token": True}, r"`credit.gspo_token` must not be given on verl"),
        ({"reference__name": "tiny-arithmetic-teacher"}, r"`reference.name` must be the policy's on verl"),
    ],
)
def test_what_has_no_counterpart_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        overrides("demo-grpo", **settings)


def test_the_table_comes_with_its_engine() -> None:
    with pytest.raises(InputError, match=r"`verl` must come with run.engine = 'verl'; got 'trl'"):
        load_config("demo-grpo", {"verl.trainer.nnodes": 2})


@pytest.mark.parametrize("recipe", recipes())
def test_every_recipe_can_be_said_in_verls_words(recipe: str) -> None:
    assert overrides(recipe)["trainer.total_training_steps"] > 0


def test_a_cluster_is_not_the_machine_that_starts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert not on_cpu(load_config("pass-math-verl"))
    assert on_cpu(load_config("demo-pass", {"run.engine": "verl"}))
    assert not on_cpu(load_config("demo-pass", {"run.engine": "verl", "verl.trainer.device": "cuda"}))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert not on_cpu(load_config("demo-pass", {"run.engine": "verl"}))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "True"), (None, "null"), (3e-4, "0.0003"), (5, "5"), ("fsdp2", "fsdp2"), ("/a/b-c.d", "/a/b-c.d"),
        ("", "''"), ("true", "'true'"), ("1e3", "'1e3'"), ("it's \\ {so}\\", "'it\\'s \\ {so}\\\\'"),
        (["a", 1], "[a,1]"), ("/runs/r\u00e9sum\u00e9", "'/runs/r\u00e9sum\u00e9'"), ("a${b}", "'a\\${b}'"),
    ],
)  # fmt: skip
def test_values_are_written_as_verls_command_line_reads_them(value: Any, text: str) -> None:
    assert arguments({"x.y": value}) == [f"++x.y={text}"]
