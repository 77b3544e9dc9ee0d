"""Compaction: from padded or packed token axes to the response tokens that count, and back."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from stepcredit.errors import InputError
from stepcredit.ops import kernels
from stepcredit.ops.kernels.choosing import interpreted
from stepcredit.ops.kernels.operands import Rows
from stepcredit.ops.segments import Segments


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the response tokens of the rollouts that count stand in a batch's token axes.

    All credit is computed on these N packed tokens; whatever else the tensors hold (padding, tool output, excluded
    rollouts) is never read, so nothing there can leak.

    Attributes:
        response_mask: bool, a token tensor of the batch: [batch, time] padded, [tokens] packed.
        row_mask: bool [batch], or None.
        cu_seqlens: int64 [batch + 1] in the packed layout, else None.
    """

    response_mask: Tensor
    row_mask: Tensor | None
    cu_seqlens: Tensor | None

    @property
    def shape(self) -> torch.Size:
        """The shape of a token tensor: [batch, time] padded, [tokens] packed."""
        return self.response_mask.shape

    @property
    def device(self) -> torch.device:
        """Where the batch's tensors are."""
        return self.response_mask.device

    @property
    def in_place(self) -> Rows:
        """The rows as kernels read them; only where `stepcredit.ops.kernels.refusal` has nothing to say."""
        return self._interpreted if interpreted() else self._compiled

    @cached_property
    def _compiled(self) -> Rows:
        return Rows.of(self.response_mask, self.row_mask, self.cu_seqlens)

    @cached_property
    def _interpreted(self) -> Rows:
        return Rows.of(self.response_mask, self.row_mask, self.cu_seqlens)

    @cached_property
    def counted(self) -> Tensor:
        """bool, a token tensor: the response tokens of the rows that are not masked out."""
        if self.row_mask is None:
            return self.response_mask
        if self.cu_seqlens is None:
            return self.response_mask & self.row_mask[:, None]
        return self.response_mask & self.row_mask.repeat_interleave(self.cu_seqlens.diff())

    @cached_property
    def lengths(self) -> Tensor:
        """int64 [batch], the response tokens of each row; 0 for one that is masked out."""
        if kernels.refusal(self.response_mask.numel(), self.device) is None:
            return self.in_place.length
        if self.cu_seqlens is None:
            return self.counted.sum(1)
        sequences = torch.arange(self.cu_seqlens.numel() - 1, device=self.device)
        row = sequences.repeat_interleave(self.cu_seqlens.diff())
        return torch.bincount(row[self.counted], minlength=sequences.numel())

    @cached_property
    def live(self) -> Tensor:
        """int64 [R], the rows of the batch that count: not masked out, and with a response token."""
        return self.lengths.nonzero().squeeze(1)

    @cached_property
    def rows(self) -> Segments:
        """Cuts the N tokens into the R live rollouts."""
        return Segments.from_lengths(self.lengths[self.live])

    @cached_property
    def tokens(self) -> Tensor:
        """int64 [N], each response token's index into a flattened token tensor."""
        return self.counted.flatten().nonzero().squeeze(1)

    def pack(self, x: Tensor) -> Tensor:
        """A token tensor (``shape``) -> its response tokens [N]."""
        return x.flatten().index_select(0, self.tokens)

    def empty(self, dtype: torch.dtype) -> Tensor:
        """An uninitialized token tensor."""
        return torch.empty(self.shape, dtype=dtype, device=self.device)

    def check_out(self, out: Tensor, dtype: torch.dtype) -> Tensor:
        """The tensor itself, if credit can be written to it.

        Raises:
            InputError: It is no tensor, of another shape, dtype or device, not contiguous, or part of a graph.
        """
        device = self.device
        rule = f"`out` must be a contiguous {dtype} tensor of shape {list(self.shape)} on {device}, without grad"
        if not isinstance(out, Tensor):
            raise InputError(f"{rule}; got {type(out).__name__}.")
        fits = out.shape == self.shape and out.dtype == dtype and out.device == device
        if not fits or not out.is_contiguous() or out.requires_grad or out.is_neg():
            found = f"{out.dtype} of shape {list(out.shape)}, strides {list(out.stride())}, on {out.device}"
            found += f"{', requires_grad' if out.requires_grad else ''}{', a negative view' if out.is_neg() else ''}"
            raise InputError(f"{rule}; got {found}.")
        return out

    def by_row(self, values: Tensor) -> Tensor:
        """[R] -> [batch]: 0 for the rows that do not count."""
        return values.new_zeros(self.lengths.numel()).index_copy_(0, self.live, values)

    def spread(self, values: Tensor, *, out: Tensor) -> Tensor:
        """[R] -> a token tensor: each rollout's number on its response tokens, 0 elsewhere; ``out``, returned."""
        by_row = self.by_row(values.to(out.dtype))
        if kernels.refusal(out.numel(), self.device) is None:
            kernels.package(self.device).spread(by_row, self.in_place, out)
            return out
        if self.cu_seqlens is None:
            by_token = by_row[:, None]
        else:
            by_token = by_row.repeat_interleave(self.cu_seqlens.diff(), output_size=out.numel())
        return torch.where(self.counted, by_token, by_row.new_zeros(()), out=out)

    def unpack(self, packed: Tensor, *, fill: float, out: Tensor) -> Tensor:
        """[N] -> a token tensor (``shape``) that holds ``fill`` everywhere else: ``out``, which is returned."""
        out.fill_(fill)
        out.view(-1).index_copy_(0, self.tokens, packed.to(out.dtype))
        return out


@dataclass(frozen=True, eq=False)
class Steps:
    """The steps of a process signal on packed tokens: what its pools count, once each.

    With step ids a step is the run of tokens that share one; without, every covered token is a step of its own.

    Attributes:
        ends: int64 [M], the packed index of each step's last token.
        of_token: int64 [N], the step of each token; -1 where the signal does not cover it.
    """

    ends: Tensor
    of_token: Tensor

    @classmethod
    def of(cls, rows: Segments, covered: Tensor, step_ids: Tensor | None) -> "Steps":
        """From the covered tokens (bool [N]) and their step ids (int64 [N], or None for token-level signals)."""
        at = covered.nonzero().squeeze(1)
        if step_ids is None:
            is_end = torch.ones_like(at, dtype=torch.bool)
        else:
            row, step = rows.ids[at], step_ids[at]
            is_end = torch.ones_like(at, dtype=torch.bool)
            is_end[:-1] = (row[1:] != row[:-1]) | (step[1:] != step[:-1])
        of_token = torch.full_like(rows.ids, -1)
        of_token[at] = is_end.long().cumsum(0) - is_end.long()
        return cls(at[is_end], of_token)

    def spread(self, values: Tensor) -> Tensor:
        """[M] -> [N]: every token gets its step's value; 0 where uncovered."""
        after_zero = torch.cat([values.new_zeros(1), values])  # what no step covers reads the zero
        return after_zero.index_select(0, self.of_token + 1)

    def place(self, values: Tensor) -> Tensor:
        """[M] -> [N]: each step's value on its last token, 0 elsewhere."""
        return values.new_zeros(self.of_token.numel()).index_copy_(0, self.ends, values)
