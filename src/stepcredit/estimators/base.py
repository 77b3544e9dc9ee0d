"""The estimator interface: frozen options, a call on a batch, and what a scheme has to say to take part."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from stepcredit.batch import Credit, RolloutBatch
from stepcredit.errors import InputError
from stepcredit.estimators.compacted import Compacted
from stepcredit.ops.groups import ProcessGroup, check_ranks_agree
from stepcredit.ops.scaling import LinearMap
from stepcredit.options import Options


@dataclass(frozen=True, eq=False)
class Assignment:
    """What a scheme computes on a compacted batch.

    Attributes:
        advantages: float64 [N].
        terms: Computes the streams' contributions, name -> float64 [N], on call.
        segment_ids: Computes int64 [N] on call; None for one segment a response.
        counts: Further counts for `Credit.counts`, int64 [] each.
    """

    advantages: Tensor
    terms: Callable[[], Mapping[str, Tensor]]
    segment_ids: Callable[[], Tensor] | None = None
    counts: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def linear(cls, streams: Mapping[str, Tensor], shape: LinearMap, **more: Any) -> "Assignment":
        """Credit that is a linear map of a sum of streams: the streams' own images are its terms."""
        return cls(shape(total(streams)), lambda: {name: shape(x) for name, x in streams.items()}, **more)


def total(streams: Mapping[str, Tensor]) -> Tensor:
    """The sum of at least one stream, all of one shape."""
    first, *rest = streams.values()
    return sum(rest, start=first)


@dataclass(frozen=True, kw_only=True)
class Estimator(Options, ABC):
    """Turns a `RolloutBatch` into `Credit`. Options are frozen, printed, compared, and checked when it is made.

    A scheme of one's own is a frozen dataclass that subclasses this and has `assign`; nothing needs to be registered,
    its ``package.module:Class`` names it in a config.

    Attributes:
        type: The scheme's name in configs and tables.
        requires: The batch fields without which the scheme cannot be computed.
    """

    type: ClassVar[str] = "custom"
    requires: ClassVar[frozenset[str]] = frozenset()

    @property
    def exempt(self) -> Mapping[str, str]:
        """The laws of `stepcredit.lab.conform` that the scheme, as it is set, breaks by definition: law -> reason."""
        return {}

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
            InputError: The batch lacks a field that the scheme requires, or ``out`` does not fit; ranks of the process
                group hold different fields or options, or another rank's call was refused. Then all ranks raise. A
                rank that cannot make its batch calls nothing: see `stepcredit.ops.groups.refusing_alike`.
        """
        problem = self._problem(batch, out)
        if process_group is not None:
            what = f"{self!r} {getattr(batch, 'present', None)}"
            device = batch.response_mask.device if isinstance(batch, RolloutBatch) else None
            check_ranks_agree(what, device, process_group, problem)
        if problem is not None:
            raise problem
        layout, dtype = batch.layout, batch.dtype
        out = layout.empty(dtype) if out is None else out
        with torch.no_grad():
            view = Compacted(batch, process_group)
            assigned = self.assign(view)
            sizes = view.groups.count
            advantages = layout.unpack(assigned.advantages, fill=0.0, out=out)

        def terms() -> dict[str, Tensor]:
            with torch.no_grad():
                named = assigned.terms().items()
                return {name: layout.unpack(x, fill=0.0, out=layout.empty(dtype)) for name, x in named}

        def segment_ids() -> Tensor:
            ids = assigned.segment_ids() if assigned.segment_ids else torch.zeros_like(layout.tokens)
            return layout.unpack(ids, fill=-1, out=layout.empty(torch.int64))

        def counts() -> dict[str, int]:
            unscored = layout.live.numel() - int(torch.count_nonzero(layout.rows.sum(batch.covered.long())))
            return {
                "excluded_rows": len(batch) - layout.live.numel(),
                "groups": int((sizes > 0).sum()),
                "singleton_groups": int((sizes == 1).sum()),
                **({"unscored_rollouts": unscored} if batch.process_rewards is not None else {}),
                **{name: int(count) for name, count in assigned.counts.items()},
            }

        return Credit(advantages, terms, segment_ids, counts)

    def _problem(self, batch: RolloutBatch, out: Tensor | None) -> InputError | None:
        """What is wrong with the arguments, raised only once the other ranks know."""
        try:
            if not isinstance(batch, RolloutBatch):
                raise InputError(f"`batch` must be a RolloutBatch; got {type(batch).__name__}.")
            missing = [name for name in sorted(self.requires) if getattr(batch, name, None) is None]
            if missing:
                raise InputError(f"`{missing[0]}` must be in the batch for {type(self).__name__}; got None.")
            if out is not None:
                batch.layout.check_out(out, batch.dtype)
        except InputError as error:
            return error
        return None

    @abstractmethod
    def assign(self, view: Compacted) -> Assignment:
        """The scheme itself, on the compacted batch."""
