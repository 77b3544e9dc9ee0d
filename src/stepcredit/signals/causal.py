"""Log-probabilities of given tokens under a causal language model, with only a chunk of logits at a time."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stepcredit.errors import InputError, StepCreditWarning
from stepcredit.options import check_option
from stepcredit.signals.batching import batches

_WIDE = 100.0  # a probe's raw logits reach from -100 to 100, where a soft cap and a scale show
_SCALES = ("logit_scale", "logits_scaling", "output_multiplier", "lm_head_multiplier")  # what configurations call it


def sequence_logprobs(
    model: Any,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    *,
    temperature: float = 1.0,
    batch_tokens: int = 8192,
    chunk: int = 256,
) -> list[Tensor]:
    """The log-probability of each completion token, given the prompt and the completion before it.

    Logits are made for completion tokens alone and ``chunk`` of them at a time, never as a whole [batch, time,
    vocabulary]. Under gradients each chunk is made again in the backward pass, so the same holds there. The model's
    own forward runs up to its output head, whatever wraps it; what the model does to the head's output afterward (a
    scale, a soft cap) is found by one probe, which a model passes once.

    Rows go through the model longest first, padded on the right, as many at once as ``batch_tokens`` has room for; a
    row's numbers do not depend, but for rounding, on the rows beside it.

    Args:
        model: A causal language model of Transformers, or Peft's around one; used in the mode (train, eval) and with
            the gradients that it is found with.
        prompt_ids: The ids before each completion, at least one a row. Shape: [batch][any length].
        completion_ids: The ids to score. Shape: [batch][tokens].
        temperature: What logits are divided by.
        batch_tokens: The most tokens, padding included, of one forward pass; a longer row goes alone.
        chunk: How many tokens' logits exist at a time.

    Returns:
        For each row float32 [tokens] on the device of the model's output (float64 if the model is), nats.

    Raises:
        InputError: Rows that do not match, an empty prompt, an id that the model has no embedding for, a row longer
            than the model's positions, or a number out of its range.

    Degenerate cases:
        - A row without completion tokens: an empty tensor; the model does not see it.
        - A model whose logits are not its head's output, scaled and softly capped: a `StepCreditWarning`, once, and
          its full logits one row at a time.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...                                      num_attention_heads=1))
        >>> [len(row) for row in sequence_logprobs(model, [[1], [2, 3]], [[4, 5], []])]
        [2, 0]
    """
    check_option("sequence_logprobs", "temperature", temperature, float, {"above": 0})
    check_option("sequence_logprobs", "batch_tokens", batch_tokens, int, {"at_least": 1})
    check_option("sequence_logprobs", "chunk", chunk, int, {"at_least": 1})
    _check(model, prompt_ids, completion_ids)
    device = _device(model)
    found = [torch.empty(0, device=device) for _ in completion_ids]
    rows = [row for row, completion in enumerate(completion_ids) if len(completion)]
    if not rows:
        return found
    reader = _reader(model, [*prompt_ids[rows[0]], *completion_ids[rows[0]]][:8])
    budget = 1 if reader.head is None else batch_tokens
    for some in batches([len(prompt_ids[row]) + len(completion_ids[row]) for row in rows], budget):
        batch = [([*prompt_ids[rows[i]], *completion_ids[rows[i]]], len(prompt_ids[rows[i]])) for i in some]
        read = _read_rows(model, reader, batch, temperature, chunk)
        for i, row in zip(some, read, strict=True):
            found[rows[i]] = row
    return found


@dataclass(frozen=True)
class _Finish:
    """What a model does to the output of its head: a scale, then a soft cap. In float32, or float64 if that is."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, raw: Tensor) -> Tensor:
        logits = raw if raw.dtype == torch.float64 else raw.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else (logits / self.cap).tanh() * self.cap


@dataclass(frozen=True)
class _Reader:
    """A model's output head and what follows it; without a head, its logits are read as they are."""

    head: nn.Module | None
    finish: _Finish

    def __call__(self, states: Tensor, targets: Tensor, temperature: float, chunk: int) -> Tensor:
        """Log-probabilities [N] of targets [N] from hidden states (or logits) [N, H], ``chunk`` at a time."""
        parts = []
        for some, wanted in zip(torch.split(states, chunk), torch.split(targets, chunk), strict=True):
            if torch.is_grad_enabled():
                part = checkpoint(self._chunk, some, wanted, temperature, use_reentrant=False)
            else:
                part = self._chunk(some, wanted, temperature)
            parts.append(part)
        return torch.cat(parts)

    def _chunk(self, states: Tensor, targets: Tensor, temperature: float) -> Tensor:
        logits = self.finish(states if self.head is None else self.head(states))
        if temperature != 1.0:
            logits = logits / temperature
        return logits.gather(-1, targets[:, None].to(logits.device)).squeeze(-1) - logits.logsumexp(-1)


def _read_rows(
    model: Any, reader: _Reader, batch: list[tuple[list[int], int]], temperature: float, chunk: int
) -> Iterator[Tensor]:
    """The log-probabilities of rows (ids, where the completion begins), in one pass of the model."""
    longest = max(len(ids) for ids, _ in batch)
    padded = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in batch], device=_device(model))
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in batch], device=_device(model))
    states = _logits(model, padded, mask) if reader.head is None else _hidden(model, reader.head, padded, mask)
    # the state at a token says what comes after it
    wanted = torch.cat([states[i, begin - 1 : len(ids) - 1] for i, (ids, begin) in enumerate(batch)])
    targets = torch.cat([padded[i, begin : len(ids)] for i, (ids, begin) in enumerate(batch)])
    found = reader(wanted, targets, temperature, chunk)
    return iter(torch.split(found, [len(ids) - begin for ids, begin in batch]))


def _hidden(model: Any, head: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """What the model's forward gives its head, [B, T, H]; the head itself sees one token a row."""
    seen: list[Tensor] = []

    def shorten(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        seen.append(args[0])
        return (args[0][:, :1], *args[1:])

    handle = head.register_forward_pre_hook(shorten)
    try:
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    finally:
        handle.remove()
    (hidden,) = seen
    return hidden


def _logits(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """The model's own logits [B, T, V]; virtual tokens, which some adapters put before the text, are cut off."""
    output = model(input_ids=ids, attention_mask=mask, use_cache=False)
    logits: Tensor = output.logits if hasattr(output, "logits") else output[0]
    return logits[:, -ids.shape[1] :]


_FOUND: WeakKeyDictionary[Any, tuple[int, _Finish | None]] = WeakKeyDictionary()  # model -> its head, and the probe's


def _reader(model: Any, ids: list[int]) -> _Reader:
    """How to read a model: by its head, or by whole logits, said once, where these are something else."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if model not in _FOUND or _FOUND[model][0] != id(head):
        finish = None if head is None else _probe(model, head, torch.tensor([ids], device=_device(model)))
        _FOUND[model] = (id(head), finish)
        if finish is None:
            warnings.warn(
                f"the logits of {type(model).__name__} are not its head's output, scaled and softly capped: they are "
                "made whole, one rollout at a time, which takes more memory",
                StepCreditWarning,
                stacklevel=3,
            )
    finish = _FOUND[model][1]
    return _Reader(None, _Finish()) if finish is None else _Reader(head, finish)


def _probe(model: Any, head: nn.Module, ids: Tensor) -> _Finish | None:
    """What the model makes of a head's output that is set to known, widely spread values; None: nothing known."""
    raw: list[Tensor] = []

    def spread(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not args or not isinstance(output, Tensor) or args[0].shape[:2] != ids.shape:
            return output
        raw.append(torch.linspace(-_WIDE, _WIDE, output.numel()).view(output.shape).to(output))
        return raw[-1].clone()  # a model may change it in place

    handle = head.register_forward_hook(spread)
    try:
        with torch.no_grad():
            own = _logits(model, ids, torch.ones_like(ids))
    finally:
        handle.remove()
    if len(raw) != 1 or own.shape != raw[0].shape:
        return None
    close = 4 * torch.finfo(own.dtype).eps
    for finish in _finishes(_text_config(model)):
        expected = finish(raw[0])
        if torch.allclose(expected, own.to(expected), rtol=close, atol=close):
            return finish
    return None


def _finishes(config: Any) -> Iterator[_Finish]:
    """What a configuration may mean: some families multiply by their scale, others divide by it."""
    named = [getattr(config, name, None) for name in _SCALES]
    numbers = [float(x) for x in named if isinstance(x, (int, float)) and x]
    cap = getattr(config, "final_logit_softcapping", None)
    for scale in (1.0, *numbers, *(1 / x for x in numbers)):
        yield _Finish(scale)
        if cap:
            yield _Finish(scale, float(cap))


def _text_config(model: Any) -> Any:
    """What a model says of itself; of a model that sees, too, what it says of its language part."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _device(model: Any) -> torch.device:
    device: torch.device = model.get_input_embeddings().weight.device
    return device


def _check(model: Any, prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]]) -> None:
    """Refuses rows that the model cannot read."""
    if len(prompt_ids) != len(completion_ids):
        raise InputError(
            f"`prompt_ids` must have one row a completion; got {len(prompt_ids)} for {len(completion_ids)} completions."
        )
    known = model.get_input_embeddings().weight.shape[0]
    positions = getattr(_text_config(model), "max_position_embeddings", None)
    for row, (prompt, completion) in enumerate(zip(prompt_ids, completion_ids, strict=True)):
        if not len(completion):
            continue
        if not len(prompt):
            raise InputError(f"`prompt_ids` must have a token in every row; got none in row {row}. Begin with BOS.")
        for name, ids in (("prompt_ids", prompt), ("completion_ids", completion)):
            if min(ids) < 0 or max(ids) >= known:
                wrong = next(token for token in ids if not 0 <= token < known)
                raise InputError(f"`{name}` must be ids below the model's {known}; got {wrong} in row {row}.")
        length = len(prompt) + len(completion)
        if isinstance(positions, int) and length > positions:
            raise InputError(
                f"`completion_ids` must fit the model's {positions} positions after the prompt; got {length} tokens "
                f"in row {row}."
            )
