"""Batches of similar length: the least cost of all cuts, within the budget, and little padding."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepcredit.signals.batching import PASS_COST, batches


def cost(lengths, parts):
    return sum(max(lengths[i] for i in part) * len(part) + PASS_COST for part in parts)


def every_cut(order):
    """All ways to cut a list into runs."""
    if not order:
        yield []
    for end in range(1, len(order) + 1):
        for rest in every_cut(order[end:]):
            yield [order[:end], *rest]


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 900), max_size=8), tokens=st.integers(1, 3000), mixed=st.booleans())
def test_the_least_cost_of_all_cuts(lengths, tokens, mixed):
    parts = batches(lengths, tokens, mixed=mixed)
    assert sorted(i for part in parts for i in part) == list(range(len(lengths)))
    for part in parts:
        assert len(part) == 1 or max(lengths[i] for i in part) * len(part) <= tokens
        assert mixed or len({lengths[i] for i in part}) == 1
    longest = [max(lengths[i] for i in part) for part in parts]
    assert longest == sorted(longest, reverse=True)
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    allowed = [
        cut
        for cut in every_cut(order)
        if all(len(part) == 1 or lengths[part[0]] * len(part) <= tokens for part in cut)
        and (mixed or all(lengths[part[0]] == lengths[part[-1]] for part in cut))
    ]
    assert cost(lengths, parts) == min(cost(lengths, cut) for cut in allowed)


def test_little_padding():
    draw = random.Random(0)
    lengths = [min(4096, int(draw.lognormvariate(6.2, 0.6))) for _ in range(512)]
    parts = batches(lengths, 16384)
    padded = sum(max(lengths[i] for i in part) * len(part) for part in parts)
    assert padded < 1.06 * sum(lengths)
    naive = sum(max(lengths[i : i + 8]) * 8 for i in range(0, 512, 8))
    assert naive > 1.5 * padded
    assert len(parts) < 64


@pytest.mark.parametrize("tokens", [1, 7, 10**9])
def test_edges(tokens):
    assert batches([], tokens) == []
    assert batches([5], tokens) == [[0]]
