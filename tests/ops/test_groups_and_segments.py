"""Pools and segments against the plainest Python."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepcredit import InputError
from stepcredit.functional import Pool, Segments, return_so_far, return_to_go

LAW = settings(max_examples=80, deadline=None)
LENGTHS = st.lists(st.integers(1, 5), min_size=1, max_size=6)


@LAW
@given(lengths=LENGTHS)
def test_segments_cut_without_gap_or_overlap(lengths: list[int]) -> None:
    segments = Segments.from_lengths(torch.tensor(lengths))
    ids = [s for s, n in enumerate(lengths) for _ in range(n)]
    assert segments.ids.tolist() == ids
    assert segments.positions.tolist() == [t for n in lengths for t in range(n)]
    starts = [i == 0 or ids[i] != ids[i - 1] for i in range(len(ids))]
    assert Segments.from_starts(torch.tensor(starts)).offsets.tolist() == segments.offsets.tolist()
    x = torch.arange(float(len(ids)))
    assert segments.unpad(segments.pad(x)).tolist() == x.tolist()
    sums = [sum(i for i, s in enumerate(ids) if s == piece) for piece in range(len(lengths))]
    assert segments.sum(x).tolist() == sums
    assert segments.mean(x).tolist() == pytest.approx([total / n for total, n in zip(sums, lengths, strict=True)])
    assert x[segments.last].tolist() == [i for i in range(len(ids)) if i + 1 == len(ids) or ids[i + 1] != ids[i]]


@LAW
@given(lengths=LENGTHS, data=st.data())
def test_finer_segments_within_coarser_ones(lengths: list[int], data: st.DataObject) -> None:
    rows = Segments.from_lengths(torch.tensor(lengths))
    starts = torch.tensor(data.draw(st.lists(st.booleans(), min_size=rows.size, max_size=rows.size)))
    starts[rows.first] = True
    chunks = Segments.from_starts(starts)
    want = [int(starts[a:b].sum()) for a, b in zip(rows.offsets[:-1], rows.offsets[1:], strict=True)]
    assert chunks.within(rows).lengths.tolist() == want


@LAW
@given(lengths=LENGTHS, gamma=st.sampled_from([1.0, 0.9, 0.0]), seed=st.integers(0, 99))
def test_returns_by_their_recursion(lengths: list[int], gamma: float, seed: int) -> None:
    rows = Segments.from_lengths(torch.tensor(lengths))
    x = torch.randn(rows.size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    g, so_far = return_to_go(x, rows, gamma), return_so_far(x, rows)
    for start, end in zip(rows.offsets[:-1].tolist(), rows.offsets[1:].tolist(), strict=True):
        later, earlier = 0.0, 0.0
        for t in range(end - 1, start - 1, -1):
            later = float(x[t]) + gamma * later
            assert g[t] == pytest.approx(later, abs=1e-12)
        for t in range(start, end):
            earlier += float(x[t])
            assert so_far[t] == pytest.approx(earlier, abs=1e-12)


def test_a_discount_leaves_its_argument_alone() -> None:
    x = torch.ones(3)
    return_to_go(x, Segments.from_lengths(torch.tensor([3])), 0.5)
    assert x.tolist() == [1.0, 1.0, 1.0]


def test_pools_split_merge_and_select() -> None:
    pool = Pool.of(torch.tensor([9, -4, 9, 9]))
    x = torch.tensor([1.0, 2.0, 3.0, 8.0])
    assert pool.sum(x).tolist() == [2.0, 12.0]
    assert pool.max(x).tolist() == [2.0, 8.0]
    assert pool.merged().mean(x).tolist() == [3.5]
    assert pool.select(torch.tensor([1, 2])).count.tolist() == [1, 1]
    finer = pool.split(torch.tensor([0, 0, 1, 2]), torch.tensor([1, 3]))
    assert (finer.sum(x).tolist(), finer.count.tolist()) == ([2.0, 1.0, 3.0, 8.0], [1, 1, 1, 1])
    assert pool.varies(x).tolist() == [False, True]
    empty = Pool(torch.zeros(0, dtype=torch.long), 2)
    assert empty.varies(torch.zeros(0)).tolist() == [False, False]
    assert empty.mean(torch.zeros(0)).tolist() == [0.0, 0.0]
    assert empty.max(torch.zeros(0)).tolist() == [-float("inf")] * 2


@LAW
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_buckets_take_every_item_once_and_pad_at_most_as_much_again(lengths: list[int]) -> None:
    rows = Segments.from_lengths(torch.tensor(lengths))
    everything, padded = torch.arange(rows.size), 0
    seen = []
    for part, items in rows.buckets():
        seen += everything[items].tolist()
        padded += len(part) * part.max_length
        assert part.size == everything[items].numel()
    assert sorted(seen) == everything.tolist()
    assert padded < 2 * rows.size


def test_a_mask_without_a_true_in_a_row_is_refused() -> None:
    with pytest.raises(InputError, match="`mask` must hold a True in every row; got none in row 1"):
        Segments.from_mask(torch.tensor([[True], [False]]))
