"""The estimator interface: frozen options, a call on a batch, and what a scheme has to say to take part."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from stepcredit.batch import Credit, RolloutBatch
from stepcredit.errors import InputError
from stepcredit.estimators.compacted import Compacted
from stepcredit.ops.groups import ProcessGroup
from stepcredit.ops.scaling import LinearMap, Singletons


@dataclass(frozen=True, eq=False)
class Assignment:
    """What a scheme computes on a compacted batch.

    Attributes:
        advantages: float64 [N].
        terms: Computes the streams' contributions, name -> float64 [N], on call.
        segment_ids: Computes int64 [N] on call; None for one segment a response.
        counts: Computes further counts for `Credit.counts` on call.
    """

    advantages: Tensor
    terms: Callable[[], Mapping[str, Tensor]]
    segment_ids: Callable[[], Tensor] | None = None
    counts: Callable[[], Mapping[str, int]] = dict

    @classmethod
    def linear(cls, streams: Mapping[str, Tensor], shape: LinearMap, **more: Any) -> "Assignment":
        """Credit that is a linear map of a sum of streams: the streams' own images are its terms."""
        return cls(shape(total(streams)), lambda: {name: shape(x) for name, x in streams.items()}, **more)


def total(streams: Mapping[str, Tensor]) -> Tensor:
    """The sum of at least one stream, all of one shape."""
    first, *rest = streams.values()
    return sum(rest, start=first)


def option(
    default: Any, *, at_least: float | None = None, above: float | None = None, at_most: float | None = None
) -> Any:
    """A dataclass field with a default and a range, checked when an estimator is made."""
    return field(default=default, metadata={"at_least": at_least, "above": above, "at_most": at_most})


@dataclass(frozen=True, kw_only=True)
class Estimator(ABC):
    """Turns a `RolloutBatch` into `Credit`. Options are frozen, printed, compared, and checked when it is made.

    A scheme of one's own is a subclass with `assign`; nothing needs to be registered, its ``package.module:Class``
    names it in a config.
    """

    type: ClassVar[str]
    requires: ClassVar[frozenset[str]]
    """The batch fields without which the scheme cannot be computed."""

    def __post_init__(self) -> None:
        """Checks every option against its annotated choices and its range."""
        hints = get_type_hints(type(self))
        for f in fields(self):
            check_option(type(self).__name__, f.name, getattr(self, f.name), hints[f.name], f.metadata)

    def __call__(
        self, batch: RolloutBatch, *, out: Tensor | None = None, process_group: ProcessGroup | None = None
    ) -> Credit:
        """Assigns credit to every response token.

        Args:
            batch: The rollouts.
            out: Written to and returned as `Credit.advantages` if given: contiguous, of its shape and dtype.
            process_group: Ranks over which the groups may be split; a collective, all ranks call alike.

        Returns:
            The credit; advantages are detached and exactly 0 off-mask.

        Raises:
            InputError: The batch lacks a field that the scheme requires, or ``out`` does not fit.
        """
        for name in sorted(self.requires):
            if getattr(batch, name) is None:
                raise InputError(f"`{name}` must be in the batch for {type(self).__name__}; got None.")
        view, layout, dtype = Compacted(batch, process_group), batch.layout, batch.dtype
        with torch.no_grad():
            assigned = self.assign(view)
            advantages = layout.unpack(assigned.advantages, fill=0.0, dtype=dtype, out=out)

        def terms() -> dict[str, Tensor]:
            with torch.no_grad():
                return {name: layout.unpack(x, fill=0.0, dtype=dtype) for name, x in assigned.terms().items()}

        def segment_ids() -> Tensor:
            ids = assigned.segment_ids() if assigned.segment_ids else torch.zeros_like(layout.tokens)
            return layout.unpack(ids, fill=-1, dtype=torch.int64)

        def counts() -> dict[str, int]:
            sizes = view.groups.count
            own = {"excluded_rows": len(batch) - layout.live.numel(), "groups": int((sizes > 0).sum())}
            return {**own, "singleton_groups": int((sizes == 1).sum()), **assigned.counts()}

        return Credit(advantages, terms, segment_ids, counts)

    @abstractmethod
    def assign(self, view: Compacted) -> Assignment:
        """The scheme itself, on the compacted batch."""


@dataclass(frozen=True, kw_only=True)
class RewardSum(Estimator):
    """Options shared by the schemes whose reward is ``R = w_outcome r + w_format f + weighted extra rewards``.

    Attributes:
        w_outcome: Weight of the outcome reward.
        w_format: Weight of the format reward.
        w_extra: Weight of each extra reward by name; 1 where it is not named.
        singletons: What a group of one rollout gets: "zero", or its "raw" reward.
    """

    requires = frozenset({"rewards"})
    w_outcome: float = 1.0
    w_format: float = 0.0
    w_extra: Mapping[str, float] = field(default_factory=dict, hash=False)
    singletons: Singletons = "zero"

    def __post_init__(self) -> None:
        """Checks every option, the weights of extra rewards among them."""
        super().__post_init__()
        if not isinstance(self.w_extra, Mapping):
            raise InputError(f"`w_extra` must be a mapping of channel names to weights; got {self.w_extra!r}.")
        for name, weight in self.w_extra.items():
            check_option(type(self).__name__, f"w_extra[{name!r}]", weight, float, {})

    def weights(self, view: Compacted) -> dict[str, float]:
        """The weight of each reward channel that takes part: those of weight 0 do not, unless all are 0."""
        unknown = sorted(set(self.w_extra) - set(view.channels))
        if unknown:
            raise InputError(f"`w_extra` must name channels of `extra_rewards`; got {unknown[0]!r}.")
        given = {"outcome": self.w_outcome, "format": self.w_format, **self.w_extra}
        weights = {name: given.get(name, 1.0) for name in view.channels}
        return {name: w for name, w in weights.items() if w != 0} or {"outcome": 0.0}

    def weighted(self, view: Compacted) -> dict[str, Tensor]:
        """The weighted reward channels that take part, float64 [R] each; R_i is their sum."""
        return {name: w * view.channels[name] for name, w in self.weights(view).items()}


def check_option(owner: str, name: str, value: Any, hint: Any, limits: Mapping[str, float | None]) -> None:
    """Refuses an option that is none of its choices, of the wrong kind, or out of its range.

    Raises:
        InputError: Names the option, the rule and the value.
    """
    if value is None and type(None) in get_args(hint):
        return
    kinds = [kind for kind in (get_args(hint) if type(None) in get_args(hint) else [hint]) if kind is not type(None)]
    kind = kinds[0]
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            choices = ", ".join(repr(choice) for choice in get_args(kind))
            raise InputError(f"`{name}` must be one of {choices} for {owner}; got {value!r}.")
        return
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    fits = {bool: isinstance(value, bool), int: numeric and isinstance(value, int), float: numeric}.get(kind, True)
    if not fits:
        raise InputError(f"`{name}` must be {kind.__name__} for {owner}; got {value!r}.")
    if numeric:
        low, floor, high = limits.get("at_least"), limits.get("above"), limits.get("at_most")
        rules = [
            rule
            for bound, rule in ((low, f">= {low}"), (floor, f"> {floor}"), (high, f"<= {high}"))
            if bound is not None
        ]
        inside = (low is None or value >= low) and (floor is None or value > floor) and (high is None or value <= high)
        if not (inside and math.isfinite(value)):
            raise InputError(f"`{name}` must be {' and '.join(['finite', *rules])} for {owner}; got {value!r}.")
