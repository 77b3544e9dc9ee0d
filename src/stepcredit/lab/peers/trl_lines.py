"""The lines of the installed TRL's trainer that make advantages of rewards, cut out of the method around them."""

import ast
import inspect
import textwrap
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from stepcredit.batch import RolloutBatch
from stepcredit.errors import MissingExtraError
from stepcredit.lab.peers.unsupported import UnsupportedError

_METHOD, _FIRST, _LAST = "_generate_and_score_completions", "rewards_per_func", "advantages"
_SETTINGS = {"multi_objective_aggregation": "sum_then_normalize", "scale_rewards": "group"}  # GRPOConfig's own


def group_advantages(batch: RolloutBatch, settings: Mapping[str, Any]) -> Callable[[], Tensor]:
    """TRL's advantages of the outcome alone, as a call to be timed.

    TRL gives one number a rollout, which its loss spreads over time as it multiplies; here that product with the mask
    is made, so that what comes out is what other schemes give.

    Args:
        batch: The rollouts; groups stand in a row and have one size.
        settings: Of `GRPOConfig`, where they are not its defaults.

    Returns:
        A function that gives [batch, time].

    Raises:
        MissingExtraError: TRL is not installed.
        UnsupportedError: The batch's groups are not of one size, or some row counts in nothing; or the installed TRL's
            method has no such lines.
    """
    _, sizes = torch.unique_consecutive(batch.group_ids, return_counts=True)
    if bool((sizes != sizes[0]).any()) or batch.cu_seqlens is not None or batch.rewards is None:
        raise UnsupportedError("TRL's groups stand in a row of a padded batch and have one size")
    if batch.row_mask is not None and not bool(batch.row_mask.all()):
        raise UnsupportedError("TRL has no mask of rows")
    lines, rewards, mask = _lines(), batch.rewards[:, None], batch.response_mask
    trainer = SimpleNamespace(
        **{**_SETTINGS, **settings},
        reward_weights=torch.ones(1, dtype=rewards.dtype, device=rewards.device),
        reward_funcs=[None],
        accelerator=SimpleNamespace(process_index=0),
    )
    names = {"num_generations": int(sizes[0]), "device": rewards.device, "prompts": range(len(batch))}
    return lambda: lines(trainer, rewards, **names)[:, None] * mask


def _lines() -> Callable[..., Tensor]:
    """The statements after the one that calls the reward functions, up to the one that takes this process's share."""
    try:
        from trl.trainer import grpo_trainer
    except ImportError as error:
        raise MissingExtraError("trl", "trl", f"run its lines ({error})") from None
    method = getattr(grpo_trainer.GRPOTrainer, _METHOD)
    (whole,) = ast.parse(textwrap.dedent(inspect.getsource(method))).body
    assert isinstance(whole, ast.FunctionDef)
    at = [i for i, line in enumerate(whole.body) if _assigns(line, _FIRST, "_calculate_rewards")]
    to = [i for i, line in enumerate(whole.body) if _assigns(line, _LAST, "process_slice")]
    if len(at) != 1 or len(to) != 1:
        raise UnsupportedError(f"the installed TRL's {_METHOD} makes advantages in another way")
    kept = [line for line in whole.body[at[0] + 1 : to[0] + 1] if not _assigns(line, "num_generations", "")]
    given = ["self", _FIRST, "num_generations", "device", "prompts"]
    made = ast.parse(f"def advantages({', '.join(given)}):\n    return {_LAST}")
    function = made.body[0]
    assert isinstance(function, ast.FunctionDef)
    function.body = [*kept, *function.body]
    scope = dict(vars(grpo_trainer))
    exec(compile(ast.fix_missing_locations(made), inspect.getfile(method), "exec"), scope)  # noqa: S102 - TRL's own
    lines: Callable[..., Tensor] = scope["advantages"]
    return lines


def _assigns(line: ast.stmt, name: str, reads: str) -> bool:
    """Whether a statement assigns to a name, and its right side mentions another."""
    if not isinstance(line, ast.Assign) or not any(isinstance(x, ast.Name) and x.id == name for x in line.targets):
        return False
    return reads in ast.unparse(line.value)
