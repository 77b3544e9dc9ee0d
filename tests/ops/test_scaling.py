"""The operators: hand arithmetic, and the edges."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepcredit import functional as F

ONE = F.Pool(torch.zeros(4, dtype=torch.long), 1)
NUMBERS = st.lists(st.integers(-100, 100), min_size=2, max_size=8)


def pool(n: int) -> F.Pool:
    return F.Pool(torch.zeros(n, dtype=torch.long), 1)


def test_standardize_by_hand() -> None:
    """1 2 3 6: mean 3, squares 4 1 0 9 sum to 14; sample variance 14/3, population 3.5."""
    x = torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64)
    for correction, variance in ((1, 14 / 3), (0, 3.5)):
        want = [(v - 3) / (variance**0.5 + 0.5) for v in x.tolist()]
        assert F.standardize(x, ONE, std_eps=0.5, correction=correction).tolist() == pytest.approx(want)
    want = [(v - 3) / (14 / 3 + 1e-8) ** 0.5 for v in x.tolist()]
    assert F.whiten(x, ONE).tolist() == pytest.approx(want)
    assert F.center(x, ONE).tolist() == [-2.0, -1.0, 0.0, 3.0]
    assert F.leave_one_out(x, ONE).tolist() == pytest.approx([1 - 11 / 3, 2 - 10 / 3, 3 - 3, 6 - 2])
    assert F.abs_max_scale(-x, ONE).tolist() == pytest.approx([-1 / 6, -1 / 3, -0.5, -1.0])


@pytest.mark.parametrize("value", [0.0, 0.1, 1e300, -7.3])
def test_equal_values_give_exactly_zero(value: float) -> None:
    """Also where the mean of equal values is not that value in floating point: they are compared first."""
    x = torch.full((7,), value, dtype=torch.float64)
    for scaled in (
        F.standardize(x, pool(7), std_eps=0.0),
        F.standardize(x, pool(7), correction=0),
        F.whiten(x, pool(7)),
    ):
        assert (scaled == 0).all()
    assert (F.abs_max_scale(0 * x, pool(7)) == 0).all()


def test_abs_max_of_denormal_values_is_finite() -> None:
    assert F.abs_max_scale(torch.tensor([1e-310, -5e-311], dtype=torch.float64), pool(2)).tolist() == pytest.approx(
        [1, -0.5]
    )


@pytest.mark.parametrize("correction", [0, 1, 2])
def test_too_few_values_give_zero(correction: int) -> None:
    x = torch.arange(float(max(correction, 1)), dtype=torch.float64)
    assert (F.standardize(x, pool(x.numel()), correction=correction) == 0).all()
    assert F.whiten(x[:1], pool(1)).tolist() == [0.0]
    assert F.leave_one_out(x[:1] + 5, pool(1)).tolist() == [0.0]


@settings(max_examples=60, deadline=None)
@given(x=NUMBERS, y=NUMBERS)
def test_the_parts_of_a_sum_add_up_under_the_sums_scale(x: list[int], y: list[int]) -> None:
    n = min(len(x), len(y))
    a, b = torch.tensor(x[:n], dtype=torch.float64), torch.tensor(y[:n], dtype=torch.float64)
    for maker in (F.standardizer, F.whitener, F.abs_max_scaler):
        scale = maker(a + b, pool(n))
        torch.testing.assert_close(scale(a) + scale(b), scale(a + b), rtol=0, atol=1e-9)


def test_log_prob_formulas_by_hand() -> None:
    old, ref, teacher = torch.tensor([-1.0]), torch.tensor([-1.5]), torch.tensor([-0.25])
    assert F.log_ratio(old, ref).item() == 0.5
    assert F.opd(old, teacher).item() == 0.75
    assert F.gopd(old, teacher, ref, 2.0).item() == 2 * 1.25 - 0.5
    assert F.gopd(old, teacher, ref, 1.0).item() == F.opd(old, teacher).item()
    assert F.kl_k1(old, ref).item() == 0.5
    assert F.kl_k2(old, ref).item() == 0.125
    assert F.kl_k3(old, ref).item() == pytest.approx(2.718281828 ** (-0.5) - 1 + 0.5)


def test_k1_and_k3_estimate_the_kl_and_k3_is_never_negative() -> None:
    p = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    q = torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64)
    kl = (p * (p / q).log()).sum()
    for estimate in (F.kl_k1, F.kl_k3):
        torch.testing.assert_close((p * estimate(p.log(), q.log())).sum(), kl)
    assert (F.kl_k3(p.log(), q.log()) >= 0).all()
    assert (F.kl_k2(p.log(), q.log()) >= 0).all()
