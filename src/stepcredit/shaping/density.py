"""Divide-Length: from chunk values to advantages that neither inflate nor truncate length."""

from typing import Literal

from torch import Tensor

from stepcredit.ops.returns import return_to_go
from stepcredit.ops.segments import Segments

ChunkValue = Literal["last", "mean", "sum"]


def chunk_values(x: Tensor, chunks: Segments, how: ChunkValue = "last") -> Tensor:
    """One value a chunk from its tokens' values.

    Args:
        x: float64 [N], the fused value of each token.
        chunks: The chunks of the N tokens.
        how: "last" token's value (PASS), the "mean" or the "sum".

    Returns:
        float64 [M].
    """
    if how == "last":
        return x[chunks.last]
    return chunks.mean(x) if how == "mean" else chunks.sum(x)


def divide_length(values: Tensor, rows: Segments, k: float = 0.7) -> Tensor:
    """The chunks' return-to-go over the number of chunks still to come, to the power k.

        G[j] = sum over j' >= j of values[j'];   A[j] = G[j] / (K - j + 1)^k     (j = 1..K)

    Args:
        values: float64 [M], chunk values, packed rollout after rollout.
        rows: How the rollouts cut the M chunks.
        k: At least 0. 0 is the plain return-to-go, 1 the mean of the remaining chunks.

    Returns:
        float64 [M]. The last chunk keeps its own value whatever k; the first one's is the path score S(o).

    Degenerate cases:
        K equal chunks of value e give S = e K^(1-k).

    Example:
        >>> import torch
        >>> divide_length(torch.tensor([1.0, 2.0, 3.0]), Segments.from_lengths(torch.tensor([3])), k=1.0).tolist()
        [2.0, 2.5, 3.0]

    Reference:
        PASS, arXiv 2606.29296, eq. 7 and algorithm 3.
    """
    remaining = rows.spread(rows.lengths) - rows.positions
    return return_to_go(values, rows) / remaining.to(values.dtype).pow(k)
