"""The function behind every registered estimator's name."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stepcredit.adapters.verl.arriving import Arrived, arrived
from stepcredit.adapters.verl.columns import rollout_batch
from stepcredit.adapters.verl.requirements import lines_for, needed
from stepcredit.adapters.verl.settings import Settings, read_settings
from stepcredit.batch import RolloutBatch
from stepcredit.diagnostics import credit_metrics
from stepcredit.errors import InputError
from stepcredit.files import replacing
from stepcredit.signals import TensorSignal


def advantages(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Any = None,
    config: Mapping[str, Any] | None = None,
    batch: Mapping[str, Tensor] | None = None,
    non_tensor_batch: Mapping[str, Any] | None = None,
    **_others: Any,
) -> tuple[Tensor, Tensor]:
    """Credit as verl calls for it, once a training step, on the controller.

    Args:
        token_level_rewards: The outcome, on the row's last token. float [rows, time].
        response_mask: 1 on tokens that the policy sampled. int [rows, time].
        index: Each row's prompt; rows of one prompt are a group.
        config: The config's ``algorithm`` section.
        batch: All tensor columns, from a verl that passes them; else they are taken as the dispatcher has them.
        non_tensor_batch: All other columns, likewise.

    Returns:
        The advantages, float32 [rows, time], exactly 0 off-mask; twice, as verl also asks for returns.

    Raises:
        InputError: A bad option, or a column that has not arrived, with the config line that brings it.
    """
    if config is None or index is None:
        raise InputError("`config` and `index` must be given by the trainer; got none.")
    settings = read_settings(config)
    columns = arrived(batch, non_tensor_batch)
    rollouts, joined = rollout_batch(columns, settings, response_mask, token_level_rewards, index)
    _refuse_missing(rollouts, settings)
    if isinstance(settings.signal, TensorSignal):
        rollouts = settings.signal(rollouts)
    if settings.guard is not None:
        rollouts = settings.guard(rollouts)
    credit = settings.estimator(rollouts)
    columns.brought.metrics |= {
        f"credit/{name}": value for name, value in credit_metrics(rollouts, credit).items()
    }  # fmt: skip
    out = joined.unpack(credit.advantages).to(response_mask.device, token_level_rewards.dtype)
    if settings.record is not None:
        _record(Path(settings.record), settings, columns, index, response_mask, out)
    return out, out


def _refuse_missing(batch: RolloutBatch, settings: Settings) -> None:
    for name in needed(settings):
        if getattr(batch, name, None) is None:
            raise InputError(
                f"`{name}` must arrive at {type(settings.estimator).__name__}; none did. Set {lines_for(name)}."
            )


def _record(
    folder: Path, settings: Settings, columns: Arrived, index: Any, response_mask: Tensor, advantages: Tensor
) -> None:
    """Saves one step as verl had it: plain tensors and lists, for `torch.load`."""
    folder.mkdir(parents=True, exist_ok=True)
    brought = columns.brought
    step = len(list(folder.glob("*.pt"))) + 1 if brought.step is None else brought.step
    path = folder / f"{step:06d}.pt"
    if path.exists():  # an asynchronous trainer computes advantages several times a step
        path = folder / f"{step:06d}-{len(list(folder.glob(f'{step:06d}*.pt'))) + 1}.pt"
    content = {
        "estimator": {"type": settings.estimator.type, **asdict(settings.estimator)},
        "columns": {name: column.cpu() for name, column in columns.tensors.items()},
        "response_mask": response_mask.cpu(),
        "responses": brought.responses,
        "uid": [str(uid) for uid in index],
        "sessions": None if brought.sessions is None else [list(session) for session in brought.sessions],
        "packages": None if brought.packages is None else list(brought.packages),
        "teacher_logprobs": brought.teacher_logprobs,
        "advantages": advantages.cpu(),
    }
    with replacing(path) as file:
        torch.save(content, file)
