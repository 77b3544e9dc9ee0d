"""What the server answers, in the shapes of vLLM's HTTP API."""

import time
import uuid
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from stepcredit.errors import StepCreditError

MINUS_INFINITY = -9999.0  # JSON has no infinity; vLLM's stand-in


def error_body(status: int, message: str) -> dict[str, Any]:
    """The body of an answer that is an error."""
    kinds = {400: "BadRequestError", 401: "AuthenticationError", 404: "NotFoundError", 429: "RateLimitError"}
    kind = kinds.get(status, "BadRequestError" if status < 500 else "InternalServerError")
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


def model_list(name: str, longest: int) -> dict[str, Any]:
    """The answer of ``/v1/models``."""
    entry = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "stepcredit", "root": name}
    return {"object": "list", "data": [{**entry, "parent": None, "max_model_len": longest}]}


def pooling(name: str, logits: Sequence[Tensor], activation: bool, tokens: int) -> dict[str, Any]:
    """The answer of ``/pooling``: a row for each token of each input.

    Args:
        name: The model.
        logits: Of each input, [tokens, labels].
        activation: Whether to give probabilities: a softmax over labels, or a sigmoid where there is one.
        tokens: How many were read.
    """
    rows = logits
    if activation:
        rows = [part.double().softmax(-1) if part.shape[-1] > 1 else part.double().sigmoid() for part in logits]
    data = [{"index": index, "object": "pooling", "data": part.tolist()} for index, part in enumerate(rows)]
    return {**_head("pool", "list", name, tokens), "data": data}


def completions(name: str, inputs: Sequence[Sequence[int]], logprobs: Sequence[Tensor]) -> dict[str, Any]:
    """The answer of ``/v1/completions``: the log-probability of each token of each prompt but the first.

    Args:
        name: The model.
        inputs: The prompts' ids.
        logprobs: Of each prompt, [tokens - 1], nats.

    Raises:
        StepCreditError: One is nan.
    """
    choices = []
    for index, (ids, row) in enumerate(zip(inputs, logprobs, strict=True)):
        if row.isnan().any():
            raise StepCreditError("The model's log-probabilities are not numbers.")
        values = row.clamp(min=MINUS_INFINITY, max=0.0).tolist()
        entries = [{str(token): {"logprob": value}} for token, value in zip(ids[1:], values, strict=True)]
        choices.append(
            {"index": index, "text": "", "logprobs": None, "finish_reason": "length", "stop_reason": None,
             "prompt_logprobs": [None, *entries]}
        )  # fmt: skip
    return {**_head("cmpl", "text_completion", name, sum(map(len, inputs))), "choices": choices}


def _head(prefix: str, kind: str, name: str, tokens: int) -> dict[str, Any]:
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}
    identity = {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time())}
    return {**identity, "model": name, "usage": usage}
