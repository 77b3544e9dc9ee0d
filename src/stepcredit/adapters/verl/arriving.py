"""One training step's columns on their way to the estimator: what verl's dispatcher has, and what a trainer adds."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

from torch import Tensor

from stepcredit.errors import InputError


@dataclass(eq=False)
class Brought:
    """What a trainer with credit brings beside the columns that verl's own gives its estimators.

    Attributes:
        sessions: The rollout that each row is a part of, and its place there. Shape: [rows].
        packages: What the reward manager said of each row (see `rewards.pack`); None: nothing. Shape: [rows].
        teacher_logprobs: The teacher's log-probability of every response token, nats. Shape: [rows, time].
        step: The trainer's step.
        responses: Every row's response tokens, for the record. Shape: [rows][tokens].
        metrics: Filled with numbers to log while the credit is made.
    """

    sessions: Sequence[tuple[str, int]] | None = None
    packages: Sequence[str | None] | None = None
    teacher_logprobs: Tensor | None = None
    step: int | None = None
    responses: Sequence[Sequence[int]] | None = None
    metrics: dict[str, float] = field(default_factory=dict)


_DATA: ContextVar[Any] = ContextVar("stepcredit_verl_data", default=None)
_BROUGHT: ContextVar[Brought | None] = ContextVar("stepcredit_verl_brought", default=None)


def seen(compute_advantage: Callable[..., Any]) -> Callable[..., Any]:
    """The dispatcher of verl, with its data visible to the estimator that it calls."""

    @wraps(compute_advantage)
    def dispatch(data: Any, *args: Any, **kwargs: Any) -> Any:
        token = _DATA.set(data)
        try:
            return compute_advantage(data, *args, **kwargs)
        finally:
            _DATA.reset(token)

    return dispatch


@contextmanager
def bringing(brought: Brought) -> Iterator[Brought]:
    """Within this, an estimator sees what a trainer brings."""
    token = _BROUGHT.set(brought)
    try:
        yield brought
    finally:
        _BROUGHT.reset(token)


def is_brought() -> bool:
    """Whether a trainer with credit is at work here."""
    return _BROUGHT.get() is not None


@dataclass(frozen=True, eq=False)
class Arrived:
    """All that is at hand for one step; padded tensors are [rows, time].

    Attributes:
        tensors: verl's tensor columns by verl's names.
        others: Its other columns, one entry a row.
        brought: What the trainer adds; from a trainer that adds nothing, what is among the other columns.
    """

    tensors: Mapping[str, Tensor]
    others: Mapping[str, Sequence[Any]]
    brought: Brought


def arrived(batch: Mapping[str, Tensor] | None, non_tensor_batch: Mapping[str, Any] | None) -> Arrived:
    """What the estimator may look at: from the dispatcher's arguments where it gives them, else as seen there.

    Degenerate cases:
        Called outside a dispatcher and with nothing: no columns; an estimator that needs one says so.
    """
    data, brought = _DATA.get(), _BROUGHT.get()
    batch = batch if batch is not None or data is None else data.batch
    tensors = {} if batch is None else dict(batch.items())  # a TensorDict is no Mapping
    others = non_tensor_batch if non_tensor_batch is not None else {} if data is None else data.non_tensor_batch
    if brought is not None:
        return Arrived(tensors, others, brought)
    packages = others.get("stepcredit")
    named = None if packages is None else [None if one is None else str(one) for one in packages]
    responses = tensors["responses"].tolist() if "responses" in tensors else None
    return Arrived(tensors, others, Brought(packages=named, teacher_logprobs=_teacher(tensors), responses=responses))


def _teacher(tensors: Mapping[str, Tensor]) -> Tensor | None:
    """The legacy trainer's padded column, entry t of which scores token t + 1 of prompt and response."""
    if "teacher_logprobs" not in tensors:
        return None
    column = tensors["teacher_logprobs"]
    prompt, width = tensors["prompts"].shape[1], tensors["response_mask"].shape[1]
    return single(column)[:, prompt - 1 : prompt - 1 + width]


def single(column: Tensor) -> Tensor:
    """A column of teacher log-probabilities of the sampled tokens, without its last axis.

    Raises:
        InputError: It holds those of the teacher's top tokens instead.
    """
    if column.shape[-1] != 1:
        raise InputError(
            f"`distillation.distillation_loss.loss_mode` must be k1, k2 or k3, under which the teacher scores the "
            f"sampled token; got {column.shape[-1]} log-probabilities a token."
        )
    return column.squeeze(-1)
