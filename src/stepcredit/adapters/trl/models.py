"""Frozen models beside the policy (reference, teacher, base), scored by the trainer's own log-prob method."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import trl.trainer.utils as trl_utils
from torch import Tensor, nn
from trl.models import prepare_deepspeed, prepare_fsdp

from stepcredit.errors import InputError

_IMAGE_FIELDS = (
    "pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles",
    "image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids",
)  # fmt: skip


@torch.no_grad()
def token_logprobs(trainer: Any, model: nn.Module, output: dict[str, Any]) -> Tensor:
    """Log-probabilities of the completion tokens under a model, nats at the trainer's temperature. [batch, time]."""
    training = trainer.model.training
    size = trainer.args.per_device_train_batch_size if training else trainer.args.per_device_eval_batch_size
    scored = trainer._get_per_token_logps_and_entropies(
        model,
        torch.cat([output["prompt_ids"], output["completion_ids"]], 1),
        torch.cat([output["prompt_mask"], output["completion_mask"]], 1),
        output["completion_ids"].shape[1],
        batch_size=size,
        **{name: output[name] for name in _IMAGE_FIELDS if name in output},
    )
    logprobs: Tensor = scored[0]
    return logprobs.detach()


def reference_logprobs(trainer: Any, ref_model: nn.Module | None, output: dict[str, Any]) -> Tensor:
    """The same under the reference: TRL's own if it computed them, else the frozen model, else the adapter off."""
    if output.get("ref_per_token_logps") is not None:
        found: Tensor = output["ref_per_token_logps"]
        return found.detach()
    if ref_model is not None:
        return token_logprobs(trainer, ref_model, output)
    with _reference_adapter(trainer.accelerator.unwrap_model(trainer.model)):
        return token_logprobs(trainer, trainer.model, output)


def reference_model(trainer: Any) -> nn.Module | None:
    """The policy as it stands, frozen, or None where the trainer or the policy's adapters keep it already.

    A LoRA policy needs no second model: with the adapter off it is the reference. If its adapter has been trained
    before, a frozen copy of the adapter named "ref" is.

    Raises:
        InputError: The policy is sharded, so that this process does not hold its weights.
    """
    policy = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(policy, "peft_config"):
        if "ref" not in policy.peft_config and _adapter_acts(policy):
            _copy_adapter(policy)
        return None
    if trainer.beta != 0.0:
        return None
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise InputError(
            "`ref_model` must be given when the policy is sharded (DeepSpeed, FSDP) and beta is 0; got None."
        )
    with torch.random.fork_rng(devices=[]):  # its random weights are overwritten; the run's random state stays
        copy = type(policy)(policy.config).to(dtype=policy.dtype)
    copy.load_state_dict(policy.state_dict())  # never deepcopy: a patched forward keeps reading the old weights
    return frozen(trainer, copy)


def frozen(trainer: Any, model: nn.Module) -> nn.Module:
    """A causal LM made ready to be scored beside the policy: no gradient, no dropout, on the trainer's devices."""
    model.requires_grad_(False)
    model.eval()
    add_fused_lm_head = getattr(trl_utils, "add_fused_lm_head", None)  # since TRL 1.15; before, logits were read
    if add_fused_lm_head is not None and not getattr(model, "_stepcredit_fused", False):
        add_fused_lm_head(
            model, temperature=trainer.temperature, cast_lm_head_to_fp32=trainer.args.cast_lm_head_to_fp32
        )
        model._stepcredit_fused = True  # type: ignore[assignment]
    prepared: nn.Module
    if trainer.is_deepspeed_enabled:
        prepared = prepare_deepspeed(model, trainer.accelerator)
    elif trainer.is_fsdp_enabled:
        prepared = prepare_fsdp(model, trainer.accelerator)
    else:
        prepared = trainer.accelerator.prepare_model(model, evaluation_mode=True)
    return prepared


def _adapter_acts(policy: Any) -> bool:
    """Whether the active adapter changes the model: a fresh LoRA adds exactly 0."""
    output_factors = [p for name, p in policy.named_parameters() if "lora_B." in name or "lora_embedding_B." in name]
    return not output_factors or any(bool(p.detach().any()) for p in output_factors)


def _copy_adapter(policy: Any) -> None:
    active = policy.active_adapter
    policy.add_adapter("ref", policy.peft_config[active])
    for name, parameter in list(policy.named_parameters()):
        if f".{active}." in name:
            policy.get_parameter(name.replace(f".{active}.", ".ref.")).data.copy_(parameter.data)
    policy.set_adapter(active)


@contextmanager
def _reference_adapter(policy: Any) -> Iterator[None]:
    if "ref" not in policy.peft_config:
        with policy.disable_adapter():
            yield
        return
    active = policy.active_adapter
    policy.set_adapter("ref")
    try:
        yield
    finally:
        policy.set_adapter(active)
