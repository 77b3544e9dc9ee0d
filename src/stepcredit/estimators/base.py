"""The estimator interface: frozen options, a call on a batch, and what a scheme has to say to take part."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from stepcredit.batch import Credit, RolloutBatch
from stepcredit.batch.layout import Layout
from stepcredit.errors import InputError
from stepcredit.estimators.compacted import Compacted
from stepcredit.estimators.in_place import InPlace, Kernel, Writing
from stepcredit.ops.groups import ProcessGroup, check_ranks_agree
from stepcredit.ops.kernels import refusal
from stepcredit.ops.scaling import LinearMap
from stepcredit.options import Options


@dataclass(frozen=True, eq=False)
class Assignment:
    """What a scheme computes on a compacted batch.

    Attributes:
        advantages: float64 [N]; [R] where the scheme is `Estimator.per_rollout`.
        terms: Computes the streams' contributions, name -> tensor like ``advantages``, on call.
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

    def writing(self, write: Callable[[Tensor, Tensor], None]) -> Writing:
        """The same numbers, a rollout or a token, for kernels that write such ones."""
        return Writing(self.advantages, self.terms, write, self.counts)


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

    @property
    def per_rollout(self) -> bool:
        """Whether all tokens of a rollout get one number, and `assign` gives it once, [R]."""
        return False

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
        shared = out is not None and _shares_memory(out, batch)
        out = layout.empty(dtype) if out is None else out
        with torch.no_grad():
            place = InPlace(batch, process_group)
            write = "`out` overwrites the batch" if shared else self._own_kernel(place)
            if isinstance(write, str):
                view = Compacted(batch, process_group)
                sizes = view.groups.count
                assigned = cache(partial(self.assign, view))
                whole, streams, found = assigned().advantages, assigned().terms, assigned().counts
                put: Callable[[Any, Tensor], None] = partial(self._place, layout)
            else:
                sizes = place.sizes
                assigned = cache(partial(self.assign, Compacted(batch, quiet=True)))  # for segments, should one ask
                writing = write()
                whole, streams, found, put = writing.whole, writing.streams, writing.counts, writing.write
            put(whole, out)

        def terms() -> dict[str, Tensor]:
            found = {}
            with torch.no_grad():
                for name, x in streams().items():
                    found[name] = layout.empty(dtype)
                    put(x, found[name])
            return found

        def segment_ids() -> Tensor:
            named = assigned().segment_ids
            ids = torch.zeros_like(layout.tokens) if named is None else named()
            return layout.unpack(ids, fill=-1, out=layout.empty(torch.int64))

        def counts() -> dict[str, int]:
            while place.later:
                place.later.pop()()
            unscored = layout.live.numel() - int(torch.count_nonzero(layout.rows.sum(batch.covered.long())))
            return {
                "excluded_rows": len(batch) - layout.live.numel(),
                "groups": int((sizes > 0).sum()),
                "singleton_groups": int((sizes == 1).sum()),
                **({"unscored_rollouts": unscored} if batch.process_rewards is not None else {}),
                **{name: int(count) for name, count in found.items()},
            }

        return Credit(out, terms, segment_ids, counts)

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

    def _place(self, layout: Layout, values: Tensor, out: Tensor) -> None:
        """Values a token where they belong; of a scheme that is `per_rollout` also values a rollout, on its tokens."""
        if self.per_rollout and values.numel() == layout.live.numel():
            layout.spread(values, out=out)
        else:
            layout.unpack(values, fill=0.0, out=out)

    def _own_kernel(self, place: InPlace) -> Kernel | str:
        """The class's own kernel: one that it inherits would not know what it does otherwise."""
        if "kernel" not in type(self).__dict__:
            return f"{type(self).__name__} has no kernel of its own"
        return self.kernel(place)

    def road(self, batch: RolloutBatch, process_group: ProcessGroup | None = None) -> str:
        """How a call on this batch would go: "kernels", or "torch: " and why kernels do not run.

        Args:
            batch: The rollouts.
            process_group: As in the call; no collective.

        Raises:
            InputError: The batch lacks a field that the scheme requires.
        """
        problem = self._problem(batch, None)
        if problem is not None:
            raise problem
        found = self._own_kernel(InPlace(batch, process_group))
        why = found if isinstance(found, str) else None
        if why is not None and self.per_rollout:  # kernels still write what torch assigned
            why = refusal(batch.response_mask.numel(), batch.response_mask.device)
        return "kernels" if why is None else f"torch: {why}"

    def kernel(self, place: InPlace) -> Kernel | str:  # noqa: ARG002 - what a scheme of one's own reads
        """A compiled form of `assign` for this batch; or why there is none, and torch runs.

        Found without a collective and without reading a token; what it gives, when it is called, may read the batch.
        Written once for all devices: ``place.kernels`` are those of the batch's, and nothing waits for a GPU's numbers.
        """
        return f"{type(self).__name__} has no kernel of its own"

    @abstractmethod
    def assign(self, view: Compacted) -> Assignment:
        """The scheme itself, on the compacted batch."""


def _shares_memory(out: Tensor, batch: RolloutBatch) -> bool:
    """Whether writing credit would write to the batch, which kernels read as they write and terms are made of."""
    begin, end = out.data_ptr(), out.data_ptr() + out.numel() * out.element_size()  # contiguous: `check_out`
    fields = [*(getattr(batch, f.name) for f in dataclasses.fields(batch)), *(batch.extra_rewards or {}).values()]
    for x in fields:
        if isinstance(x, Tensor) and x.device == out.device:
            storage = x.untyped_storage()
            if storage.data_ptr() < end and begin < storage.data_ptr() + storage.nbytes():
                return True
    return False
