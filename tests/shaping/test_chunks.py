"""Chunk-by-Value against the algorithm as printed, where neighbors and first values disagree."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepcredit.functional import Segments, chunk_by_value, chunk_values


def printed(u: list[float], boundary: list[bool], eta: float, min_chunk: int) -> list[int]:
    """Algorithm 2: v <- u_1; close at t - 1 when |u_t - v| > eta or at a boundary. Returns the chunks' lengths."""
    lengths, v = [1], u[0]
    for t in range(1, len(u)):
        if boundary[t] or (abs(u[t] - v) > eta and lengths[-1] >= min_chunk):
            lengths.append(0)
            v = u[t]
        lengths[-1] += 1
    return lengths


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32), eta=st.sampled_from([0.0, 0.1, 0.25, 1.0]), min_chunk=st.integers(1, 3))
def test_equals_the_printed_algorithm(seed: int, eta: float, min_chunk: int) -> None:
    rng = random.Random(seed)
    rows = [[rng.choice([0.0, 0.1, 0.15, 0.3, rng.random()]) for _ in range(rng.randint(1, 9))] for _ in range(3)]
    edges = [[rng.random() < 0.2 for _ in row] for row in rows]
    want = [n for row, edge in zip(rows, edges, strict=True) for n in printed(row, edge, eta, min_chunk)]
    u = torch.tensor([x for row in rows for x in row], dtype=torch.float64)
    boundaries = torch.tensor([x for row in edges for x in row])
    segments = Segments.from_lengths(torch.tensor([len(row) for row in rows]))
    assert chunk_by_value(u, boundaries, segments, eta=eta, min_chunk=min_chunk).lengths.tolist() == want


def test_a_slow_drift_is_cut_and_a_swing_inside_the_tolerance_is_not() -> None:
    rows, calm = Segments.from_lengths(torch.tensor([4])), torch.zeros(4, dtype=torch.bool)
    drift = torch.tensor([0.0, 0.6, 1.2, 1.8]).double()
    assert chunk_by_value(drift, calm, rows, eta=1.0).lengths.tolist() == [2, 2]
    swing = torch.tensor([0.0, 0.9, -0.9, 0.0]).double()  # neighbors are 1.8 apart, the first value never more than .9
    assert chunk_by_value(swing, calm, rows, eta=1.0).lengths.tolist() == [4]
    assert printed(swing.tolist(), [False] * 4, 1.0, 1) == [4]


@pytest.mark.parametrize(("how", "want"), [("last", [3.0, 4.0]), ("mean", [2.0, 4.0]), ("sum", [6.0, 4.0])])
def test_chunk_values(how: str, want: list[float]) -> None:
    chunks = Segments.from_lengths(torch.tensor([3, 1]))
    assert chunk_values(torch.tensor([1.0, 2.0, 3.0, 4.0]), chunks, how).tolist() == want
