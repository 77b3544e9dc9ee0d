"""Which columns a scheme reads, and the lines of a verl config that bring each."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stepcredit.adapters.verl.plugin import PREFIX
from stepcredit.adapters.verl.settings import Settings
from stepcredit.errors import InputError

LINES = {
    "rewards": "a reward function: reward.custom_reward_function.path",
    "old_logprobs": "nothing: verl always has them",
    "ref_logprobs": "actor_rollout_ref.actor.use_kl_loss=True actor_rollout_ref.actor.kl_loss_coef=0",
    "teacher_logprobs": (
        "distillation.enabled=True distillation.teacher_models.teacher_model.model_path=TEACHER "
        "distillation.distillation_loss.loss_mode=k3 distillation.distillation_loss.distillation_loss_coef=0"
    ),
    "process_rewards": (
        f"reward.reward_manager.name={PREFIX}, and a reward function that returns `process` spans or a signal under "
        "algorithm.stepcredit.signal"
    ),
    "format_rewards": f"reward.reward_manager.name={PREFIX}, and a reward function that returns `format`",
}
LINES["base_logprobs"] = LINES["ref_logprobs"]
LINES["format_ok"] = LINES["format_rewards"]


@dataclass(frozen=True)
class Column:
    """One column that a scheme reads.

    Attributes:
        name: Of the batch's field.
        arrives: Whether the config, as far as it can be told from it, brings it.
        lines: What brings it.
    """

    name: str
    arrives: bool
    lines: str


def needed(settings: Settings) -> list[str]:
    """The names of the columns that a scheme reads, what its signal makes of others left out."""
    return sorted(settings.reads)


def lines_for(name: str) -> str:
    """What brings a column."""
    return LINES.get(name, "nothing in verl")


def columns(config: Mapping[str, Any], settings: Settings) -> list[Column]:
    """Every column that the scheme reads, and whether a whole verl config brings it."""
    at: Any = config
    managed = at["reward"]["reward_manager"]["name"] == PREFIX
    function = at["reward"]["custom_reward_function"]["path"] is not None
    reference = bool(at["actor_rollout_ref"]["actor"]["use_kl_loss"])
    teacher = bool(at["distillation"]["enabled"])
    process = managed and (function or settings.text_signal is not None)
    arrives = {
        "rewards": True, "old_logprobs": True, "ref_logprobs": reference, "base_logprobs": reference,
        "teacher_logprobs": teacher, "process_rewards": process,
        "format_rewards": managed and function, "format_ok": managed and function,
    }  # fmt: skip
    return [Column(name, arrives.get(name, False), lines_for(name)) for name in needed(settings)]


def refuse_missing(found: list[Column], scheme: str) -> None:
    """Refuses a config that does not bring a column.

    Raises:
        InputError: Names the first such column and the lines that bring it.
    """
    for column in found:
        if not column.arrives:
            raise InputError(
                f"`{column.name}` must arrive at {scheme}; this config does not bring them. Set {column.lines}."
            )
