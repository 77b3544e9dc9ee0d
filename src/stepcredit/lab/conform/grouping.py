"""Laws of groups: who is compared with whom, and who must not be."""

import random
from collections.abc import Iterator

import torch
from torch import Tensor

from stepcredit.batch import RolloutBatch
from stepcredit.lab.conform.golden import Golden, chosen_rows, tensors
from stepcredit.lab.conform.law import Trial, Twin, Verdict, agreement, greatest, invariance
from stepcredit.lab.conform.ranks import on_ranks
from stepcredit.lab.conform.target import tolerance


def _permuted(golden: Golden) -> Iterator[Twin]:
    order = random.Random(golden.seed + 1).sample(range(len(golden.batch)), len(golden.batch))  # noqa: S311
    yield Twin(chosen_rows(golden.batch, order), lambda x: x, lambda x: x[order])


def _relabeled(golden: Golden) -> Iterator[Twin]:
    """Labels that are neither small, nor in order, nor positive."""
    labels = torch.unique(golden.batch.group_ids)
    others = torch.tensor([(-1) ** i * (2**33 - 7 * i) for i in range(len(labels))])
    yield Twin(
        golden.batch.replace(group_ids=others[torch.searchsorted(labels, golden.batch.group_ids)]),
        lambda x: x,
        lambda x: x,
    )


def _alone(golden: Golden) -> Iterator[Twin]:
    """Each group as a batch of its own: a micro-batch, or a rank, that holds whole groups."""
    for rows in _groups(golden.batch):
        yield Twin(chosen_rows(golden.batch, rows), lambda x: x, lambda x, rows=rows: x[rows])  # type: ignore[misc]


def _others_changed(golden: Golden) -> Iterator[Twin]:
    """One group's rewards, signal and log-probabilities change; the others' credit does not."""
    groups = _groups(golden.batch)
    for mine in groups[:2] if len(groups) > 1 else []:
        others = sorted(set(range(len(golden.batch))) - set(mine))
        changes = {}
        for name, x in tensors(golden.batch).items():
            if x.is_floating_point():
                factor = torch.ones(len(x), dtype=x.dtype)
                factor[mine] = torch.arange(len(mine), dtype=x.dtype) - 1.5  # no affine map: that a z-score takes out
                changes[name] = x * (factor if x.ndim == 1 else factor[:, None])
        keep = lambda x, others=others: x[others]  # noqa: E731
        yield Twin(golden.batch.replace(**changes), keep, keep)


def _excluded(golden: Golden) -> Iterator[Twin]:
    """Further rows that count in nothing: masked out, without a response token, and a framework's padding row."""
    batch = golden.batch
    n = len(batch)
    rows = [*range(n), 0, min(1, n - 1)]
    wild = None if batch.rewards is None else torch.cat([batch.rewards, batch.rewards.new_tensor([7.0, -9.0])])
    counts = torch.ones(n + 2, dtype=torch.bool) if batch.row_mask is None else batch.row_mask[rows]
    more = chosen_rows(batch, rows, rewards=wild)
    first = lambda x: x[:n]  # noqa: E731
    yield Twin(more.replace(row_mask=counts.index_fill(0, torch.tensor([n, n + 1]), False)), first, lambda x: x)
    empty = more.response_mask.clone()
    empty[n:] = False
    yield Twin(more.replace(response_mask=empty), first, lambda x: x)
    own = more.group_ids.clone()
    own[n:] = torch.tensor([990, 991])
    zero = None if more.rewards is None else more.rewards.index_fill(0, torch.tensor([n, n + 1]), 0.0)
    yield Twin(more.replace(response_mask=empty, group_ids=own, rewards=zero), first, lambda x: x)


def sharded(trial: Trial) -> Verdict:
    """Groups split over two ranks get one process's credit."""
    if not trial.target.takes_ranks:
        return Verdict("shards", "n.a.", "takes no process_group")
    apart, where, worst, tried = 0.0, "", 0.0, 0
    for golden, credit in trial.answered():
        rng = random.Random(golden.seed)  # noqa: S311
        owner = [rng.randrange(2) for _ in range(len(golden.batch))]
        parts = [[i for i, rank in enumerate(owner) if rank == one] for one in (0, 1)]

        def work(rank: int, group: object, golden: Golden = golden, parts: list[list[int]] = parts) -> Tensor:
            return trial.target(chosen_rows(golden.batch, parts[rank]), process_group=group)

        tried += 1
        for rows, got in zip(parts, on_ranks(2, work), strict=True):
            gap = greatest(got - credit[rows])
            if gap / tolerance(credit) > worst:
                apart, where, worst = gap, str(golden), gap / tolerance(credit)
    return agreement("shards", apart, where, tried, broken=worst > 1)


def _groups(batch: RolloutBatch) -> list[list[int]]:
    labels = batch.group_ids.tolist()
    return [[i for i, label in enumerate(labels) if label == one] for one in dict.fromkeys(labels)]


rows_permuted = invariance("rows", _permuted)
groups_relabeled = invariance("labels", _relabeled)
groups_alone = invariance("alone", _alone)
no_leak = invariance("leak", _others_changed)
rows_excluded = invariance("excluded", _excluded)
