"""Token-in, token-out generation with a Transformers model: one left-padded batch, a cache, a sampler to each row."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stepcredit.adapters.verl_cpu.sampling import Sampling

Decode = Callable[[list[int]], str]


@dataclass
class Response:
    """One row as it grows.

    Attributes:
        token_ids: Sampled so far, with the token that ended it.
        log_probs: Of each under the distribution that it was drawn from: after temperature, top-k and top-p. At
            temperature 0 there is no such distribution, and it is the model's own.
        ended: It is complete: an end of sequence, a stop, or no more tokens allowed.
    """

    sampling: Sampling
    ends: frozenset[int]
    decode: Decode
    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    ended: bool = False

    def __post_init__(self) -> None:
        from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

        asked, warp = self.sampling, LogitsProcessorList()
        if asked.temperature > 0:
            if asked.temperature != 1:
                warp.append(TemperatureLogitsWarper(asked.temperature))
            if asked.top_k > 0:
                warp.append(TopKLogitsWarper(asked.top_k))
            if asked.top_p < 1:
                warp.append(TopPLogitsWarper(asked.top_p))
        self._warp = warp
        self._random = torch.Generator().manual_seed(asked.seed)

    def extend(self, logits: Tensor) -> int:
        """Takes the next token from logits [vocabulary], and says which; a row that has ended takes none."""
        if self.ended:
            return self.token_ids[-1]
        log_probs = self._warp(None, logits.float()[None]).log_softmax(-1)[0]
        if self.sampling.temperature == 0:
            token = int(log_probs.argmax())
        else:
            token = int(torch.multinomial(log_probs.exp(), 1, generator=self._random))
        self.token_ids.append(token)
        self.log_probs.append(float(log_probs[token]))
        self.ended = self._ends(token)
        return token

    def _ends(self, token: int) -> bool:
        asked = self.sampling
        if len(self.token_ids) >= asked.max_tokens or token in asked.stop_token_ids:
            return True
        if token in self.ends and not asked.ignore_eos:
            return True
        return bool(asked.stop) and any(text in self.decode(self.token_ids) for text in asked.stop)


@torch.no_grad()
def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    samplings: Sequence[Sampling],
    *,
    ends: Iterable[int],
    decode: Decode,
    aborted: Callable[[], bool] = lambda: False,
) -> list[Response]:
    """Continues every prompt, in one batch.

    Args:
        model: A Transformers causal language model, in eval mode, on the CPU.
        prompts: Token ids of each, at least one.
        samplings: One to a prompt.
        ends: The model's ends of sequence.
        decode: Token ids to text; called only for requests that stop at a text.
        aborted: Asked after each token; once it says so, rows are left as far as they have come.

    Returns:
        One response to a prompt. Those that were aborted have not ended.
    """
    rows = [Response(sampling, frozenset(ends), decode) for sampling in samplings]
    ids, attention = left_padded(prompts)
    positions = (attention.cumsum(1) - 1).clamp(min=0)
    cache = None
    while True:
        out = model(
            input_ids=ids,
            attention_mask=attention,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = out.past_key_values
        tokens = [row.extend(logits) for row, logits in zip(rows, out.logits[:, -1], strict=True)]
        if all(row.ended for row in rows) or aborted():
            return rows
        ids = torch.tensor(tokens)[:, None]
        attention = torch.cat([attention, attention.new_ones(len(rows), 1)], 1)
        positions = positions[:, -1:] + 1


@torch.no_grad()
def score(model: Any, ids: Sequence[int], top: int) -> tuple[list[list[int]], list[list[float]]]:
    """What a teacher thinks of a sequence, in the layout that verl reads: entry t is about token t + 1.

    Args:
        model: A Transformers causal language model, in eval mode, on the CPU.
        ids: Of prompt and response.
        top: 0 for the log-prob of the token that follows; else of so many of the likeliest.

    Returns:
        Token ids and their log-probs, ``len(ids)`` rows of ``max(top, 1)``; the last row, which nothing follows, is 0.
    """
    log_probs = model(input_ids=torch.tensor(ids)[None]).logits[0, :-1].float().log_softmax(-1)
    if top == 0:
        about = torch.tensor(ids)[1:, None]
        values = log_probs.gather(1, about)
    else:
        values, about = log_probs.topk(top, dim=-1)
    width = max(top, 1)
    return [*about.tolist(), [0] * width], [*values.tolist(), [0.0] * width]


def left_padded(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids and attention mask [batch, longest prompt], int64; padding is token 0, never attended to."""
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    attention = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        attention[row, longest - len(prompt) :] = 1
    return ids, attention
