"""verl's v1 trainers with the columns that its own never bring to an estimator."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stepcredit.adapters.verl.arriving import Brought, bringing, single
from stepcredit.adapters.verl.plugin import PREFIX
from stepcredit.adapters.verl.requirements import columns, refuse_missing
from stepcredit.adapters.verl.rewards import KEY
from stepcredit.adapters.verl.settings import is_ours, read_settings

_WITHIN = {"process_rewards", "ref_logprobs", "teacher_logprobs"}  # what lets tokens of one response differ


def credit_trainer(name: str, base: type) -> type:
    """A trainer that fetches what its base leaves behind, and is its base in everything else.

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
            with bringing(fetched(batch, self.global_steps, teacher=self.use_teacher_policy)) as brought:
                result = super()._compute_advantage(batch, metrics)
            metrics.update(brought.metrics)
            return result

    CreditTrainer.__name__ = CreditTrainer.__qualname__ = f"Credit{base.__name__}"
    return CreditTrainer


def fetched(batch: Any, step: int, *, teacher: bool) -> Brought:
    """What the transfer queue holds beside the columns that verl's trainer fetches itself.

    Args:
        batch: verl's ``KVBatchMeta``: the keys ``{prompt}_{session}_{row}`` of the rows, in their order.
        step: The trainer's step.
        teacher: Whether a teacher has scored the rows.
    """
    import transfer_queue

    names = ["extra_fields", *(["teacher_logprobs", "prompts", "response_mask"] if teacher else [])]
    data = transfer_queue.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=names)
    sessions = []
    for key in batch.keys:
        session, _, row = key.rpartition("_")
        sessions.append((session, int(row)))
    last = dict(sorted(sessions))
    said = [getattr(entry, "data", entry) for entry in list(data["extra_fields"])]
    packages = [
        package_of(entry, is_last=last[session] == row) for entry, (session, row) in zip(said, sessions, strict=True)
    ]
    logprobs = None
    if teacher:
        rows = zip(*(data[name].unbind() for name in ("teacher_logprobs", "prompts", "response_mask")), strict=True)
        logprobs = aligned([(scores, len(prompt), len(mask)) for scores, prompt, mask in rows])
    return Brought(sessions, packages, logprobs, step)


def package_of(extra_fields: Mapping[str, Any], *, is_last: bool) -> str | None:
    """What is said of one row: by its agent loop, or of a rollout's last row by the reward manager.

    verl copies the reward manager's answer, which is about the last row, to every row of a rollout.
    """
    own = extra_fields.get(KEY)
    if own is None and is_last:
        own = (extra_fields.get("reward_extra_info") or {}).get(KEY)
    return None if own is None else str(own)


def aligned(rows: Sequence[tuple[Tensor, int, int]]) -> Tensor:
    """Teacher log-probabilities on response tokens, padded, from rows of ``(scores, prompt length, response length)``.

    A row's entry t scores token t + 1 of prompt and response together.
    """
    width = max((length for _, _, length in rows), default=0)
    out = torch.zeros(len(rows), width)
    for i, (scores, prompt, length) in enumerate(rows):
        out[i, :length] = single(scores)[prompt - 1 : prompt - 1 + length]
    return out


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
