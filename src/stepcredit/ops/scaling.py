"""The operators that make values of one pool comparable: center, standardize, whiten, Abs-Max Scaling.

Each has two forms. ``standardize(x, pool)`` is what one wants nearly always. ``standardizer(x, pool)`` returns the map
with its scale fixed from x: the map is linear, so that the parts of a sum can each be sent through the scale of the
whole and add up to the whole's result (this is how an estimator's terms add up to its advantages).
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from stepcredit.ops.groups import Pool
from stepcredit.ops.kernels.cpu import pools

LinearMap = Callable[[Tensor], Tensor]
Singletons = Literal["zero", "raw"]
WHITEN_VAR_EPS = 1e-8


def center(x: Tensor, pool: Pool) -> Tensor:
    """``x - mean of x over its pool``; float [M] -> float [M], each pool sums to 0."""
    if pool.process_group is None and pools.reads(x, pool.index, small=pool.rest):
        return pools.centered(x, pool.index, pool.n)
    return x - pool.spread(pool.mean(x))


def standardize(x: Tensor, pool: Pool, *, std_eps: float = 1e-6, correction: int = 1) -> Tensor:
    """The z-score of each value in its pool (PASS's Masked-Norm).

        N(x; S) = (x - mean S) / (std S + std_eps)

    Args:
        x: float64 [M].
        pool: The pool of each value.
        std_eps: Added to the standard deviation.
        correction: Delta degrees of freedom of the standard deviation (1: the sample's, 0: the population's).

    Returns:
        float64 [M]; each pool has mean 0.

    Degenerate cases:
        A pool whose values are all equal, or that holds no more than ``correction`` values, gives exactly 0.

    Example:
        >>> x = torch.tensor([1.0, 3.0, 5.0, 5.0], dtype=torch.float64)
        >>> standardize(x, Pool.of(torch.tensor([0, 0, 1, 1])), std_eps=0.0, correction=0).tolist()
        [-1.0, 1.0, 0.0, 0.0]

    Reference:
        Shao et al., DeepSeekMath (GRPO), arXiv 2402.03300, 4.1.2; PASS, arXiv 2606.29296, 3.
    """
    return standardizer(x, pool, std_eps=std_eps, correction=correction)(x)


def standardizer(x: Tensor, pool: Pool, *, std_eps: float = 1e-6, correction: int = 1) -> LinearMap:
    """The map ``part -> (part - mean part) / (std x + std_eps)``, which sends x to `standardize` of x."""
    scale = _where_varied(x, pool, correction, by_deviation(std_eps))
    return lambda part: center(part, pool) * pool.spread(scale)


def by_deviation(std_eps: float) -> LinearMap:
    """The rule variance -> scale of `standardizer`: one over the standard deviation plus ``std_eps``."""
    return lambda variance: 1 / (variance.rsqrt().reciprocal() + std_eps)  # sqrt and pow wake threads for so few


def by_whitening(variance: Tensor) -> Tensor:
    """The rule variance -> scale of `whitener`."""
    return (variance + WHITEN_VAR_EPS).rsqrt()


def whitener(x: Tensor, pool: Pool) -> LinearMap:
    """The map ``part -> (part - mean part) / sqrt(var x + 1e-8)``, correction 1; x itself goes to its whitening.

    Degenerate cases:
        A pool whose values are all equal, or of one value, gives exactly 0.

    Reference:
        The whitening of REINFORCE++ (arXiv 2501.03262) and PRIME (arXiv 2502.01456) as their public code has it.
    """
    scale = _where_varied(x, pool, 1, by_whitening)
    return lambda part: center(part, pool) * pool.spread(scale)


def whiten(x: Tensor, pool: Pool) -> Tensor:
    """``(x - mean) / sqrt(var + 1e-8)`` over each pool, correction 1; float64 [M] -> float64 [M]."""
    return whitener(x, pool)(x)


def abs_max_scaler(x: Tensor, pool: Pool) -> LinearMap:
    """The map ``part -> part / max |x|``, which sends x to `abs_max_scale` of x."""
    largest = pool.max(x.abs())
    divisor = torch.where(largest > 0, largest, 1.0)  # not the reciprocal: it overflows where the values are denormal
    return lambda part: part / pool.spread(divisor)


def abs_max_scale(x: Tensor, pool: Pool) -> Tensor:
    """Divides by the pool's largest absolute value: results in [-1, 1], sign and zero kept.

    Args:
        x: float64 [M].
        pool: The pool of each value.

    Returns:
        float64 [M].

    Degenerate cases:
        A pool of zeros gives exactly 0.

    Example:
        >>> abs_max_scale(torch.tensor([1.0, -4.0, 0.0]), Pool.of(torch.tensor([0, 0, 0]))).tolist()
        [0.25, -1.0, 0.0]

    Reference:
        PASS, arXiv 2606.29296, section 3 (Abs-Max Scaling).
    """
    return abs_max_scaler(x, pool)(x)


def leave_one_out(x: Tensor, pool: Pool) -> Tensor:
    """``x - mean of the pool's other values`` = n / (n - 1) (x - mean); a value alone in its pool gives 0.

    Args:
        x: float64 [M].
        pool: The pool of each value.

    Returns:
        float64 [M]; each pool sums to 0.

    Reference:
        Ahmadian et al., RLOO, arXiv 2402.14740.
    """
    n = pool.count.to(x.dtype)
    return center(x, pool) * pool.spread(n / (n - 1).clamp(min=1))


def on_rollouts(operator: LinearMap, pool: Pool, singletons: Singletons) -> LinearMap:
    """The operator for per-rollout values, with the rule for groups of one rollout.

    A lone rollout has no peers to be compared with: "zero" gives it 0, "raw" its value as it is.
    """
    alone = pool.spread(pool.count) == 1

    def apply(x: Tensor) -> Tensor:
        return torch.where(alone, x if singletons == "raw" else 0.0, operator(x))

    return apply


def _where_varied(x: Tensor, pool: Pool, correction: int, scale: Callable[[Tensor], Tensor]) -> Tensor:
    """``scale(variance)`` of each pool whose values vary, else 0; the values are compared before any arithmetic."""
    if pool.process_group is None and pools.reads(x, pool.index, small=pool.rest):
        squares, varied = pools.squares(x, pool.index, pool.n)
    else:
        squares, varied = pool.sum(center(x, pool).square()), pool.varies(x)
    varied &= pool.count > correction
    degrees = (pool.count - correction).clamp(min=1)
    return torch.where(varied, scale(torch.where(varied, squares / degrees, 1.0)), 0.0)
