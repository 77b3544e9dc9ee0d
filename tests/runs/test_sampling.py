"""The sampler against an inverse distribution function by hand, and its independence of the other rows."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from stepcredit.errors import InputError
from stepcredit.runs.sampling import GREEDY, SeededSampler, uniforms

INF = float("inf")


def ids(rows: int) -> torch.Tensor:
    return torch.zeros(rows, 1, dtype=torch.long)


def tokens(sampler: SeededSampler, scores: torch.Tensor) -> list[int]:
    """The one token left in each row."""
    left = sampler(ids(len(scores)), scores)
    assert ((left == 0).sum(dim=-1) == 1).all()
    assert ((left == -INF).sum(dim=-1) == scores.shape[-1] - 1).all()
    return left.argmax(dim=-1).tolist()


def by_hand(scores: Sequence[float], u: float, temperature: float) -> tuple[int, float]:
    """The token that a uniform number stands for, and the entropy in nats, with plain Python."""
    powers = [math.exp(score / temperature) for score in scores]
    total, seen = sum(powers), 0.0
    entropy = -sum(x / total * math.log(x / total) for x in powers if x > 0)
    for token, power in enumerate(powers):
        seen += power / total
        if seen > u:
            return token, entropy
    raise AssertionError


@pytest.mark.parametrize("temperature", [1.0, 0.4, 3.0])
def test_tokens_and_entropies_are_those_by_hand(temperature: float) -> None:
    keys = [(f"p{i}", i % 3) for i in range(40)]
    sampler = SeededSampler(keys, seed=7, max_new_tokens=4, temperature=temperature)
    draws = [uniforms(7, example_id, sample, 4) for example_id, sample in keys]
    for position in range(4):
        scores = 2 * torch.randn(40, 9, generator=torch.Generator().manual_seed(position))
        scores[3, 2] = -INF
        want = [by_hand(scores[i].tolist(), draws[i][position], temperature) for i in range(40)]
        assert tokens(sampler, scores) == [token for token, _ in want]
        np.testing.assert_allclose(sampler.entropies[position], [entropy for _, entropy in want], atol=1e-12)


def test_a_row_does_not_see_the_others() -> None:
    keys = [(f"p{i}", 0) for i in range(12)]
    scores = torch.randn(5, 12, 30, generator=torch.Generator().manual_seed(0))
    together = SeededSampler(keys, seed=1, max_new_tokens=5)
    want = [tokens(together, step) for step in scores]
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1)).tolist()
    for rows in (order, order[:1], order[:5]):
        sampler = SeededSampler([keys[i] for i in rows], seed=1, max_new_tokens=9)  # a later limit changes nothing
        assert [tokens(sampler, step[rows]) for step in scores] == [[step[i] for i in rows] for step in want]


def test_frequencies_are_the_probabilities() -> None:
    p, rows = [0.5, 0.0, 0.3, 0.2], 4000
    scores = torch.tensor(p).log().expand(rows, -1)
    for temperature, want in ((1.0, p), (0.5, [0.25 / 0.38, 0, 0.09 / 0.38, 0.04 / 0.38])):  # p ** 2, made to sum to 1
        sampler = SeededSampler([("p", i) for i in range(rows)], seed=0, max_new_tokens=1, temperature=temperature)
        found = np.bincount(tokens(sampler, scores), minlength=4) / rows
        sigma = np.sqrt(np.array(want) * (1 - np.array(want)) / rows)
        assert (abs(found - want) <= 4 * sigma).all()


def test_random_numbers_belong_to_seed_problem_sample_and_position() -> None:
    whole = uniforms(0, "a", 0, 1000)
    assert (uniforms(0, "a", 0, 10) == whole[:10]).all()
    others = [
        uniforms(1, "a", 0, 1000),
        uniforms(0, "b", 0, 1000),
        uniforms(0, "a", 1, 1000),
        uniforms(0, "a/0", 0, 1000),
    ]
    assert len({row.tobytes() for row in (whole, *others)}) == 5
    assert all(abs(np.corrcoef(whole, row)[0, 1]) < 0.13 for row in others)  # four standard errors
    assert whole.min() >= 0
    assert whole.max() < 1
    assert abs(whole.mean() - 0.5) < 4 / math.sqrt(12 * 1000)
    assert uniforms(0, "\ud800", 0, 1).size == 1  # an id that UTF-8 cannot hold


@pytest.mark.parametrize("u", [0.0, 1 - 2.0**-53])
def test_a_token_without_probability_is_never_drawn(u: float) -> None:
    sampler = SeededSampler([("p", 0), ("p", 1)], seed=0, max_new_tokens=1)
    sampler._uniforms[:] = u
    scores = torch.tensor([[-INF, 0.3, 0.1, -INF], [-INF, -INF, 0.7, -INF]])
    assert tokens(sampler, scores) == [1 if u == 0 else 2, 2]
    assert sampler.entropies[0][1] == 0


def test_greedy_rows_take_the_most_likely_first_token() -> None:
    scores = torch.tensor([[0.0, 2.0, 2.0], [1.0, 0.0, -1.0]])
    entropies = [by_hand(row, 0.0, 1.0)[1] for row in scores.tolist()]
    for keys, temperature in (([("p", GREEDY), ("q", GREEDY)], 5.0), ([("p", 0), ("q", 4)], 0.0)):
        sampler = SeededSampler(keys, seed=0, max_new_tokens=1, temperature=temperature, top_p=0.3)
        assert tokens(sampler, scores) == [1, 0]
        np.testing.assert_allclose(sampler.entropies[0], entropies, atol=1e-12)


def test_greedy_and_sampled_rows_share_a_batch() -> None:
    p, rows = torch.tensor([0.6, 0.4]), 400
    sampler = SeededSampler([("p", GREEDY if i % 2 else i) for i in range(rows)], seed=0, max_new_tokens=1, top_p=0.99)
    found = tokens(sampler, p.log().expand(rows, -1))
    assert not any(found[1::2])
    assert 0.3 < sum(found[::2]) / 200 < 0.5


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.4, [2]), (0.5, [2]), (0.6, [2, 1]), (0.75, [2, 1]), (0.8, [2, 1, 3]), (1.0, [2, 1, 3, 0])],
)
def test_the_nucleus_is_the_fewest_tokens_that_reach_it(top_p: float, kept: list[int]) -> None:
    p = torch.tensor([0.125, 0.25, 0.5, 0.125], dtype=torch.float64)  # of equals, the lower id goes first: 0 before 3
    kept = [{0: 3, 3: 0}.get(token, token) for token in kept]
    sampler = SeededSampler([("p", i) for i in range(2000)], seed=0, max_new_tokens=1, top_p=top_p)
    found = np.bincount(tokens(sampler, p.log().expand(2000, -1)), minlength=4) / 2000
    inside = np.array([float(p[i]) if i in kept else 0.0 for i in range(4)])
    inside /= inside.sum()
    assert (abs(found - inside) <= 4 * np.sqrt(inside * (1 - inside) / 2000)).all()
    want = -sum(x * math.log(x) for x in inside if x > 0)
    assert float(sampler.entropies[0][0]) == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("bad", [math.nan, INF])
def test_scores_that_are_not_finite_are_refused_by_problem(bad: float) -> None:
    sampler = SeededSampler([("p", 0), ("q", 0)], seed=0, max_new_tokens=1)
    with pytest.raises(InputError, match="must give finite scores; got nan or inf for 'q'"):
        sampler(ids(2), torch.tensor([[0.0, -INF], [0.0, bad]]))
    with pytest.raises(InputError, match="finite scores"):
        sampler(ids(2), torch.tensor([[0.0, 1.0], [-INF, -INF]]))


def test_it_refuses_more_tokens_or_rows_than_it_has_numbers_for() -> None:
    sampler = SeededSampler([("p", 0)], seed=0, max_new_tokens=1)
    with pytest.raises(InputError, match="`keys` must name every row; got 1 for 2 rows"):
        sampler(ids(2), torch.zeros(2, 3))
    sampler(ids(1), torch.zeros(1, 3))
    with pytest.raises(InputError, match="`max_new_tokens` must cover every call; got 1"):
        sampler(ids(1), torch.zeros(1, 3))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": -1.0}, "`temperature`"),
        ({"temperature": math.nan}, "`temperature`"),
        ({"temperature": INF}, "`temperature`"),
        ({"top_p": 0.0}, "`top_p`"),
        ({"top_p": 1.1}, "`top_p`"),
    ],
)
def test_it_refuses_options_out_of_range(options: dict[str, float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        SeededSampler([("p", 0)], seed=0, max_new_tokens=1, **options)


def test_rows_that_have_left_change_nothing_for_the_others() -> None:
    keys = [(f"p{i}", 0) for i in range(6)]
    scores = torch.randn(4, 6, 30, generator=torch.Generator().manual_seed(3))
    whole, some = (SeededSampler(keys, seed=1, max_new_tokens=4) for _ in range(2))
    want = [tokens(whole, step) for step in scores]
    for step, rows in zip(range(4), ([0, 1, 2, 3, 4, 5], [5, 1, 2], [5, 1, 2], [2]), strict=True):
        assert some.draw(scores[step][rows], torch.tensor(rows)).tolist() == [want[step][i] for i in rows]
        for i in range(6):
            assert float(some.entropies[step][i]) == (float(whole.entropies[step][i]) if i in rows else 0.0)
    with pytest.raises(InputError, match="`model` must give finite scores; got nan or inf for 'p4'"):
        SeededSampler(keys, seed=1, max_new_tokens=4).draw(torch.tensor([[0.0], [math.nan]]), torch.tensor([2, 4]))
