"""verl's v1 trainers with credit: the config is checked before a model is loaded, and the credit is logged."""

import warnings
from typing import Any

from stepcredit.adapters.verl.arriving import bringing
from stepcredit.adapters.verl.bringing import fetched
from stepcredit.adapters.verl.plugin import PREFIX
from stepcredit.adapters.verl.requirements import columns, refuse_missing
from stepcredit.adapters.verl.settings import is_ours, read_settings

_WITHIN = {"process_rewards", "ref_logprobs", "teacher_logprobs"}  # what lets tokens of one response differ


def credit_trainer(name: str, base: type) -> type:
    """A trainer that refuses early and logs metrics of the credit, and is its base in everything else.

    Args:
        name: What it is registered as.
        base: One of verl's v1 trainers.
    """

    class CreditTrainer(base):  # type: ignore[misc]
        """Checks before any model is loaded that the config brings what the scheme reads."""

        def __init__(self, config: Any) -> None:
            # verl compares the mode with its own names and reads the mode's section of the config by it.
            config.trainer.v1.trainer_mode = name.removeprefix(f"{PREFIX}_")
            self._credits = is_ours(str(config.algorithm.adv_estimator))
            if self._credits:
                settings = read_settings(config.algorithm)
                config.trainer.v1.trainer_mode, mode = name, config.trainer.v1.trainer_mode
                refuse_missing(columns(config, settings), type(settings.estimator).__name__)
                config.trainer.v1.trainer_mode = mode
                _warn(config, settings.estimator.requires | settings.reads)
            super().__init__(config)

        def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
            if not self._credits:
                return super()._compute_advantage(batch, metrics)
            settings = read_settings(self.config.algorithm)
            with bringing(fetched(batch.keys, batch.partition_id, settings, step=self.global_steps)) as brought:
                result = super()._compute_advantage(batch, metrics)
            metrics.update(brought.metrics)
            return result

    CreditTrainer.__name__ = CreditTrainer.__qualname__ = f"Credit{base.__name__}"
    return CreditTrainer


def _warn(config: Any, reads: frozenset[str]) -> None:
    """Of settings that are valid and probably not meant."""
    loss = config.distillation.distillation_loss
    if "teacher_logprobs" in reads and (not loss.use_task_rewards or loss.distillation_loss_coef != 0):
        warnings.warn(
            "verl's own distillation loss is added to the policy loss, beside the credit made from the teacher. Set "
            "distillation.distillation_loss.distillation_loss_coef=0 for the credit alone.",
            stacklevel=3,
        )
    if reads & _WITHIN and config.actor_rollout_ref.actor.policy_loss.loss_mode == "geo_mean":
        warnings.warn(
            "policy_loss.loss_mode=geo_mean averages the credit of a response's tokens before it is used: the process "
            "signal moves no credit within a response.",
            stacklevel=3,
        )
