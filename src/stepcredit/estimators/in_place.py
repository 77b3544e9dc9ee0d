"""What a scheme hands to kernels: the batch's tensors where they stand, and numbers a rollout."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from stepcredit.estimators.compacted import warn_of_pieces
from stepcredit.estimators.rollout_view import RolloutView
from stepcredit.ops.groups import Pool
from stepcredit.ops.kernels.choosing import package, readable
from stepcredit.ops.kernels.offered import Kernels
from stepcredit.ops.kernels.operands import Grouped, Line, Moments, Rows, Signal


@dataclass(frozen=True, eq=False)
class Writing:
    """How kernels write a scheme's credit, which is linear in its streams.

    Attributes:
        whole: What ``write`` takes of all streams together: numbers a rollout, in the form of its kernel.
        streams: Computes what it takes of each stream alone, by name, on call.
        write: Writes what it is given to a token tensor, 0 off the response tokens.
        counts: The `Assignment.counts`.
    """

    whole: Any
    streams: Callable[[], Mapping[str, Any]]
    write: Callable[[Any, Tensor], None]
    counts: Mapping[str, Tensor] = field(default_factory=dict)


Kernel = Callable[[], Writing]


@dataclass(frozen=True, eq=False)
class InPlace(RolloutView):
    """A batch as kernels read it: nothing is moved, and R is all rows of the batch.

    How many rows count, and how many groups there are, is not asked: on a GPU the answer would be waited for. Rows that
    do not count have rewards of 0, and are in the `Pool.rest` of their groups.

    Attributes:
        batch: The batch.
        process_group: The ranks that share groups: kernels know None alone.
        later: What is left to do once numbers are read from the device anyway.
    """

    later: list[Callable[[], None]] = field(default_factory=list)

    def refusal(self, *fields: str, **options: tuple[object, object]) -> str | None:
        """Why a scheme goes through torch, of a batch that has its fields: option -> its value, and the one known."""
        if self.process_group is not None:
            return "its groups may be split over ranks"
        for name, (value, known) in options.items():
            if value != known:
                return f"there is none for {name}={value!r}"
        mask = self.batch.response_mask
        return readable(mask.numel(), mask.device, *(getattr(self.batch, name) for name in fields))

    @property
    def kernels(self) -> Kernels:
        """Those for the batch's device."""
        return package(self.batch.response_mask.device)

    @property
    def rows(self) -> Rows:
        """The rows."""
        return self.batch.layout.in_place

    @cached_property
    def live(self) -> Tensor:
        """Which rows count, bool [batch]."""
        return self.rows.length > 0

    @cached_property
    def groups(self) -> Pool:
        """The group of each row."""
        return Pool.unread(self.batch.group_ids, self.live)

    @property
    def sizes(self) -> Tensor:
        """int64: how many rollouts each group has; 0 for some that are none."""
        return self.groups.count[:-1]

    def of_rollouts(self, x: Tensor) -> Tensor:
        """[batch] -> [batch]: 0 or False for rows that do not count."""
        return torch.where(self.live, x, False)

    @cached_property
    def grouped(self) -> Grouped:
        """The rows, group by group."""
        return Grouped(self.rows, self.groups)

    @cached_property
    def signal(self) -> Signal:
        """The process signal."""
        return Signal.of(self.batch.process_rewards, self.batch.step_ids, self.batch.process_mask)

    @cached_property
    def signal_with_last_0(self) -> Signal:
        """The process signal token by token, a copy with 0 at each row's last response token.

        Steps say no more than what is covered.
        """
        x, steps, covers = self.signal.x, self.signal.steps, self.signal.covers
        assert x is not None
        if steps is not None:
            covers = steps >= 0 if covers is None else covers & (steps >= 0)
        x = torch.cat([x, x.new_zeros(1)])  # rows without a response token write to one more place
        at = torch.where(self.rows.length > 0, self.rows.stop - 1, x.numel() - 1)
        return Signal(x.index_fill_(0, at, 0.0)[:-1], None, covers)

    @cached_property
    def moments(self) -> Moments:
        """Of each row's steps."""
        return self.kernels.moments(self.signal, self.rows)

    def divisors(self, k: float) -> Tensor:
        """float64: how many chunks are left, to the power k; at least as many as any row has tokens, and one more."""
        mask, device = self.batch.response_mask, self.batch.response_mask.device
        if mask.ndim == 2:
            longest = mask.shape[1]
        elif device.type == "cpu":
            longest = int((self.rows.end - self.rows.begin).max()) if self.rows.n else 0
        else:  # what a row of a packed batch can have, where the device would be waited for to say more
            longest = mask.numel()
        return torch.arange(longest + 1, dtype=torch.float64, device=device).pow(k)

    def spread(self, values: Tensor, out: Tensor) -> None:
        """Writes one number a row, float64 [batch], over its response tokens, and 0 elsewhere."""
        self.kernels.spread(values.to(out.dtype), self.rows, out)

    def lines(self, center: Tensor, streams: Mapping[str, Tensor], write: Callable[..., None], **more: Any) -> Writing:
        """Credit that a kernel makes of the process signal, of which "process" is the slope, and of numbers a rollout.

        Args:
            center: float64 [batch], the `Line.center`.
            streams: float64 [batch] each: the `Line.slope` for "process", parts of the `Line.each` for the others.
            write: A kernel of a signal, a line, rows and a tensor to write to.
            more: `Writing.counts`, if there are any.
        """
        zero = torch.zeros_like(center)
        beside = sum((x for name, x in streams.items() if name != "process"), start=zero)

        def alone() -> dict[str, Line]:
            return {
                name: Line(center, x, zero) if name == "process" else Line(center, zero, x)
                for name, x in streams.items()
            }

        def put(line: Line, out: Tensor) -> None:
            write(self.signal, line, self.rows, out)

        return Writing(Line(center, streams["process"], beside), alone, put, **more)

    def warn_if_piecewise_constant(self) -> None:
        """As `Compacted.warn_if_piecewise_constant`; off the CPU `later`, since the warning is made of numbers."""
        if self.batch.step_ids is not None:
            return
        if self.batch.response_mask.device.type == "cpu":
            self._warn(stacklevel=6)
        else:
            self.later.append(partial(self._warn, stacklevel=5))

    def _warn(self, stacklevel: int) -> None:
        length, changes, opening = self.rows.length, int(self.moments.changes.sum()), self.moments.opening
        opens = opening[length > 0]
        if changes or bool((opens != opens[:1]).any()):
            warn_of_pieces(changes, int((length - 1).clamp(min=0).sum()), stacklevel)
