"""PRIME's baseline for token rewards: what the other responses of the group earn a token on average."""

from typing import Literal

import torch
from torch import Tensor

from stepcredit.ops.groups import Pool
from stepcredit.ops.segments import Segments

TokenBaseline = Literal["code", "paper"]


def token_leave_one_out(
    p: Tensor, rows: Segments, groups: Pool, covered: Tensor, how: TokenBaseline = "code"
) -> Tensor:
    """A token's reward minus the mean of its group's response means.

        m_j = mean of p over the covered tokens of response j
        code:   b[i, t] = n / (n - 1) (p[i, t] - mean over all n responses of m_j)
        paper:  b[i, t] = p[i, t] - mean over the n - 1 other responses of m_j

    Args:
        p: float64 [N], token rewards, 0 where not covered.
        rows: The R responses.
        groups: The group of each response.
        covered: bool [N], the tokens that have a reward; n counts the group's responses with at least one.
        how: As the authors' public code does it, or as the paper's equation reads.

    Returns:
        float64 [N], 0 where not covered.

    Degenerate cases:
        A group with one such response gets 0.

    Example:
        >>> rows, groups = Segments.from_lengths(torch.tensor([2, 1])), Pool.of(torch.tensor([0, 0]))
        >>> p = torch.tensor([1.0, 3.0, 4.0], dtype=torch.float64)
        >>> token_leave_one_out(p, rows, groups, torch.tensor([True, True, True]), "paper").tolist()
        [-3.0, -1.0, 2.0]

    Reference:
        Cui et al., PRIME, arXiv 2502.01456; "code" is its recipe for verl.
    """
    sizes = rows.sum(covered.to(p.dtype))
    scored = sizes > 0
    means = torch.where(scored, rows.sum(p) / sizes.clamp(min=1), 0.0)
    factor, baseline = baseline_of_means(means, scored, groups, how)
    return torch.where(covered, rows.spread(factor) * (p - rows.spread(baseline)), 0.0)


def baseline_of_means(means: Tensor, scored: Tensor, groups: Pool, how: TokenBaseline) -> tuple[Tensor, Tensor]:
    """The numbers a response of `token_leave_one_out`: ``b[i, t] = factor[i] (p[i, t] - baseline[i])``.

    Args:
        means: float64 [R], m; 0 for a response without a reward.
        scored: bool [R], the responses that have one.
        groups: The group of each response.
        how: As there.

    Returns:
        Two float64 [R]; the factor is 0 in a group with one scored response.
    """
    n = groups.spread(groups.sum(scored.to(means.dtype)))
    sums = groups.spread(groups.sum(means))
    others = (n - 1).clamp(min=1)
    if how == "code":
        factor, baseline = n / others, sums / n.clamp(min=1)
    else:
        factor, baseline = torch.ones_like(n), (sums - means) / others
    return torch.where(n > 1, factor, 0.0), baseline
