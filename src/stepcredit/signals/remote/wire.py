"""The answers of vLLM's HTTP API that are used here, held to what was asked: each function takes one and distrusts it.

``/pooling`` gives for each input ``data[i]`` an ``index`` and ``data``: a row of numbers a token (pooling ALL), or a
row a token that is the step marker (pooling STEP, vLLM's own for Qwen2.5-Math-PRM). ``/v1/completions`` gives for each
prompt ``choices[i]`` an ``index`` and ``prompt_logprobs``: null for the first token, then for each a mapping from
token ids, as text, to ``logprob``; with ``prompt_logprobs`` = 0 in the request only the token that stands there.
"""

import math
from collections.abc import Sequence
from typing import Any

from stepcredit.signals.remote.served import RemoteError

IMPOSSIBLE = -9999.0  # what vLLM writes for a log-probability of minus infinity
ROUNDING = 1e-4  # how far above 0 a log-probability may come out in float32; it is then 0
Rows = list[list[float]]


def pooled_rows(answer: dict[str, Any], model: str, inputs: Sequence[Sequence[int]], where: str) -> list[Rows]:
    """The rows of each input of a ``/pooling`` request.

    Args:
        answer: The JSON object.
        model: The model that was asked.
        inputs: The token ids that were sent. Shape: [inputs][tokens].
        where: The URL, for messages.

    Returns:
        For each input, in the order sent, rows of finite numbers; how many, its caller must check. A flat list of
        numbers is one number a row.

    Raises:
        RemoteError: Another model, another number of tokens, an input left out or answered twice, or what is no
            finite number.
    """
    _check_sender(answer, model, sum(map(len, inputs)), where)
    found = []
    for item in _in_order(answer, "data", len(inputs), where):
        rows = item.get("data")
        if not isinstance(rows, list):
            raise _unfit("`data` as a list for every input", _kind(rows), where)
        rows = [row if isinstance(row, list) else [row] for row in rows]
        if not all(_finite(value) for row in rows for value in row):
            odd = next(value for row in rows for value in row if not _finite(value))
            raise _unfit("finite numbers", f"{odd!r:.40}", where)
        found.append([[float(value) for value in row] for row in rows])
    return found


def prompt_logprobs(answer: dict[str, Any], model: str, inputs: Sequence[Sequence[int]], where: str) -> Rows:
    """The log-probabilities of the tokens of each prompt of a ``/v1/completions`` request, after the first.

    Args:
        answer: The JSON object.
        model: The model that was asked.
        inputs: The token ids that were sent. Shape: [inputs][tokens].
        where: The URL, for messages.

    Returns:
        For each prompt, in the order sent, nats for each token but the first. Shape: [inputs][tokens - 1].

    Raises:
        RemoteError: As for `pooled_rows`; or a token's entry does not name the token that was sent, its number is
            above 0, or it is vLLM's stand-in for minus infinity.
    """
    _check_sender(answer, model, sum(map(len, inputs)), where)
    found = []
    for ids, choice in zip(inputs, _in_order(answer, "choices", len(inputs), where), strict=True):
        entries = choice.get("prompt_logprobs")
        if not isinstance(entries, list) or len(entries) != len(ids):
            fact = f"{len(entries)}" if isinstance(entries, list) else _kind(entries)
            raise _unfit(f"{len(ids)} `prompt_logprobs`, one a token", fact, where)
        if entries[0] is not None:
            raise _unfit("null for the first token, which nothing precedes", f"{entries[0]!r:.80}", where)
        found.append([_logprob(entry, token, where) for entry, token in zip(entries[1:], ids[1:], strict=True)])
    return found


def token_ids(answer: dict[str, Any], where: str) -> tuple[list[int], int | None]:
    """The ids of a ``/tokenize`` answer, and the most tokens that the model takes.

    Raises:
        RemoteError: No list of integers, or another ``count`` than there are.
    """
    ids = answer.get("tokens")
    if not isinstance(ids, list) or not all(type(token) is int for token in ids):
        raise _unfit("`tokens` as a list of integers", _kind(ids), where)
    if answer.get("count", len(ids)) != len(ids):
        raise _unfit(f"the `count` of its {len(ids)} tokens", f"{answer['count']!r:.40}", where)
    longest = answer.get("max_model_len")
    return ids, longest if type(longest) is int else None


def model_lengths(answer: dict[str, Any], where: str) -> dict[str, int | None]:
    """The models of a ``/v1/models`` answer, and the most tokens that each takes where it says so.

    Raises:
        RemoteError: No list of models with names.
    """
    models = answer.get("data")
    if not isinstance(models, list) or not all(isinstance(m, dict) and isinstance(m.get("id"), str) for m in models):
        raise _unfit("`data` as a list of models with an `id`", _kind(models), where)
    lengths = {model["id"]: model.get("max_model_len") for model in models}
    return {name: length if type(length) is int else None for name, length in lengths.items()}


def _check_sender(answer: dict[str, Any], model: str, tokens: int, where: str) -> None:
    if answer.get("model") != model:
        raise _unfit(f"the model {model!r}", f"{answer.get('model')!r:.80}", where)
    usage = answer.get("usage")
    read = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    if read is not None and read != tokens:  # cut short, or with special tokens added
        raise _unfit(f"the {tokens} tokens that were sent as its `usage.prompt_tokens`", f"{read!r:.40}", where)


def _in_order(answer: dict[str, Any], key: str, count: int, where: str) -> list[dict[str, Any]]:
    """The entries of a list, put by their ``index``: each of 0 .. count - 1 once."""
    items = answer.get(key)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise _unfit(f"`{key}` as a list of objects", _kind(items), where)
    indices = [item.get("index") for item in items]
    if not all(type(index) is int for index in indices) or sorted(indices) != list(range(count)):
        raise _unfit(f"each index below {count} once in `{key}`", f"{indices!r:.120}", where)
    return sorted(items, key=lambda item: int(item["index"]))


def _logprob(entry: Any, token: int, where: str) -> float:
    if not isinstance(entry, dict):
        raise _unfit("a mapping from token ids for every token but the first", _kind(entry), where)
    if str(token) not in entry:
        raise _unfit(f"the log-probability of the token {token} that was sent", f"{list(entry)!r:.80}", where)
    named = entry[str(token)]
    value: Any = named.get("logprob") if isinstance(named, dict) else None
    if not _finite(value):
        raise _unfit("finite numbers", f"{value!r:.40} for the token {token}", where)
    if value > ROUNDING:
        raise _unfit("log-probabilities of at most 0", f"{value!r:.40} for the token {token}", where)
    if value <= IMPOSSIBLE:
        raise _unfit("a log-probability for every token", f"its stand-in for minus infinity for {token}", where)
    return min(float(value), 0.0)


def _finite(value: Any) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:  # an integer beyond any float
        return False


def _kind(value: Any) -> str:
    return "none" if value is None else f"a {type(value).__name__}"


def _unfit(rule: str, fact: str, where: str) -> RemoteError:
    return RemoteError(f"`url` must answer with {rule}; got {fact} from {where}.")
