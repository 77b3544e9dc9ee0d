"""What would silently destroy token credit is refused, and a probe proves that the loss follows it."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from stepcredit.errors import InputError
from stepcredit.signals import LogProbSource
from stepcredit.signals.vocabulary import vocabulary_difference

_SEQUENCE_LEVEL_IS_DETACHED = ("cispo", "vespo")
_CURE = "Use TRL's own loss, or one that weighs each token's log-probability by that token's advantage."


def refuse(trainer: Any, *, gspo_token: bool, trl_version: str) -> None:
    """Refuses trainers and settings under which token credit would be lost or never read.

    Raises:
        InputError: Names the setting, and what to do.
    """
    names = [base.__name__ for base in type(trainer).__mro__]
    if "RLOOTrainer" in names or "GMPOTrainer" in names or "GRPOTrainer" not in names:
        raise InputError(
            f"`trainer` must be a GRPOTrainer whose loss takes advantages token by token; got {names[0]}"
            f"{', whose loss has one ratio a sequence' if 'GRPOTrainer' in names or 'RLOOTrainer' in names else ''}."
        )
    liger = getattr(trainer, "use_liger_kernel", False) or getattr(trainer, "use_liger_loss", False)
    asked = getattr(trainer.args, "use_liger_kernel", False) or getattr(trainer.args, "use_liger_loss", False)
    if (liger or asked) and tuple(int(part) for part in trl_version.split(".")[:2]) < (1, 14):
        raise InputError(
            f"`use_liger_kernel` must be False with TRL {trl_version}: its fused loss takes one advantage a sequence. "
            "From TRL 1.14 on it touches layers only."
        )
    level, loss = trainer.importance_sampling_level, trainer.loss_type
    if level == "sequence" and loss not in _SEQUENCE_LEVEL_IS_DETACHED and not gspo_token:
        raise InputError(
            f"`importance_sampling_level` must be 'token' with loss_type {loss!r}; got 'sequence', under which the "
            "gradient spreads each token's credit over its whole sequence. Pass `gspo_token=True` for GSPO's "
            "token-level form."
        )
    if level != "sequence" and gspo_token:
        raise InputError(
            f"`gspo_token` must be False with importance_sampling_level {level!r}; got True. Set the level to "
            "'sequence' for GSPO's token-level form."
        )


def check_tokens(trainer: Any, role: str, model: Any, tokenizer: Any) -> None:
    """Refuses a model beside the policy that would read other tokens, or read them at another temperature.

    Args:
        trainer: The trainer.
        role: "teacher" or "base".
        model: A causal LM, or a `LogProbSource`.
        tokenizer: The model's; None: read from where the model came from.

    Raises:
        InputError: The vocabularies differ, the model's cannot be found, or a source has another temperature.
    """
    if not isinstance(model, torch.nn.Module):
        if not isinstance(model, LogProbSource):
            raise InputError(f"`{role}_model` must be a model or have `logprobs`; got {type(model).__name__}.")
        at = getattr(model, "temperature", 1.0)
        if at != trainer.temperature:
            raise InputError(f"`{role}_model` must score at the trainer's temperature {trainer.temperature}; got {at}.")
        return
    if tokenizer is None:
        source = getattr(model, "name_or_path", "")
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True) if source else None
        except (OSError, ValueError):
            tokenizer = None
    if tokenizer is None:
        raise InputError(
            f"`{role}_tokenizer` must be given: no tokenizer is at hand where the {role} came from; got None."
        )
    difference = vocabulary_difference(trainer.processing_class, tokenizer)
    if difference is not None:
        raise InputError(
            f"`{role}_model` must read the policy's tokens; got {difference}. Pass a `CausalLM` with both tokenizers, "
            "which compares what they share."
        )


def probe(trainer: Any) -> None:
    """Proves that the trainer's loss follows token-level advantages.

    A leaf tensor stands in for the log-probabilities of a made-up batch, the trainer's own `compute_loss` runs on it,
    and the gradient at the leaf must be minus a positive multiple of the advantages in every rollout, and 0 where they
    are 0. No model runs: parameters, gradients, metrics and random state stay as they are.

    Raises:
        InputError: The loss does not take token-level advantages, or does not follow them.
    """
    device = trainer.accelerator.device
    n_rows, n_tokens = 3, 5
    mask = torch.ones(n_rows, n_tokens, dtype=torch.long, device=device)
    mask[1, 4] = mask[2, 3:] = 0
    advantages = torch.tensor(
        [[1.0, -2.0, 0.0, 0.5, 3.0], [-1.0, 0.25, 2.0, 0.0, 0.0], [0.0, 1.5, -0.5, 0.0, 0.0]], device=device
    )
    leaf = torch.full((n_rows, n_tokens), -1.0, device=device, requires_grad=True)
    ones = torch.ones(n_rows, 1, dtype=torch.long, device=device)
    inputs = {
        "prompt_ids": ones, "prompt_mask": ones, "completion_ids": torch.ones_like(mask), "completion_mask": mask,
        "advantages": advantages, "num_items_in_batch": mask.sum(), "old_per_token_logps": leaf.detach().clone(),
        "ref_per_token_logps": leaf.detach().clone(), "sampling_per_token_logps": leaf.detach().clone(),
        "importance_sampling_ratio": torch.ones(n_rows, 1, device=device),
    }  # fmt: skip
    gradient = _gradient(trainer, leaf, inputs)
    for row in range(n_rows):
        a, g = advantages[row] * mask[row], gradient[row]
        scale = -(a * g).sum() / (a * a).sum()
        if not bool(scale > 0) or not torch.allclose(g, -scale * a, rtol=1e-3, atol=1e-6 * float(scale)):
            raise InputError(
                f"`trainer` must have a loss that follows token-level advantages; for advantages {a.tolist()} "
                f"{type(trainer).__name__} with loss_type {trainer.loss_type!r} gave the gradient {g.tolist()}. {_CURE}"
            )


def _gradient(trainer: Any, leaf: Tensor, inputs: dict[str, Any]) -> Tensor:
    """The loss's gradient at the leaf, under any version's arity of the log-prob method."""
    error: Exception | None = None
    for extra in (2, 1):  # log-probs, entropies and (since 1.8) the routers' auxiliary loss
        returned = (leaf, torch.ones_like(leaf), torch.zeros((), device=leaf.device))[: 1 + extra]
        stand_in = partial(_stand_in, trainer, returned)
        try:
            with _untouched(trainer), _instead(trainer, "_get_per_token_logps_and_entropies", stand_in):
                loss = trainer.compute_loss(trainer.model, dict(inputs))
                (gradient,) = torch.autograd.grad(loss, leaf)
            return gradient
        except (RuntimeError, ValueError, TypeError, KeyError, IndexError) as caught:
            error = error or caught
    raise InputError(
        f"`trainer` must have a loss that takes advantages of shape [batch, time]; {type(trainer).__name__} with "
        f"loss_type {trainer.loss_type!r} failed on them: {error}. {_CURE}"
    ) from error


def _stand_in(trainer: Any, returned: tuple[Tensor, ...], *_args: Any, **_kwargs: Any) -> tuple[Tensor, ...]:
    """What the log-prob method would return; the override of that method still sees it."""
    trainer._see_logprobs(returned[0].detach())
    return returned


@contextmanager
def _instead(trainer: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute of the instance for a while."""
    had, before = name in vars(trainer), vars(trainer).get(name)
    setattr(trainer, name, value)
    try:
        yield
    finally:
        if had:
            setattr(trainer, name, before)
        else:
            delattr(trainer, name)


@contextmanager
def _untouched(trainer: Any) -> Iterator[None]:
    """Metrics and the entropy controller as if nothing had happened; what only the training loop sets, set."""
    window = {
        name: getattr(trainer, name)
        for name in ("_entropy_window_stats", "_last_world_entropy", "entropy_coef")
        if hasattr(trainer, name)
    }
    accumulation = getattr(trainer, "current_gradient_accumulation_steps", 1)
    metrics: dict[str, dict[str, list[float]]] = {mode: defaultdict(list) for mode in ("train", "eval")}
    try:
        with (
            _instead(trainer, "_metrics", metrics),
            _instead(trainer, "current_gradient_accumulation_steps", accumulation),
        ):
            yield
    finally:
        for name, value in window.items():
            setattr(trainer, name, value)
