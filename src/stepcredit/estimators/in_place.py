"""What a scheme hands to kernels: the batch's tensors where they stand, and numbers a rollout."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from stepcredit.estimators.compacted import Compacted, warn_of_pieces
from stepcredit.ops.kernels.choosing import readable
from stepcredit.ops.kernels.density import Line
from stepcredit.ops.kernels.grouped import Grouped
from stepcredit.ops.kernels.moments import Moments, Signal
from stepcredit.ops.kernels.rows import Rows


def beyond_kernels(view: Compacted, *fields: str, **options: tuple[object, object]) -> str | None:
    """Why a scheme goes through torch, of a view that has its fields: option -> its value, and the one kernels know."""
    if view.process_group is not None:
        return "its groups may be split over ranks"
    for name, (value, known) in options.items():
        if value != known:
            return f"there is none for {name}={value!r}"
    layout = view.batch.layout
    return readable(layout.response_mask.numel(), layout.device, *(getattr(view.batch, name) for name in fields))


@dataclass(frozen=True, eq=False)
class InPlace:
    """A batch as kernels read it; one that `beyond_kernels` has nothing against.

    Attributes:
        view: Its numbers a rollout.
    """

    view: Compacted

    @property
    def rows(self) -> Rows:
        """The rows."""
        return self.view.batch.layout.in_place

    @cached_property
    def grouped(self) -> Grouped:
        """The rows, group by group."""
        return Grouped.of(self.rows, self.view.batch.layout.live, self.view.groups)

    @cached_property
    def signal(self) -> Signal:
        """The process signal."""
        batch = self.view.batch
        return Signal.of(batch.process_rewards, batch.step_ids, batch.process_mask)

    @cached_property
    def moments(self) -> Moments:
        """Of each of the R rollouts' steps."""
        return Moments.of(self.signal, self.rows)[self.view.batch.layout.live]

    def line(self, center: Tensor, slope: Tensor, each: Tensor) -> Line:
        """The line of each of the R rollouts, float64 [R], as one of each row."""
        return Line(*(self.by_row(x) for x in (center, slope, each)))

    def by_row(self, values: Tensor) -> Tensor:
        """[R] -> [batch]: 0 for the rows that do not count."""
        return self.view.batch.layout.by_row(values)

    def divisors(self, k: float) -> Tensor:
        """float64: how many chunks are left, to the power k; as many as any row has tokens, and one more."""
        longest = int((self.rows.stop - self.rows.first).max(initial=0))
        return torch.arange(longest + 1, dtype=torch.float64).pow(k)

    def warn_if_piecewise_constant(self) -> None:
        """As `Compacted.warn_if_piecewise_constant`."""
        changes, opening = int(self.moments.changes.sum()), self.moments.opening
        if self.view.batch.step_ids is None and bool(changes or (opening != opening[:1]).any()):
            warn_of_pieces(changes, self.view.rows)
