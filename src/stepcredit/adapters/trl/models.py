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


Start = list[tuple[nn.Parameter, Tensor]]
"""What is trained of a policy, each parameter with the values it had."""


def reference_logprobs(trainer: Any, reference: nn.Module | Start | None, output: dict[str, Any]) -> Tensor:
    """The same under the reference: the frozen model, else TRL's own if it computed them, else the policy's start."""
    if isinstance(reference, nn.Module):
        return token_logprobs(trainer, reference, output)
    if output.get("ref_per_token_logps") is not None:
        found: Tensor = output["ref_per_token_logps"]
        return found.detach()
    policy = trainer.accelerator.unwrap_model(trainer.model)
    with _left_as_it_was(policy):
        policy.eval()
        with policy.disable_adapter() if reference is None else _put_back(reference):
            return token_logprobs(trainer, trainer.model, output)


def reference_model(trainer: Any) -> nn.Module | Start | None:
    """The policy as it stands, frozen.

    None where the trainer keeps it already, or where a LoRA policy is its own reference with the adapter off. If the
    adapter has been trained before, what it holds now is kept beside it; a second adapter in the model would be saved
    with every checkpoint, and resuming from such a one loads the second alone.

    Raises:
        InputError: The policy is sharded, so that this process does not hold its weights.
    """
    policy = trainer.accelerator.unwrap_model(trainer.model)
    is_lora = hasattr(policy, "peft_config")
    if trainer.beta != 0.0 or (is_lora and not _adapter_acts(policy)):
        return None
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise InputError(
            "`ref_model` must be given when the policy is sharded (DeepSpeed, FSDP) and beta is 0; got None."
        )
    if is_lora:
        return [(x, x.detach().clone()) for x in policy.parameters() if x.requires_grad]
    with torch.random.fork_rng(devices=[]):  # its random weights are overwritten; the run's random state stays
        copy = type(policy)(policy.config)  # never deepcopy: a patched forward keeps reading the old weights
    for name, mine in copy.named_parameters():
        as_it_was = policy.dtype if trainer.args.cast_lm_head_to_fp32 else policy.get_parameter(name).dtype
        mine.data = mine.data.to(as_it_was)
    for name, mine in copy.named_buffers():  # rotary frequencies, too, in no other precision than the policy's
        mine.data = policy.get_buffer(name).detach().clone()
    copy.load_state_dict(policy.state_dict())
    return frozen(trainer, copy)


def frozen(trainer: Any, model: nn.Module) -> nn.Module:
    """A causal LM made ready to be scored beside the policy: no gradient, no dropout, on the trainer's devices."""
    model.requires_grad_(False)
    model.eval()
    add_fused_lm_head = getattr(trl_utils, "add_fused_lm_head", None)  # since TRL 1.15; before, logits were read
    if add_fused_lm_head is not None:
        add_fused_lm_head(
            getattr(model, "get_base_model", lambda: model)(),  # of a LoRA model; its wrapper has no head to fuse
            temperature=trainer.temperature,
            cast_lm_head_to_fp32=trainer.args.cast_lm_head_to_fp32,
        )
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


@contextmanager
def _put_back(start: Start) -> Iterator[None]:
    """The policy with the values of its start for a while."""
    trained = [(parameter, parameter.data) for parameter, _ in start]
    try:
        for parameter, values in start:
            parameter.data = values.to(parameter.device)
        yield
    finally:
        for parameter, values in trained:
            parameter.data = values


@contextmanager
def _left_as_it_was(policy: Any) -> Iterator[None]:
    """What is trained and what is in training mode, afterwards as before; turning an adapter off and on resets it."""
    trained = [(parameter, parameter.requires_grad) for parameter in policy.parameters()]
    training = [(module, module.training) for module in policy.modules()]
    try:
        yield
    finally:
        for parameter, flag in trained:
            parameter.requires_grad_(flag)
        for module, flag in training:
            module.training = flag
