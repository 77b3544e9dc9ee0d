"""What evaluation says with numbers: pass@k without bias, and intervals that resample problems, not completions."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stepcredit.errors import InputError

Floats = NDArray[np.float64]


class Estimate(NamedTuple):
    """A mean over problems and its interval.

    Attributes:
        mean: Over the problems at hand.
        low: Lower end of the interval.
        high: Upper end.
    """

    mean: float
    low: float
    high: float


def pass_at_k(n: ArrayLike, c: ArrayLike, k: int) -> Floats:
    """Chance that at least one of k completions is right, estimated without bias from n >= k of them.

    ``1 - C(n - c, k) / C(n, k) = 1 - prod(1 - k / i for i in n - c + 1 .. n)``: the share of the k-subsets of the n
    completions that hold a right one. The product neither overflows nor cancels.

    Args:
        n: int [problems] or one number, completions drawn a problem.
        c: int [problems], how many of them are right; 0 to n.
        k: At least 1, at most the smallest n.

    Returns:
        float64 [problems], in [0, 1]; for ``k=1`` it is ``c / n``.

    Raises:
        InputError: ``k`` or ``c`` is out of its range, or a count is no whole number.

    Degenerate cases:
        c = 0 gives 0; fewer than k wrong ones (n - c < k) give exactly 1; no problems give an empty array.

    Example:
        >>> pass_at_k([4, 4, 4], [0, 1, 3], k=2).tolist()
        [0.0, 0.5, 1.0]

    Reference:
        Chen et al., Evaluating Large Language Models Trained on Code, arXiv 2107.03374, eq. 1 and figure 3.
    """
    drawn, right = (x.astype(np.int64) for x in np.broadcast_arrays(n, c))
    if np.any(drawn != n) or np.any(right != c):
        raise InputError("`n` and `c` must be whole numbers; got a fraction.")
    if k < 1 or (drawn.size and k > drawn.min()):
        fewest = f"{drawn.min()}" if drawn.size else "none"
        raise InputError(f"`k` must be from 1 to the completions of a problem, {fewest} at the fewest; got {k}.")
    if np.any(right < 0) or np.any(right > drawn):
        worst = int(np.argmax((right < 0) | (right > drawn)))
        raise InputError(f"`c` must be from 0 to `n`; got {right.flat[worst]} of {drawn.flat[worst]}.")
    missed = [
        0.0 if total - hits < k else np.prod(1.0 - k / np.arange(total - hits + 1, total + 1))
        for total, hits in zip(drawn.flat, right.flat, strict=True)
    ]
    return 1.0 - np.array(missed, dtype=np.float64).reshape(drawn.shape)


def bootstrap_interval(
    values: ArrayLike, *, weights: ArrayLike | None = None, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """The mean over problems with its percentile bootstrap interval; whole problems are drawn with replacement.

    ``mean = sum(w * v) / sum(w)``. The completions of one problem resemble each other, so problems are resampled
    and each brings all of its completions. The same seed and number of problems draw the same resamples, so that
    the metrics of one evaluation share theirs.

    Args:
        values: float [problems], finite; each the mean over the problem's completions.
        weights: float [problems], not negative: how many completions a value speaks for, where that differs between
            problems (the length of correct ones, say). A weight of 0 leaves the value unread. None: all the same.
        level: Nominal coverage, inside (0, 1).
        resamples: How many, at least 1.
        seed: Chooses the resamples.

    Returns:
        The mean, and the two percentiles around it.

    Raises:
        InputError: No problems or none with a weight, a value that is not finite, an argument out of its range.

    Degenerate cases:
        One problem, or equal values: both ends are the mean, exactly; so no error, or nothing but errors, has an
        interval of no width. A resample without any weight is left out. Below about 20 problems the interval is
        too narrow.

    Example:
        >>> bootstrap_interval([0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0])
        Estimate(mean=0.625, low=0.25, high=1.0)

    Reference:
        Efron, Bootstrap Methods: Another Look at the Jackknife, 1979, as a cluster bootstrap with problems as clusters.
    """
    v, w = _checked(values, weights)
    if not 0.0 < level < 1.0:
        raise InputError(f"`level` must be inside (0, 1); got {level}.")
    if resamples < 1:
        raise InputError(f"`resamples` must be at least 1; got {resamples}.")
    origin = v[w > 0][0]
    v = np.where(w > 0, v - origin, 0.0)  # from here on equal values are zeros, which every mean keeps exactly
    weighed, rng = w * v, np.random.default_rng(seed)
    means: list[float] = []
    at_once = max(1, 2**20 // v.size)  # resamples, so that memory stays small
    for done in range(0, resamples, at_once):
        drawn = rng.integers(v.size, size=(min(at_once, resamples - done), v.size))
        totals = w[drawn].sum(axis=1)
        means += (weighed[drawn].sum(axis=1)[totals > 0] / totals[totals > 0]).tolist()
    mean = weighed.sum() / w.sum()
    low, high = np.quantile(means or [mean], [(1.0 - level) / 2, (1.0 + level) / 2])
    return Estimate(float(origin + mean), float(origin + low), float(origin + high))


def paired_difference(
    a: ArrayLike, b: ArrayLike, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """The mean of ``b - a`` over the same problems with its interval; what the two share cancels.

    Args:
        a: float [problems], one value a problem.
        b: The same problems in the same order.
        level: As for `bootstrap_interval`.
        resamples: As for `bootstrap_interval`.
        seed: As for `bootstrap_interval`.

    Returns:
        Positive where b is larger; an interval without 0 is a difference that resampling does not explain.

    Raises:
        InputError: Different numbers of problems; or as for `bootstrap_interval`.

    Degenerate cases:
        ``b = a + constant``: an interval of no width (up to the rounding of the subtraction).

    Example:
        >>> paired_difference([0.0, 0.5, 1.0], [0.5, 1.0, 1.5])
        Estimate(mean=0.5, low=0.5, high=0.5)
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise InputError(f"`b` must have the problems of `a`, {first.shape}; got {second.shape}.")
    return bootstrap_interval(second - first, level=level, resamples=resamples, seed=seed)


def _checked(values: ArrayLike, weights: ArrayLike | None) -> tuple[Floats, Floats]:
    v = np.asarray(values, dtype=np.float64)
    w = np.ones(v.shape) if weights is None else np.asarray(weights, dtype=np.float64)
    if v.ndim != 1 or not v.size:
        raise InputError(f"`values` must be [problems], at least one; got shape {v.shape}.")
    if w.shape != v.shape or not np.all(np.isfinite(w)) or np.any(w < 0) or not np.any(w > 0):
        raise InputError("`weights` must be one a value, finite, not negative and not all 0; got others.")
    if not np.all(np.isfinite(v[w > 0])):
        raise InputError(f"`values` must be finite; got {v[w > 0][~np.isfinite(v[w > 0])][0]}.")
    return v, w
