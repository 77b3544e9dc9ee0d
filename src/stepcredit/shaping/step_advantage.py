"""SPRO's process credit: the policy's own log-ratio, compared position by position within the group."""

from typing import Literal

import torch
from torch import Tensor

from stepcredit.ops.groups import Pool
from stepcredit.ops.returns import return_so_far, return_to_go
from stepcredit.ops.scaling import center, standardize
from stepcredit.ops.segments import Segments

Attribution = Literal["prefix", "token", "return_to_go"]


def process_return(log_ratios: Tensor, rows: Segments, *, beta: float, attribution: Attribution = "prefix") -> Tensor:
    """What each token is compared by: which part of the rollout's scaled log-ratios counts at it.

        prefix (SPRO's cumulative process reward): x[t] = beta * sum over j <= t of log_ratio[j]
        token:                                     x[t] = beta * log_ratio[t]
        return_to_go:                              x[t] = beta * sum over j >= t of log_ratio[j]

    Args:
        log_ratios: float64 [N], log pi - log pi_ref of the sampled tokens, nats.
        rows: The rollouts.
        beta: The temperature of the max-entropy problem behind SPRO.
        attribution: One of the three above.

    Returns:
        float64 [N], nats times beta. The constant V(s_0) of the paper is left out: it cancels in the group.

    Example:
        >>> x = torch.tensor([1.0, 2.0, -1.0])
        >>> process_return(x, Segments.from_lengths(torch.tensor([3])), beta=0.5).tolist()
        [0.5, 1.5, 1.0]

    Reference:
        SPRO, arXiv 2507.01551, eq. 11 ("prefix"); the other two are additions.
    """
    x = beta * log_ratios
    if attribution == "token":
        return x
    return return_so_far(x, rows) if attribution == "prefix" else return_to_go(x, rows)


def masked_step_advantage(
    x: Tensor,
    positions: Pool,
    *,
    column_std: bool = False,
    std_eps: float = 1e-6,
    correction: int = 1,
    clip: float | None = None,
) -> Tensor:
    """Each token's value minus the mean of the group's rollouts that are still alive at its position.

        MSA[i, t] = x[i, t] - (1 / n_t) sum over the n_t live rollouts of x[i', t]

    Args:
        x: float64 [N], from `process_return`.
        positions: Pools of the tokens of one group at one position (its own rollout included).
        column_std: Also divide by the standard deviation over the live rollouts plus std_eps.
        std_eps: As in `standardize`; read with column_std.
        correction: As in `standardize`; read with column_std.
        clip: Largest absolute value, or None.

    Returns:
        float64 [N]; without clip each pool sums to 0.

    Degenerate cases:
        A lone survivor gets 0.

    Example:
        >>> masked_step_advantage(torch.tensor([1.0, 3.0, 7.0]), Pool.of(torch.tensor([0, 0, 1]))).tolist()
        [-1.0, 1.0, 0.0]

    Reference:
        SPRO, arXiv 2507.01551, eq. 12. Its "step" is the token position. column_std and clip are additions.
    """
    if column_std:
        msa = standardize(x, positions, std_eps=std_eps, correction=correction)
    else:
        msa = center(x, positions)
    return msa if clip is None else torch.clamp(msa, -clip, clip)
