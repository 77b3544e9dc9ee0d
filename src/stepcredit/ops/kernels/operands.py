"""What kernels are given, on any device: the tensors of a batch where they stand, and numbers a rollout."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from stepcredit.ops.groups import Pool
from stepcredit.ops.kernels.choosing import package


@dataclass(frozen=True, eq=False)
class Runs:
    """Response tokens that stand together, run after run and row after row.

    A row without gaps is one run; one without response tokens, or that does not count, has none.

    Attributes:
        of_row: int64 [batch + 1], row r has those from ``of_row[r]`` to before ``of_row[r + 1]``.
        starts: int64 [runs], where each begins on the flattened token tensors.
        stops: int64 [runs], where it ends.
    """

    of_row: Tensor
    starts: Tensor
    stops: Tensor


Extents = tuple[Tensor, Tensor, Tensor, Runs | None]


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of a batch on its flattened token tensors.

    Attributes:
        mask: bool [tokens], which are response tokens.
        begin: int64 [batch], where each row begins.
        end: int64 [batch], where it ends.
        first: int64 [batch], its first response token; its begin if it has none.
        stop: int64 [batch], one beyond its last response token; its begin if it has none.
        length: int64 [batch], how many response tokens it has; 0 for a row that does not count.
        runs: Their response tokens, for kernels on the CPU; None for others: how many there are, a GPU would be
            waited for.
    """

    mask: Tensor
    begin: Tensor
    end: Tensor
    first: Tensor
    stop: Tensor
    length: Tensor
    runs: Runs | None

    @classmethod
    def of(cls, response_mask: Tensor, row_mask: Tensor | None, cu_seqlens: Tensor | None) -> "Rows":
        """From the fields of a batch of the same names; reads the mask once."""
        mask = flat(response_mask)
        if cu_seqlens is None:
            n, width = response_mask.shape
            edges = torch.arange(n + 1, device=mask.device) * width
        else:
            edges = cu_seqlens.clamp(0, mask.numel())  # of a trusted batch nobody has read them
        begin, end = edges[:-1], edges[1:]
        return cls(mask, begin, end, *package(mask.device).extents(mask, begin, end, row_mask))

    @property
    def n(self) -> int:
        """How many rows there are, with those that do not count."""
        return self.length.numel()


@dataclass(frozen=True, eq=False)
class Signal:
    """A process signal on flattened token tensors.

    Attributes:
        x: float [tokens]; None where there are steps alone.
        steps: int32 or int64 [tokens], the step of each token, -1 where it is not covered; None: token-level.
        covers: bool [tokens], which tokens it covers; None: all.
    """

    x: Tensor | None
    steps: Tensor | None
    covers: Tensor | None

    @classmethod
    def of(cls, x: Tensor | None, step_ids: Tensor | None, process_mask: Tensor | None) -> "Signal":
        """From the fields of a batch."""
        return cls(*(None if field is None else flat(field) for field in (x, step_ids, process_mask)))


@dataclass(frozen=True, eq=False)
class Line:
    """What a token's signal x becomes: ``(x - center) slope + each``, and ``each`` where the signal does not cover it.

    Attributes:
        center: float64 [batch].
        slope: float64 [batch].
        each: float64 [batch].
    """

    center: Tensor
    slope: Tensor
    each: Tensor

    def __add__(self, other: "Line") -> "Line":
        """Both values together, of lines with the same center."""
        return Line(self.center, self.slope + other.slope, self.each + other.each)

    def scaled(self, scale: Tensor) -> "Line":
        """The value times a number a row, float64 [batch] or []."""
        return Line(self.center, self.slope * scale, self.each * scale)


@dataclass(frozen=True, eq=False)
class Moments:
    """Of each row's values, a step counting once.

    Attributes:
        count: int64 [batch].
        mean: float64 [batch]; 0 without values, as all below.
        squares: float64 [batch], the sum of squared distances from the mean.
        first: float64 [batch], the first value.
        varied: bool [batch], whether two of them differ.
        opening: float64 [batch], the signal at the first response token, 0 where it does not cover that.
        changes: int64 [batch], of a token-level signal: response tokens whose signal is not that of the one before.
    """

    count: Tensor
    mean: Tensor
    squares: Tensor
    first: Tensor
    varied: Tensor
    opening: Tensor
    changes: Tensor

    def scale(self, pool: Pool, *, std_eps: float, correction: int) -> tuple[Tensor, Tensor]:
        """The mean of each row's pool, and one over its standard deviation plus std_eps: those of `standardize`.

        Args:
            pool: The pool of each row, with a `Pool.rest`.
            std_eps: As in `stepcredit.ops.scaling.standardize`.
            correction: As there.

        Returns:
            Two float64 [batch]; the second is 0 where the pool's values are all equal, or no more than ``correction``.
        """
        total = pool.sum(self.count)
        mean = pool.sum(self.count * self.mean) / total.clamp(min=1)
        squares = pool.sum(self.squares + self.count * (self.mean - pool.spread(mean)).square())
        varied = (pool.sum(self.varied.long()) > 0) | pool.only(self.count > 0).varies(self.first)
        varied &= total > correction
        variance = torch.where(varied, squares / (total - correction).clamp(min=1), 1.0)
        scale = torch.where(varied, 1 / (variance.rsqrt().reciprocal() + std_eps), 0.0)  # wakes no threads
        return pool.spread(mean), pool.spread(scale)


@dataclass(frozen=True, eq=False)
class Returns:
    """Of each row's returns-to-go, over its response tokens.

    Attributes:
        mean: float64 [batch]; 0 without response tokens, as all below.
        squares: float64 [batch], the sum of squared distances from the mean.
        least: float64 [batch].
        greatest: float64 [batch].
        whole: float64 [batch], the return at the first response token: the sum of the row.
        count: int64 [batch], how many values of the signal were summed, a step counting once.
    """

    mean: Tensor
    squares: Tensor
    least: Tensor
    greatest: Tensor
    whole: Tensor
    count: Tensor


@dataclass(frozen=True, eq=False)
class Grouped:
    """The rows group by group, for what is compared position by position.

    Attributes:
        rows: The rows.
        groups: The group of each row; those that do not count are in its `Pool.rest`.
    """

    rows: Rows
    groups: Pool

    @cached_property
    def order(self) -> Tensor:
        """int64 [batch], the rows in the order of their groups; those that do not count come last."""
        return torch.argsort(self.groups.index, stable=True)

    @cached_property
    def edges(self) -> Tensor:
        """int64 [n + 1], group g's rows are ``order[edges[g]:edges[g + 1]]``; the last group is the rest."""
        return torch.cat([self.order.new_zeros(1), self.groups.count.cumsum(0)])


def flat(x: Tensor) -> Tensor:
    """A tensor's numbers as one axis, where they stand if they stand together."""
    return x.detach().resolve_neg().contiguous().view(-1)
