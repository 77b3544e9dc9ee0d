"""What a v1 trainer leaves in the transfer queue, brought to the estimator: sessions, packages, a teacher's scores."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from stepcredit.adapters.verl.arriving import Brought, bringing, is_brought, single
from stepcredit.adapters.verl.rewards import KEY
from stepcredit.adapters.verl.settings import Settings, is_ours, read_settings

_PADDING = "pad"  # how the prompts of the rows begin that verl appends
_PARTITION = "train"  # where verl's trainers keep the rollouts that they train on


def with_columns(dispatch: Callable[..., Any]) -> Callable[..., Any]:
    """The v1 dispatcher of verl, with what its trainer does not fetch fetched, whichever trainer it is."""

    @wraps(dispatch)
    def brought(data: Any, batch_keys: Sequence[str], adv_estimator: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_ours(adv_estimator) or is_brought():
            return dispatch(data, batch_keys, adv_estimator, *args, **kwargs)
        with bringing(fetched(batch_keys, _PARTITION, read_settings(kwargs["config"]))):
            return dispatch(data, batch_keys, adv_estimator, *args, **kwargs)

    return brought


def fetched(keys: Sequence[str], partition: str, settings: Settings, *, step: int | None = None) -> Brought:
    """What the transfer queue holds beside the columns that verl's trainer fetches itself.

    Args:
        keys: The rows, ``{prompt}_{session}_{row}`` each.
        partition: The queue's partition.
        settings: Say whether a teacher is read, and whether the step is recorded.
        step: The trainer's step.
    """
    import transfer_queue

    teacher = "teacher_logprobs" in settings.reads
    names = ["extra_fields"]
    names += ["teacher_logprobs", "prompts", "response_mask"] if teacher else []
    names += ["responses"] if settings.record is not None else []
    data = transfer_queue.kv_batch_get(keys=list(keys), partition_id=partition, select_fields=names)
    sessions = [split(key) for key in keys]
    last = dict(sorted(sessions))
    said = [getattr(entry, "data", entry) for entry in list(data["extra_fields"])]
    packages = [
        package_of(entry, is_last=last[session] == row) for entry, (session, row) in zip(said, sessions, strict=True)
    ]
    logprobs = None
    if teacher and "teacher_logprobs" in data.keys():  # noqa: SIM118 - a TensorDict is not iterated by keys
        rows = zip(*(data[name].unbind() for name in ("teacher_logprobs", "prompts", "response_mask")), strict=True)
        logprobs = aligned([(scores, len(prompt), len(mask)) for scores, prompt, mask in rows])
    responses = [row.tolist() for row in data["responses"].unbind()] if settings.record is not None else None
    counts = {
        "credit/missing_rollouts": float(missing_rollouts(sessions)),
        "credit/padding_rows": float(sum(session.startswith(_PADDING) for session, _ in sessions)),
    }
    return Brought(sessions, packages, logprobs, step, responses=responses, metrics=counts)


def split(key: str) -> tuple[str, int]:
    """A row's session, and its place there.

    Example:
        >>> split("some-prompt_3_0")
        ('some-prompt_3', 0)
    """
    session, _, row = key.rpartition("_")
    return session, int(row)


def missing_rollouts(sessions: Sequence[tuple[str, int]]) -> int:
    """How many rollouts a batch lacks, were every prompt's group as large as the largest.

    verl drops a rollout whose agent loop raised, says so in its log alone, and trains on the others. Padding rows are
    of a prompt of their own.
    """
    prompts = Counter(session.rpartition("_")[0] for session in dict(sessions) if not session.startswith(_PADDING))
    return sum(max(prompts.values()) - count for count in prompts.values()) if prompts else 0


def package_of(extra_fields: Mapping[str, Any], *, is_last: bool) -> str | None:
    """What is said of one row: of a rollout's last row by the reward manager, and over that by its agent loop.

    verl copies the reward manager's answer, which is about the last row, to every row of a rollout.
    """
    own = extra_fields.get(KEY)
    managed = (extra_fields.get("reward_extra_info") or {}).get(KEY) if is_last else None
    if own is None or managed is None:
        found = managed if own is None else own
        return None if found is None else str(found)
    return json.dumps({**json.loads(managed), **json.loads(own)})


def aligned(rows: Sequence[tuple[Tensor, int, int]]) -> Tensor:
    """Teacher log-probabilities on response tokens, padded, from rows of ``(scores, prompt length, response length)``.

    A row's entry t scores token t + 1 of prompt and response together.
    """
    width = max((length for _, _, length in rows), default=0)
    out = torch.zeros(len(rows), width)
    for i, (scores, prompt, length) in enumerate(rows):
        out[i, :length] = single(scores)[prompt - 1 : prompt - 1 + length]
    return out
