"""Chunk-by-Value: cut a response where the process signal changes."""

import torch
from torch import Tensor

from stepcredit.ops.groups import Pool
from stepcredit.ops.kernels.cpu import along
from stepcredit.ops.segments import Segments


def chunk_by_value(u: Tensor, boundaries: Tensor, rows: Segments, *, eta: float = 1e-8, min_chunk: int = 1) -> Segments:
    """Run-length by equality: a chunk closes when the signal leaves its first value, or at a given boundary.

        v = u[first]; at t: if |u[t] - v| > eta or boundary[t]: a new chunk opens at t and v = u[t]

    Args:
        u: float64 [N], the value that cuts: the raw signal in step mode, its group average in token mode.
        boundaries: bool [N], tokens that always open a chunk (a step boundary, an edge of the signal's coverage).
        rows: The rollouts; each one's first token opens a chunk.
        eta: Tolerance of the equality, in u's unit; the comparison is with the chunk's first value, so that a slow
            drift is cut too.
        min_chunk: The value test may close a chunk only once it holds this many tokens; boundaries always do.

    Returns:
        The chunks, as segments of the N tokens; none crosses a row.

    Degenerate cases:
        A constant u without boundaries gives one chunk a row.

    Example:
        >>> u = torch.tensor([0.1, 0.1, 0.5, 0.5]).double()
        >>> rows = Segments.from_lengths(torch.tensor([4]))
        >>> chunk_by_value(u, torch.tensor([False, False, False, True]), rows).lengths.tolist()
        [2, 1, 1]

    Reference:
        PASS, arXiv 2606.29296, eq. 6 and algorithm 2. ``min_chunk`` is an addition.
    """
    if along.reads(u, rows.size) and boundaries.shape == u.shape and boundaries.dtype == torch.bool:
        return Segments.from_starts(along.chunk_starts(u, boundaries, rows.offsets, eta, min_chunk))
    forced = boundaries.clone()
    forced[rows.first] = True
    jump = torch.zeros_like(u)
    jump[1:] = (u[1:] - u[:-1]).abs()
    # Where neighbors are either equal or more than eta apart, comparing neighbors is comparing with the first value.
    # Rows with anything in between (or with a minimum length) are walked token by token.
    starts = forced | (jump > eta)
    unclear = ~forced & (jump > 0) & (jump <= eta) if min_chunk == 1 else torch.ones_like(forced)
    walk = rows.sum(unclear.double()) > 0
    if walk.any():
        tokens = rows.spread(walk)
        chosen = Segments.from_lengths(rows.lengths[walk])
        starts[tokens] = _walk(u[tokens], forced[tokens], chosen, eta, min_chunk)
    return Segments.from_starts(starts)


def _walk(u: Tensor, forced: Tensor, rows: Segments, eta: float, min_chunk: int) -> Tensor:
    """The algorithm as printed, over many rows at once: bool [N], where a chunk opens."""
    starts = torch.empty_like(forced)
    for part, items in rows.buckets():
        starts[items] = _walk_together(u[items], forced[items], part, eta, min_chunk)
    return starts


def _walk_together(u: Tensor, forced: Tensor, rows: Segments, eta: float, min_chunk: int) -> Tensor:
    values, closes = rows.pad(u), rows.pad(forced)
    first, size = values[:, 0].clone(), torch.zeros_like(rows.lengths)
    for t in range(rows.max_length):
        left = ((values[:, t] - first).abs() > eta) & (size >= min_chunk)
        opens = closes[:, t] | left
        first = torch.where(opens, values[:, t], first)
        size = torch.where(opens, 1, size + 1)
        closes[:, t] = opens
    return rows.unpad(closes)


def change_points(x: Tensor, rows: Segments) -> Tensor:
    """Tokens whose x (any dtype) differs from the token before, and each row's first token; bool [N]."""
    changed = torch.ones(rows.size, dtype=torch.bool, device=x.device)
    changed[1:] = x[1:] != x[:-1]
    changed[rows.first] = True
    return changed


def group_average(x: Tensor, positions: Pool, rollouts: Tensor) -> Tensor:
    """``(1/G) sum over the group of x at the same position``; rollouts that have ended count 0.

    Args:
        x: float64 [N].
        positions: Pools of the tokens of one group at one position.
        rollouts: float64 or int [N], G of each token's group.

    Returns:
        float64 [N].

    Reference:
        PASS, arXiv 2606.29296, eq. 6: what cuts the chunks when the signal is token-level.
    """
    return positions.spread(positions.sum(x)) / rollouts
