"""pass@k against the counting of subsets; intervals against a plain loop, by their coverage, and at their edges."""

import itertools
import math

import numpy as np
import pytest

from stepcredit.errors import InputError
from stepcredit.runs.statistics import Estimate, bootstrap_interval, paired_difference, pass_at_k


def counted(n: int, c: int, k: int) -> float:
    """The share of the k-subsets of n completions, c of them right, that hold a right one."""
    subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
    return sum(map(any, subsets)) / len(subsets)


def test_pass_at_k_counts_subsets() -> None:
    for n in range(1, 8):
        for k in range(1, n + 1):
            want = [counted(n, c, k) for c in range(n + 1)]
            np.testing.assert_allclose(pass_at_k(n, range(n + 1), k), want, rtol=0, atol=1e-14)


def test_pass_at_k_takes_other_numbers_of_completions_for_each_problem() -> None:
    want = [counted(3, 1, 2), counted(5, 1, 2), counted(8, 3, 2)]
    np.testing.assert_allclose(pass_at_k([3, 5, 8], [1, 1, 3], 2), want, atol=1e-14)


def test_pass_at_k_neither_overflows_nor_cancels() -> None:
    assert pass_at_k(10_000, [1], 5_000)[0] == pytest.approx(
        0.5, abs=1e-12
    )  # one right among n: in k / n of the subsets
    exact = 1 - math.comb(9_900, 300) / math.comb(10_000, 300)  # whole numbers of 580 digits, divided once
    assert pass_at_k(10_000, [100], 300)[0] == pytest.approx(exact, rel=1e-12)


def test_pass_at_1_is_the_share_and_the_ends_are_exact() -> None:
    assert pass_at_k(8, [0, 2, 8], 1).tolist() == [0.0, 0.25, 1.0]
    assert pass_at_k(8, [0, 1, 7, 8], 8).tolist() == [0.0, 1.0, 1.0, 1.0]
    assert pass_at_k([], [], 3).tolist() == []


@pytest.mark.parametrize(
    ("n", "c", "k", "said"),
    [
        (4, [1], 5, "`k` must be from 1 to the completions of a problem, 4 at the fewest; got 5"),
        ([4, 2], [1, 1], 3, "2 at the fewest; got 3"),
        (4, [1], 0, "got 0"),
        (4, [1, 5], 1, "`c` must be from 0 to `n`; got 5 of 4"),
        (4, [-1], 1, "got -1 of 4"),
        (4, [0.5], 1, "whole numbers"),
    ],
)
def test_pass_at_k_refuses(n: int | list[int], c: list[int], k: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        pass_at_k(n, c, k)


def loop(values: list[float], weights: list[float], level: float, resamples: int, seed: int) -> Estimate:
    """The interval by hand: draw problems, average their completions, sort, read off the ranks."""
    rng, means = np.random.default_rng(seed), []
    for _ in range(resamples):
        drawn = [int(i) for i in rng.integers(len(values), size=len(values))]
        if sum(weights[i] for i in drawn) > 0:
            means.append(sum(weights[i] * values[i] for i in drawn) / sum(weights[i] for i in drawn))
    means.sort()

    def rank(share: float) -> float:
        place = share * (len(means) - 1)
        below = math.floor(place)
        above = min(below + 1, len(means) - 1)
        return means[below] + (place - below) * (means[above] - means[below])

    mean = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
    return Estimate(mean, rank((1 - level) / 2), rank((1 + level) / 2))


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_the_interval_is_the_plain_loop(level: float) -> None:
    rng = np.random.default_rng(3)
    values, weights = rng.normal(size=17).tolist(), [*rng.integers(0, 4, size=16).tolist(), 0]
    equal = bootstrap_interval(values, level=level, resamples=100, seed=5)
    assert equal == pytest.approx(loop(values, [1] * 17, level, 100, 5), abs=1e-14)
    weighted = bootstrap_interval([*values[:-1], math.nan], weights=weights, level=level, resamples=100, seed=5)
    assert weighted == pytest.approx(loop(values, weights, level, 100, 5), abs=1e-14)
    assert bootstrap_interval(values, seed=5) != bootstrap_interval(values, seed=6)


def test_the_interval_covers_as_often_as_it_says() -> None:
    """200 evaluations of 80 problems, 4 completions each; the problems' own rates are uniform, so the truth is 1/2."""
    rng, covered, level = np.random.default_rng(0), 0, 0.9
    for trial in range(200):
        shares = rng.binomial(4, rng.uniform(size=80)) / 4
        found = bootstrap_interval(shares, level=level, resamples=200, seed=trial)
        covered += found.low <= 0.5 <= found.high
    assert 0.84 <= covered / 200 <= 0.95  # 0.9 and almost three standard errors of 0.021, less a little at n = 80


def test_completions_of_one_problem_do_not_count_as_many() -> None:
    """Ten equal completions of each problem leave the interval where one of each has it."""
    values = np.random.default_rng(1).uniform(size=30)
    tens = bootstrap_interval(values, weights=[10] * 30)
    assert tens == pytest.approx(bootstrap_interval(values), abs=1e-14)
    naive = bootstrap_interval(np.repeat(values, 10))
    assert naive.high - naive.low < 0.5 * (tens.high - tens.low)  # 1 / sqrt(10) of it


def test_intervals_without_width() -> None:
    assert bootstrap_interval([0.3]) == Estimate(0.3, 0.3, 0.3)
    assert bootstrap_interval([0.1] * 7) == Estimate(0.1, 0.1, 0.1)
    assert bootstrap_interval([0.1, 0.7, math.inf], weights=[2, 0, 0], resamples=1) == Estimate(0.1, 0.1, 0.1)


def test_the_paired_interval_is_the_narrower() -> None:
    """What two policies share, the problems' difficulty, cancels: both rates vary by 0.29, their difference by 0.05."""
    rng = np.random.default_rng(2)
    a = rng.uniform(size=100)
    b = a + 0.1 + rng.normal(scale=0.05, size=100)
    paired = paired_difference(a, b)
    assert paired == pytest.approx(loop((b - a).tolist(), [1] * 100, 0.95, 2000, 0), abs=1e-14)
    assert paired.low > 0
    first, second = bootstrap_interval(a, seed=1), bootstrap_interval(b, seed=2)
    assert paired.high - paired.low < 0.3 * math.hypot(first.high - first.low, second.high - second.low)


@pytest.mark.parametrize(
    ("values", "options", "said"),
    [
        ([], {}, "at least one"),
        ([[1.0]], {}, r"got shape \(1, 1\)"),
        ([1.0, math.nan], {}, "`values` must be finite; got nan"),
        ([1.0, 2.0], {"weights": [0, 0]}, "not all 0"),
        ([1.0, 2.0], {"weights": [1, -1]}, "not negative"),
        ([1.0, 2.0], {"weights": [1]}, "one a value"),
        ([1.0], {"level": 1.0}, "`level`"),
        ([1.0], {"resamples": 0}, "`resamples`"),
    ],
)
def test_the_interval_refuses(values: list[float], options: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        bootstrap_interval(values, **options)


def test_a_pair_needs_the_same_problems() -> None:
    with pytest.raises(InputError, match=r"the problems of `a`, \(2,\); got \(3,\)"):
        paired_difference([1, 2], [1, 2, 3])
