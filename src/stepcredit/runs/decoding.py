"""Reading prompts and going on from them token by token: by the model, or on the CPU by its layers in place."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache

_ROOM = 64  # tokens that buffers are made for beyond the prompt; when they are full they double
_FIXED_ROPES = ("default", "linear", "llama3", "yarn")  # rotations of a position that do not change with the length
_FAMILIES = ("LlamaForCausalLM", "Qwen2ForCausalLM")


class Reading(Protocol):
    """What a model has read of some rows, and can go on from."""

    def next(self, tokens: Tensor) -> Tensor:
        """Reads one more token a row, int64 [rows]; the logits behind it, [rows, vocabulary]."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Only these rows go on, int64 [kept], in this order."""
        ...


def read(
    model: Any, prompts: Sequence[Sequence[int]], of_row: Tensor, *, room: int, pad_id: int
) -> tuple[Tensor, Reading]:
    """Reads each prompt once, for all rows that go on from it.

    Args:
        model: A Transformers causal language model with a dynamic cache, in evaluation mode.
        prompts: Ids, ragged. Shape: [prompts][tokens].
        of_row: The index of each row's prompt. int64 [rows].
        room: The most tokens that will be read behind a prompt.
        pad_id: Fills prompts on the left where they differ in length; what stands there is not read.

    Returns:
        The logits behind each row's prompt, [rows, vocabulary], and the rows, to go on from.
    """
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=model.device)
    seen = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    cache = DynamicCache(config=model.config)
    logits = _forward(model, ids, seen, cache)[of_row]
    if steps_through_layers(model):
        return logits, ThroughLayers(model, cache, seen, of_row, room)
    return logits, ThroughModel(model, cache, seen, of_row)


class ThroughModel:
    """Goes on by the model's own forward; for every model.

    Args:
        model: The model.
        cache: What it has read of the prompts; changed.
        seen: 0 where a prompt is padded, else 1. int64 [prompts, width].
        of_row: The index of each row's prompt.
    """

    def __init__(self, model: Any, cache: DynamicCache, seen: Tensor, of_row: Tensor) -> None:
        self.model, self.cache, self.seen = model, cache, seen[of_row]
        cache.batch_select_indices(of_row)

    def next(self, tokens: Tensor) -> Tensor:
        """As `Reading.next`."""
        self.seen = torch.cat([self.seen, self.seen.new_ones(len(tokens), 1)], 1)
        return _forward(self.model, tokens[:, None], self.seen, self.cache)

    def keep(self, rows: Tensor) -> None:
        """As `Reading.keep`."""
        self.cache.batch_select_indices(rows)
        self.seen = self.seen[rows]


def steps_through_layers(model: Any) -> bool:
    """Whether `ThroughLayers` computes what the model does.

    So it does for Llama and Qwen2 in float32 or float64 on the CPU, each layer attending to everything before it by
    torch's own attention, with rotations that depend on the position alone. An adapter, a subclass, a part or a
    forward that was replaced, hooks, another or a mixed precision: the model itself goes on.
    """
    own = type(model).__module__.startswith("transformers.models.") and type(model).__name__ in _FAMILIES
    if not own or model.device.type != "cpu":
        return False
    config, dtypes = model.config, {parameter.dtype for parameter in model.parameters()}
    return (
        (dtypes == {torch.float32} or dtypes == {torch.float64})
        and config._attn_implementation == "sdpa"
        and set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
        and (getattr(config, "rope_parameters", None) or {}).get("rope_type") in _FIXED_ROPES
        and type(model.lm_head) is nn.Linear
        and not torch.nn.modules.module._global_forward_hooks
        and not hasattr(model, "_original_forward")  # Accelerate's, around which it puts a mixed precision
        and _forward_is_its_own(model)
        and not any(_is_changed(module) for module in model.modules() if module is not model)
        and not _has_hooks(model)
    )


def _forward_is_its_own(model: nn.Module) -> bool:
    """Whether a model's forward is its class's, or TRL's around that, which goes to it where nothing is scored."""
    forward = vars(model).get("forward")
    if forward is None:
        return True
    around = getattr(forward, "__func__", forward)
    if not str(getattr(around, "__globals__", {}).get("__name__")).startswith("trl."):
        return False
    held = zip(around.__code__.co_freevars, around.__closure__ or (), strict=True)
    within = {name: cell.cell_contents for name, cell in held}.get("original_forward")
    return getattr(within, "__func__", None) is type(model).forward


def _is_changed(module: nn.Module) -> bool:
    """Whether a part of a model does something else than Transformers or torch made it for."""
    known = type(module).__module__.startswith(
        ("transformers.models.", "transformers.activations", "torch.nn.modules.")
    )
    return not known or "forward" in vars(module) or _has_hooks(module)


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


class ThroughLayers:
    """Goes on by the model's own layers, with keys and values in buffers that are written in place.

    Transformers' cache copies all it holds for every token. Query heads that share a key-value head are the rows of
    one product, so that no head is repeated. Everything else is the model's modules, called as the model calls them.

    Args:
        model: One that `steps_through_layers`.
        cache: What it has read of the prompts.
        seen: 0 where a prompt is padded, else 1. int64 [prompts, width].
        of_row: The index of each row's prompt.
        room: The most tokens that will be read behind a prompt.
    """

    def __init__(self, model: Any, cache: DynamicCache, seen: Tensor, of_row: Tensor, room: int) -> None:
        self.model, self.used = model, seen.shape[1]
        self.limit = self.used + room
        self.rope = tuple(x[0] for x in model.model.rotary_emb(model.lm_head.weight, torch.arange(self.limit)[None]))
        lengths = seen.sum(1)[of_row]
        self.shift: Tensor | None = None  # how far each row's positions are behind the columns of the buffers
        self.mask: Tensor | None = None  # -inf over the padding, [rows, 1, 1, time]
        if not bool(seen.all()):
            self.shift = self.used - lengths
            bias = torch.zeros(len(of_row), self.limit, dtype=model.dtype)
            bias[:, : self.used].masked_fill_(seen[of_row] == 0, -torch.inf)
            self.mask = bias[:, None, None]
        self.keys = [layer.keys[of_row] for layer in cache.layers]
        self.values = [layer.values[of_row] for layer in cache.layers]
        self._grow(self.used + _ROOM)

    def next(self, tokens: Tensor) -> Tensor:
        """As `Reading.next`."""
        if self.used == self.keys[0].shape[2]:
            self._grow(2 * self.used)
        cos, sin = (x[self.used] if self.shift is None else x[self.used - self.shift, None] for x in self.rope)
        self.used += 1
        hidden = self.model.model.embed_tokens(tokens)
        for index, layer in enumerate(self.model.model.layers):
            hidden = hidden + self._attend(index, layer.self_attn, layer.input_layernorm(hidden), cos, sin)
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        logits: Tensor = self.model.lm_head(self.model.model.norm(hidden))
        return logits

    def keep(self, rows: Tensor) -> None:
        """As `Reading.keep`."""
        capacity = self.keys[0].shape[2]
        self.keys, self.values = ([x[rows, :, : self.used] for x in kept] for kept in (self.keys, self.values))
        self.shift = None if self.shift is None else self.shift[rows]
        self.mask = None if self.mask is None else self.mask[rows]
        self._grow(capacity)

    def _attend(self, index: int, part: Any, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """What a layer's attention adds, [rows, width of the model]; takes the new keys and values in."""
        keys, values = self.keys[index], self.values[index]
        rows, heads, _, size = keys.shape
        query = _rotated(part.q_proj(hidden).view(rows, -1, size), cos, sin)
        keys[:, :, self.used - 1] = _rotated(part.k_proj(hidden).view(rows, heads, size), cos, sin)
        values[:, :, self.used - 1] = part.v_proj(hidden).view(rows, heads, size)
        seen = F.scaled_dot_product_attention(
            query.view(rows, heads, -1, size), keys[:, :, : self.used], values[:, :, : self.used],
            attn_mask=None if self.mask is None else self.mask[..., : self.used], scale=part.scaling,
        )  # fmt: skip
        added: Tensor = part.o_proj(seen.reshape(rows, -1))
        return added

    def _grow(self, capacity: int) -> None:
        """Buffers with this capacity, or all that will be needed."""
        self.keys, self.values = (
            [_with_capacity(x, self.used, min(capacity, self.limit)) for x in kept] for kept in (self.keys, self.values)
        )


def _with_capacity(held: Tensor, used: int, capacity: int) -> Tensor:
    """The same numbers at the start of a buffer: [rows, heads, capacity, size]."""
    rows, heads, _, size = held.shape
    buffer = held.new_empty(rows, heads, capacity, size)
    buffer[:, :, :used] = held[:, :, :used]
    return buffer


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Transformers' ``apply_rotary_pos_emb`` of one token's heads: [rows, heads, size]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def _forward(model: Any, ids: Tensor, seen: Tensor, cache: DynamicCache) -> Tensor:
    """The logits after the last of ``ids``, which the cache takes in. [batch, vocabulary]."""
    padded = not bool(seen.all())
    logits: Tensor = model(
        input_ids=ids,
        attention_mask=seen if padded else None,
        position_ids=(seen.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :] if padded else None,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits
    return logits[:, -1]
