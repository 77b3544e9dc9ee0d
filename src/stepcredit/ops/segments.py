"""Consecutive pieces of a flat axis: the tokens of a rollout, the tokens of a chunk, the chunks of a rollout."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from stepcredit.errors import InputError


@dataclass(frozen=True, eq=False)
class Segments:
    """A flat axis of N items cut into n consecutive, non-empty pieces.

    One idea serves every level of a batch: rollouts cut the packed response tokens, chunks cut them finer, and
    each rollout cuts the list of chunks. No piece is ever empty (a rollout without tokens never gets here).

    Attributes:
        offsets: int64 [n + 1], where piece s is ``offsets[s]:offsets[s + 1]``; as ``cu_seqlens`` elsewhere.
        size: N, the number of items.

    Example:
        >>> rows = Segments.from_lengths(torch.tensor([2, 3]))
        >>> rows.ids.tolist(), rows.positions.tolist(), rows.last.tolist()
        ([0, 0, 1, 1, 1], [0, 1, 0, 1, 2], [1, 4])
        >>> rows.sum(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])).tolist()
        [3.0, 12.0]
    """

    offsets: Tensor
    size: int

    @classmethod
    def from_lengths(cls, lengths: Tensor) -> "Segments":
        """Pieces of the given lengths (int64 [n], each at least 1)."""
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        return cls(offsets, int(offsets[-1]))

    @classmethod
    def from_starts(cls, starts: Tensor) -> "Segments":
        """Pieces that open where ``starts`` (bool [N]) is True; the first item must open one."""
        first = starts.nonzero().squeeze(1)
        return cls(torch.cat([first, first.new_tensor([starts.numel()])]), starts.numel())

    @classmethod
    def from_mask(cls, mask: Tensor) -> "Segments":
        """The rows of ``x[mask]`` for a bool [batch, time] mask.

        Raises:
            InputError: A row of the mask holds no True: its piece would be empty.
        """
        lengths = mask.sum(1)
        if (lengths == 0).any():
            raise InputError(
                f"`mask` must hold a True in every row; got none in row {int((lengths == 0).nonzero()[0])}."
            )
        return cls.from_lengths(lengths)

    def __len__(self) -> int:
        """The number of pieces, n."""
        return self.offsets.numel() - 1

    @cached_property
    def lengths(self) -> Tensor:
        """int64 [n]."""
        return self.offsets.diff()

    @cached_property
    def max_length(self) -> int:
        """The longest piece; 0 without pieces."""
        return int(self.lengths.max()) if len(self) else 0

    @cached_property
    def ids(self) -> Tensor:
        """int64 [N]: the piece that each item belongs to."""
        pieces = torch.arange(len(self), device=self.offsets.device)
        return pieces.repeat_interleave(self.lengths, output_size=self.size)

    @cached_property
    def positions(self) -> Tensor:
        """int64 [N]: 0, 1, ... within each piece."""
        return torch.arange(self.size, device=self.offsets.device) - self.spread(self.first)

    @property
    def first(self) -> Tensor:
        """int64 [n]: the index of each piece's first item."""
        return self.offsets[:-1]

    @property
    def last(self) -> Tensor:
        """int64 [n]: the index of each piece's last item."""
        return self.offsets[1:] - 1

    def sum(self, x: Tensor) -> Tensor:
        """[N] -> [n]: the sum over each piece."""
        return x.new_zeros(len(self)).index_add_(0, self.ids, x)

    def mean(self, x: Tensor) -> Tensor:
        """[N] -> [n]: the mean over each piece."""
        return self.sum(x) / self.lengths

    def spread(self, values: Tensor) -> Tensor:
        """[n] -> [N]: each item gets its piece's value."""
        return values.index_select(0, self.ids)  # several times as fast as values[ids]

    def pad(self, x: Tensor) -> Tensor:
        """[N] -> [n, max_length], left-justified, zeros after each piece's end."""
        padded = x.new_zeros(len(self) * self.max_length)
        return padded.scatter_(0, self._places(), x).view(len(self), self.max_length)

    def unpad(self, padded: Tensor) -> Tensor:
        """[n, max_length] -> [N]: the inverse of `pad`."""
        return padded.reshape(-1).index_select(0, self._places())

    def _places(self) -> Tensor:
        """int64 [N]: where each item stands in a flattened [n, max_length]."""
        return self.ids * self.max_length + self.positions

    def buckets(self) -> "Iterator[tuple[Segments, Tensor | slice]]":
        """The pieces sorted by length into few buckets, each with the items that it takes from the axis.

        Within a bucket the longest piece is less than twice the shortest, so that padding a bucket costs at most as
        much again as its items, however ragged the whole.
        """
        scales = torch.frexp(self.lengths.double()).exponent  # the power of two that the length lies under
        found = torch.unique(scales).tolist()
        if len(found) == 1:
            yield self, slice(None)
            return
        for scale in found:
            chosen = scales == scale
            yield Segments.from_lengths(self.lengths[chosen]), self.spread(chosen).nonzero().squeeze(1)

    def within(self, rows: "Segments") -> "Segments":
        """How the coarser ``rows`` of the same items cut the list of these pieces, none of which crosses a row."""
        return Segments.from_lengths(torch.bincount(rows.ids[self.first], minlength=len(rows)))
