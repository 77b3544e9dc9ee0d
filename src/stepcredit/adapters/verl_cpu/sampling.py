"""What one request asks of the sampler, read from verl's sampling parameters: honoured, or refused by name."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from stepcredit.errors import InputError

NEUTRAL: dict[str, Any] = {
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "min_p": 0.0,
    "min_tokens": 0,
    "n": 1,
}
"""Parameters that may be there, with the one value that changes nothing."""
UNHEARD = {
    "detokenize",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "include_stop_str_in_output",
    "logprobs",
}
"""Parameters about the text, of which there is none here; and log-probs, which every answer has."""


@dataclass(frozen=True)
class Sampling:
    """One request's sampler.

    Attributes:
        max_tokens: At most so many, at least 1.
        seed: Of this request's draws alone; the batch that it falls into changes none of them.
        temperature: What the logits are divided by; 0 takes the likeliest token.
        top_k: Draw among so many of the likeliest tokens; -1 for all.
        top_p: Draw among the fewest of the likeliest tokens that hold this much of the mass; 1 for all.
        stop: Texts that end the response, after the token that completes one.
        stop_token_ids: Tokens that end the response, themselves its last, beside the model's ends of sequence.
        ignore_eos: The model's ends of sequence do not end the response.
    """

    max_tokens: int
    seed: int
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if not self.max_tokens >= 1:
            raise InputError(f"`max_tokens` must be at least 1; got {self.max_tokens}.")
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"`temperature` must be a number that is not negative; got {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise InputError(f"`top_p` must be above 0 and at most 1; got {self.top_p}.")
        if self.top_k < 1 and self.top_k not in (-1, 0):
            raise InputError(f"`top_k` must be at least 1, or -1 for every token; got {self.top_k}.")


def read_sampling(parameters: Mapping[str, Any], *, room: int, default: int, seed: int, ignore_eos: bool) -> Sampling:
    """Reads verl's parameters of one request.

    Args:
        parameters: By vLLM's names, as agent loops send them.
        room: How many tokens the model's context has left after the prompt.
        default: How many to sample at most if the request does not say.
        seed: If the request names none.
        ignore_eos: If the request does not say.

    Raises:
        InputError: A parameter that is unknown, out of its range, or at a value that this sampler does not honour.
    """
    if room < 1:
        raise InputError(f"the prompt must leave room in the model's context; got {1 - room} tokens too many.")
    left = {name: value for name, value in parameters.items() if value is not None and name not in UNHEARD}
    for name, value in NEUTRAL.items():
        if left.pop(name, value) != value:
            raise InputError(f"`{name}` must be {value} on a CPU; got {parameters[name]}.")
    most = left.pop("max_tokens", left.pop("max_new_tokens", default))
    stop = left.pop("stop", ())
    sampling = Sampling(
        max_tokens=min(max(1, int(most)), room),  # a turn without budget left still gets a token, as vLLM has it
        seed=int(left.pop("seed", seed)),
        temperature=float(left.pop("temperature", 1.0)),
        top_k=int(left.pop("top_k", -1)),
        top_p=float(left.pop("top_p", 1.0)),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        stop_token_ids=frozenset(left.pop("stop_token_ids", ())),
        ignore_eos=bool(left.pop("ignore_eos", ignore_eos)),
    )
    if left:
        raise InputError(f"sampling parameters must be ones that this engine honours; got {', '.join(sorted(left))}.")
    return sampling


def seed_of(parts: Iterable[int]) -> int:
    """A seed of 63 bits from whole numbers: the same for the same numbers in every process."""
    text = ",".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
