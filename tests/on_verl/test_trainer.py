"""The registered trainers: their base in everything but the columns, and early to refuse."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("verl.trainer", reason="verl is not installed: nothing can run on it")

from verl.trainer.ppo.v1 import get_trainer_cls

from stepcredit import InputError
from stepcredit.adapters.verl.plugin import MODES, REGISTERED
from stepcredit.adapters.verl.trainer import credit_trainer
from stepcredit.runs.verl.composing import composed

CREDIT = ["reward.reward_manager.name=stepcredit", "reward.custom_reward_function.path=rewards.py"]


class Stock:
    """Stands for a trainer of verl's, which reads its mode as it is made."""

    def __init__(self, config: Any) -> None:
        self.mode = str(config.trainer.v1.trainer_mode)
        self.section = config.trainer.v1.get(self.mode, None)

    def _compute_advantage(self, batch: Any, _metrics: dict[str, Any]) -> Any:
        return batch


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_has_a_sibling_that_verl_takes_for_the_mode_itself(mode: str) -> None:
    """verl compares the mode with its own names: under another it would sample as an asynchronous trainer."""
    made = get_trainer_cls(f"stepcredit_{mode}")
    assert issubclass(made, get_trainer_cls(mode))
    config = composed(
        [f"trainer.v1.trainer_mode=stepcredit_{mode}", "algorithm.adv_estimator=stepcredit_pass", *CREDIT]
    )
    trainer: Any = credit_trainer(f"stepcredit_{mode}", Stock)(config)
    assert trainer.mode == mode
    assert trainer.section is not None
    assert f"stepcredit_{mode}" in REGISTERED["trainers"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["algorithm.adv_estimator=stepcredit_pass"],
            r"`process_rewards` must arrive at PASS.*reward_manager.name=step",
        ),
        (["algorithm.adv_estimator=stepcredit_spro"], r"`ref_logprobs` must arrive at SPRO.*use_kl_loss=True"),
        (
            ["algorithm.adv_estimator=stepcredit_pass", "+algorithm.stepcredit.signal.type=opd"],
            r"`teacher_logprobs` must arrive at PASS.*distillation.enabled=True",
        ),
        (["algorithm.adv_estimator=stepcredit_pass", "+algorithm.stepcredit.kk=1", *CREDIT], "did you mean k?"),
        (["algorithm.adv_estimator=stepcredit", *CREDIT], r"algorithm.stepcredit.type. must name the scheme"),
        (["algorithm.adv_estimator=stepcredit_grpo", "algorithm.use_kl_in_reward=True"], "use_kl_in_reward. must be F"),
        (
            ["algorithm.adv_estimator=stepcredit_pass", "+algorithm.stepcredit.signal.type=implicit_prm"],
            "must be a signal that does not learn",
        ),
    ],
)
def test_what_a_config_lacks_is_said_before_a_model_is_loaded(overrides: list[str], message: str) -> None:
    config = composed(["trainer.v1.trainer_mode=stepcredit_sync", *overrides])
    with pytest.raises(InputError, match=message):
        credit_trainer("stepcredit_sync", Stock)(config)


def test_a_distillation_loss_beside_the_credit_is_warned_of() -> None:
    overrides = [
        "trainer.v1.trainer_mode=stepcredit_sync", "algorithm.adv_estimator=stepcredit_pass",
        "+algorithm.stepcredit.signal.type=opd", "distillation.enabled=True",
    ]  # fmt: skip
    with pytest.warns(UserWarning, match="distillation_loss_coef=0"):
        credit_trainer("stepcredit_sync", Stock)(composed(overrides))


def test_a_loss_that_averages_the_credit_is_warned_of() -> None:
    overrides = ["algorithm.adv_estimator=stepcredit_pass", *CREDIT]
    overrides += ["trainer.v1.trainer_mode=stepcredit_sync", "actor_rollout_ref.actor.policy_loss.loss_mode=geo_mean"]
    with pytest.warns(UserWarning, match="geo_mean averages the credit"):
        credit_trainer("stepcredit_sync", Stock)(composed(overrides))


def test_another_estimator_has_the_stock_trainer() -> None:
    config = composed(["trainer.v1.trainer_mode=stepcredit_sync", "algorithm.adv_estimator=grpo"])
    trainer: Any = credit_trainer("stepcredit_sync", Stock)(config)
    assert trainer._compute_advantage("the batch", {}) == "the batch"


def test_an_override_that_verl_does_not_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`verl` must hold settings of verl's config"):
        composed(["algorithm.adv_estimatr=stepcredit_pass"])
