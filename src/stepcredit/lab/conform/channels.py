"""Laws of the channels of reward: baselines, and what a process signal does not cover."""

from collections.abc import Iterator
from typing import Any

import torch

from stepcredit.batch import RolloutBatch
from stepcredit.lab.conform.golden import Golden
from stepcredit.lab.conform.law import Trial, Twin, Verdict, agreement, greatest, invariance
from stepcredit.lab.conform.signal import SIGNALS, covered_tokens, nothing_read
from stepcredit.lab.conform.target import tolerance
from stepcredit.lab.peers import UnsupportedError


def _constant_added(golden: Golden) -> Iterator[Twin]:
    """A constant added to each channel of reward; ``correct`` and ``format_ok`` are given, and stay."""
    same = lambda x: x  # noqa: E731
    batch = golden.batch
    if batch.rewards is not None:
        yield Twin(batch.replace(rewards=batch.rewards + 4.0), same, same)
    if batch.format_rewards is not None:
        yield Twin(batch.replace(format_rewards=batch.format_rewards + 2.0), same, same)
    if batch.extra_rewards:
        yield Twin(batch.replace(extra_rewards={name: x - 2.0 for name, x in batch.extra_rewards.items()}), same, same)


def all_equal(trial: Trial) -> Verdict:
    """Rollouts that do not differ in anything get no credit: 0, and not the rounding of a mean."""
    apart, where, tried, allowed = 0.0, "", 0, 0.0
    for golden, _ in trial.answered():
        batch = golden.batch
        if bool((torch.unique(batch.group_ids, return_counts=True)[1] < 2).any()):
            continue
        for reward in (0.7, 1 / 3):
            try:
                credit = trial.on(_equal(batch, reward))
            except UnsupportedError:
                continue
            tried += 1
            largest, allowed = greatest(credit), tolerance(torch.zeros_like(credit))
            if largest > apart:
                apart, where = largest, f"{golden}, all rewards {reward:.2g}"
    if not tried:
        return Verdict("equal", "n.a.", "no batch that it can have has groups of two and more alone")
    return agreement("equal", apart, where, tried, broken=apart > allowed)


def _equal(batch: RolloutBatch, reward: float) -> RolloutBatch:
    """Equal rewards, no process signal to tell tokens apart, and policy, reference and teacher agreed."""
    fields: dict[str, Any] = {
        name: torch.full_like(getattr(batch, name), value)
        for name, value in (
            ("rewards", reward), ("format_rewards", 1.0), ("process_rewards", 0.0),
            *((name, -1.0) for name in SIGNALS[1:]),
        )
        if getattr(batch, name) is not None
    }  # fmt: skip
    if batch.format_ok is not None:
        fields["format_ok"] = torch.ones_like(batch.format_ok)
    extra = {name: torch.full_like(x, 0.1) for name, x in (batch.extra_rewards or {}).items()}
    return batch.replace(**fields, extra_rewards=extra or None)


def _off_cover(golden: Golden) -> Iterator[Twin]:
    """What stands where the signal does not cover is replaced by what cannot be read."""
    batch = golden.batch
    if batch.process_rewards is None:
        return
    outside = ~covered_tokens(batch)
    if bool((outside & batch.response_mask).any()):
        for junk in (float("nan"), 50.0):
            changed = torch.where(outside, junk, batch.process_rewards)
            yield Twin(batch.replace(process_rewards=changed), lambda x: x, lambda x: x)


def uncovered(trial: Trial) -> Verdict:
    """What stands where the signal does not cover is never read."""
    return nothing_read("uncovered", trial) or invariance("uncovered", _off_cover)(trial)


def coverage(trial: Trial) -> Verdict:
    """No signal is not a signal of 0: taking one away and setting it to 0 are not the same."""
    if (verdict := nothing_read("coverage", trial)) is not None:
        return verdict
    tried = 0
    for golden, _ in trial.answered():
        batch, rows = golden.batch, golden.batch.response_mask[:, 0].nonzero().flatten().tolist()
        if batch.process_rewards is None or not rows:
            continue
        row = torch.zeros(len(batch), 1, dtype=torch.bool).index_fill(0, torch.tensor(rows[:1]), True)
        covered = covered_tokens(batch)
        try:
            zero = trial.on(batch.replace(process_rewards=torch.where(row, 0.0, batch.process_rewards)))
            none = trial.on(batch.replace(process_mask=covered & ~row))
        except UnsupportedError:
            continue
        tried += 1
        apart = greatest(zero - none)
        if apart > 1e-6:
            return Verdict("coverage", "holds", f"{apart:.2g} apart in {golden}", apart, str(golden), tried)
    if not tried:
        return Verdict("coverage", "n.a.", "no batch that it can have has a process signal")
    return Verdict("coverage", "BROKEN", f"a signal of 0 and none are the same on {tried} batches", 0.0, None, tried)


def unscored(trial: Trial) -> Verdict:
    """A rollout without a signal gets nothing from the others' signals."""
    if (verdict := nothing_read("unscored", trial)) is not None:
        return verdict

    def twins(golden: Golden) -> Iterator[Twin]:
        batch = golden.batch
        if batch.process_rewards is None:
            return
        without = batch.response_mask.any(1) & ~(covered_tokens(batch) & batch.response_mask).any(1)
        if bool(without.any()):
            keep = lambda x: x[without]  # noqa: E731
            yield Twin(batch.replace(process_rewards=1 - 3 * batch.process_rewards), keep, keep)

    return invariance("unscored", twins)(trial)


constant = invariance("constant", _constant_added)
