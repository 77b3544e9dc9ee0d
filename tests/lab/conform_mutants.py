"""A credit function in plain loops that keeps every law, and what breaks each of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

import stepcredit as sc
from stepcredit.batch import RolloutBatch
from stepcredit.estimators import Assignment, Compacted

Signal = Callable[[RolloutBatch, int], list[float | None]]


def tokens(batch: RolloutBatch, row: int) -> list[int]:
    return batch.response_mask[row].nonzero().flatten().tolist()


def live(batch: RolloutBatch) -> list[int]:
    counts = [True] * len(batch) if batch.row_mask is None else batch.row_mask.tolist()
    return [i for i in range(len(batch)) if counts[i] and tokens(batch, i)]


def covered(batch: RolloutBatch, row: int, t: int) -> bool:
    by_step = batch.step_ids is None or int(batch.step_ids[row, t]) >= 0
    return by_step and (batch.process_mask is None or bool(batch.process_mask[row, t]))


def own(batch: RolloutBatch, row: int) -> list[float | None]:
    """The signal of each response token, None where there is none."""
    x = batch.process_rewards
    return [float(x[row, t]) if covered(batch, row, t) else None for t in tokens(batch, row)]


def scores(x: list[float]) -> list[float]:
    """z-scores; 0 without spread."""
    if max(x, default=0.0) == min(x, default=0.0):
        return [0.0] * len(x)
    mean = math.fsum(x) / len(x)
    return [(v - mean) / math.sqrt(math.fsum((w - mean) ** 2 for w in x) / (len(x) - 1)) for v in x]


def plain(batch: RolloutBatch, signal: Signal = own, scale: Callable[[list[float]], list[float]] = scores) -> Any:
    """Outcome z-score plus the signals' z-scores summed from each token on."""
    out = torch.zeros(batch.response_mask.shape, dtype=torch.float64)
    labels = batch.group_ids.tolist()
    for label in dict.fromkeys(labels):
        rows = [i for i in live(batch) if labels[i] == label]
        outcome = dict(zip(rows, scale([float(batch.rewards[i]) for i in rows]), strict=True))
        values = {i: signal(batch, i) for i in rows}
        flat = iter(scores([v for i in rows for v in values[i] if v is not None]))
        for i in rows:
            z = [0.0 if v is None else next(flat) for v in values[i]]
            for n, t in enumerate(tokens(batch, i)):
                out[i, t] = outcome[i] + math.fsum(z[n:])
    return out


def plain_float32(batch: RolloutBatch) -> Any:
    """GRPO by float32 tensors, with an epsilon in the place of a test for spread."""
    out = torch.zeros(batch.response_mask.shape)
    for label in batch.group_ids.unique():
        rows = [i for i in live(batch) if batch.group_ids[i] == label]
        r = batch.rewards[rows].float()
        if len(rows) > 1:
            out[rows] = ((r - r.mean()) / (r.std() + 1e-6))[:, None].expand(-1, out.shape[1])
    return out * batch.response_mask


def refuses_lone_groups(batch: RolloutBatch) -> Any:
    if 1 in batch.group_ids.unique(return_counts=True)[1].tolist():
        raise IndexError("index 1 is out of bounds\nfor dimension 0")
    return plain(batch)


def nan_for_lone_groups(batch: RolloutBatch) -> Any:
    return plain(batch, scale=lambda x: scores(x) if len(x) > 1 else [math.nan] * len(x))


def attached(batch: RolloutBatch) -> Any:
    return plain(batch) * torch.ones((), requires_grad=True)


def forgets_the_mask(batch: RolloutBatch) -> Any:
    return plain(batch) + torch.where(batch.response_mask, 0.0, batch.rewards.nan_to_num()[:, None])


def writes_to_the_batch(batch: RolloutBatch) -> Any:
    batch.rewards.mul_(0.5)
    return plain(batch)


def divides_by_the_width(batch: RolloutBatch) -> Any:
    return plain(batch) / batch.response_mask.shape[1]


def multiplies_by_the_mask(batch: RolloutBatch) -> Any:
    return plain(batch) + 0 * (batch.process_rewards * batch.response_mask).sum(1, keepdim=True)


def discounts_by_the_column(batch: RolloutBatch) -> Any:
    return plain(batch) * 0.9 ** torch.arange(batch.response_mask.shape[1])


def groups_by_reshaping(batch: RolloutBatch) -> Any:
    sizes = batch.group_ids.unique(return_counts=True)[1].tolist()
    if len(set(sizes)) > 1:
        return plain(batch)
    return plain(batch.replace(group_ids=torch.arange(len(batch)) // sizes[0]))


def labels_as_bytes(batch: RolloutBatch) -> Any:
    return plain(batch.replace(group_ids=batch.group_ids.abs() % 7))


def divides_by_the_batch(batch: RolloutBatch) -> Any:
    return plain(batch) / len(batch)


def leaks_the_batch_mean(batch: RolloutBatch) -> Any:
    kept = batch.rewards[live(batch)]
    return plain(batch) + (0.1 * batch.response_mask * (kept - kept).mean() + 1e-2 * kept.std()) * _counted(batch)


def _counted(batch: RolloutBatch) -> Any:
    rows = torch.zeros(len(batch), 1).index_fill(0, torch.tensor(live(batch)), 1.0)
    return rows * batch.response_mask


def deaf_to_its_ranks(batch: RolloutBatch, process_group: object = None) -> Any:
    return plain(batch)


def counts_empty_rows(batch: RolloutBatch) -> Any:
    mask = batch.response_mask.clone()
    mask[~mask.any(1), 0] = True
    return plain(batch.replace(response_mask=mask, process_mask=None)) * batch.response_mask


def counts_excluded_rows(batch: RolloutBatch) -> Any:
    return plain(batch.replace(row_mask=None, rewards=batch.rewards.nan_to_num())) * _counted(batch)


def without_baseline(batch: RolloutBatch) -> Any:
    return plain(batch, scale=lambda x: x)


def reads_uncovered_tokens(batch: RolloutBatch) -> Any:
    return plain(batch, lambda b, i: [float(b.process_rewards[i, t]) for t in tokens(b, i)])


def fills_with_zero(batch: RolloutBatch) -> Any:
    return plain(batch, lambda b, i: [v or 0.0 for v in own(b, i)])


def fills_with_the_others_mean(batch: RolloutBatch) -> Any:
    def signal(batch: RolloutBatch, row: int) -> list[float | None]:
        mine = own(batch, row)
        group = [i for i in live(batch) if batch.group_ids[i] == batch.group_ids[row]]
        known = [v for i in group for v in own(batch, i) if v is not None]
        # twice the mean, so that the filled-in value is not the z-score's zero
        return (
            mine if any(v is not None for v in mine) or not known else [2 * math.fsum(known) / len(known)] * len(mine)
        )

    return plain(batch, signal)


def one_value_a_response(batch: RolloutBatch) -> Any:
    def signal(batch: RolloutBatch, row: int) -> list[float | None]:
        known = [v for v in own(batch, row) if v is not None]
        return [math.fsum(known)] + [None] * (len(own(batch, row)) - 1) if known else own(batch, row)

    return plain(batch, signal)


def one_token_late(batch: RolloutBatch) -> Any:
    return plain(batch, lambda b, i: [None, *own(b, i)[:-1]])


def one_token_early(batch: RolloutBatch) -> Any:
    return plain(batch, lambda b, i: [*own(b, i)[1:], None])


def one_token_around(batch: RolloutBatch) -> Any:
    return plain(batch, lambda b, i: [*own(b, i)[1:], own(b, i)[0]])


@dataclass(frozen=True, kw_only=True)
class Deaf(sc.Estimator):
    """Has an option for nothing."""

    type: ClassVar[str] = "deaf"
    requires = frozenset({"rewards"})
    weight: float = 1.0
    power: float = 2.0

    def assign(self, view: Compacted) -> Assignment:
        r = view.channels["outcome"]
        centered = self.weight * (r - view.groups.spread(view.groups.mean(r)))
        spread = view.rows.spread(centered)
        return Assignment(spread, lambda: {"outcome": spread})


@dataclass(frozen=True, kw_only=True)
class ByColumn(sc.Estimator):
    """Right in the padded layout alone: the last axis is not time in the other."""

    type: ClassVar[str] = "by_column"
    requires = frozenset({"rewards"})
    weight: float = 1.0

    def assign(self, view: Compacted) -> Assignment:
        r = view.channels["outcome"]
        at = view.rows.positions if view.batch.cu_seqlens is None else torch.arange(view.rows.size)
        weighted = self.weight * view.rows.spread(r - view.groups.spread(view.groups.mean(r))) * 0.9**at
        return Assignment(weighted, lambda: {"outcome": weighted})


MUTANTS: dict[str, list[Any]] = {
    "answers": [refuses_lone_groups],
    "form": [nan_for_lone_groups, attached],
    "zero": [forgets_the_mask],
    "pure": [writes_to_the_batch],
    "padding": [divides_by_the_width],
    "unread": [multiplies_by_the_mask],
    "observation": [discounts_by_the_column],
    "packed": [ByColumn()],
    "rows": [groups_by_reshaping],
    "labels": [labels_as_bytes],
    "alone": [divides_by_the_batch],
    "leak": [leaks_the_batch_mean],
    "shards": [deaf_to_its_ranks],
    "excluded": [counts_empty_rows, counts_excluded_rows],
    "constant": [without_baseline],
    "equal": [plain_float32],
    "uncovered": [reads_uncovered_tokens],
    "coverage": [fills_with_zero],
    "unscored": [fills_with_the_others_mean],
    "shift": [one_value_a_response],
    "edges": [one_token_late, one_token_early],
    "place": [one_token_around],
    "options": [Deaf()],
}
"""Law -> what breaks it."""
