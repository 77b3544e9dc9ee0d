"""From verl's columns to a `RolloutBatch`, and credit back: names, rows and alignment; no formula.

Rows are put in order of their rollouts and only response tokens are kept, so the several rows of one rollout are one
here, and rows that verl appended as padding, which have none, are in no statistic.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stepcredit.adapters.verl.arriving import Arrived
from stepcredit.adapters.verl.rewards import FAILED
from stepcredit.adapters.verl.settings import Settings
from stepcredit.batch import RolloutBatch
from stepcredit.errors import InputError, StepCreditError

LOGPROBS = {"old_logprobs": "old_log_probs", "ref_logprobs": "ref_log_prob", "base_logprobs": "ref_log_prob"}


@dataclass(frozen=True, eq=False)
class Joined:
    """Where the rows of a batch stand in packed rollouts.

    Attributes:
        rows: The rows in order: rollout by rollout, each rollout's rows as they came about. int [rows].
        lasts: Each rollout's last row. int [rollouts].
        mask: `response_mask` of the rows in that order. bool [rows, time].
        cu_seqlens: Where each rollout's response tokens begin and end. int [rollouts + 1].
    """

    rows: Tensor
    lasts: Tensor
    mask: Tensor
    cu_seqlens: Tensor

    @classmethod
    def of(cls, response_mask: Tensor, sessions: Sequence[tuple[str, int]] | None) -> "Joined":
        """Joins the rows of one session; without sessions every row is a rollout."""
        count = response_mask.shape[0]
        names = [(str(row), 0) for row in range(count)] if sessions is None else list(sessions)
        first: dict[str, int] = {}
        for row, (session, _) in enumerate(names):
            first.setdefault(session, row)
        rows = sorted(range(count), key=lambda row: (first[names[row][0]], names[row][1]))
        ends = [i for i in range(count) if i + 1 == count or names[rows[i]][0] != names[rows[i + 1]][0]]
        order = torch.tensor(rows, dtype=torch.int64)
        mask = response_mask.bool().cpu()[order]
        until = mask.sum(1).cumsum(0)[ends] if ends else torch.zeros(0, dtype=torch.int64)
        return cls(order, order[ends], mask, torch.cat([torch.zeros(1, dtype=torch.int64), until]))

    def pack(self, column: Tensor) -> Tensor:
        """A padded column's values on the response tokens, in order. [rows, time] -> [tokens]."""
        return column.cpu()[self.rows][self.mask]

    def unpack(self, values: Tensor) -> Tensor:
        """The way back: 0 off-mask. [tokens] -> [rows, time]."""
        ordered = values.new_zeros(self.mask.shape)
        ordered[self.mask] = values
        out = torch.empty_like(ordered)
        out[self.rows] = ordered
        return out


def rollout_batch(
    arrived: Arrived, settings: Settings, response_mask: Tensor, token_level_rewards: Tensor, uids: Sequence[Any]
) -> tuple[RolloutBatch, Joined]:
    """The rollouts of one training step.

    Args:
        arrived: The columns at hand.
        settings: The run's.
        response_mask: int or bool [rows, time].
        token_level_rewards: The outcome, somewhere in its row. float [rows, time].
        uids: The prompt that each row answers: its group. Shape: [rows].

    Returns:
        The batch, packed, a rollout a session, and where its rows are.

    Raises:
        InputError: A column that the scheme reads has not arrived (the message says what brings it), or holds what
            the batch refuses.

    Degenerate cases:
        An outcome of nan: the rollout cannot be scored, is in no statistic, and is counted in ``excluded_rows``.
    """
    brought = arrived.brought
    joined = Joined.of(response_mask, brought.sessions)
    groups: dict[str, int] = {}
    labels = [groups.setdefault(str(uids[row]), len(groups)) for row in joined.lasts.tolist()]
    outcomes = arrived.tensors.get("token_level_scores", token_level_rewards)
    rewards = outcomes.cpu()[joined.lasts].float().sum(1)
    values: dict[str, Tensor] = {}
    for name in sorted(settings.reads & (LOGPROBS.keys() | {"teacher_logprobs"})):
        column = _logprobs(name, arrived)
        if column is not None:
            values[name] = joined.pack(column)
    fields = _said(arrived, joined, settings)
    for name in ("process_rewards", "step_ids"):
        if name in fields:
            values[name] = joined.pack(fields.pop(name))
    values["response_mask"] = torch.ones(int(joined.cu_seqlens[-1]), dtype=torch.bool)
    return RolloutBatch.from_packed(
        values, joined.cu_seqlens, torch.tensor(labels, dtype=torch.int64), rewards.nan_to_num(nan=0.0),
        row_mask=~rewards.isnan(), **fields,
    ), joined  # fmt: skip


def _logprobs(name: str, arrived: Arrived) -> Tensor | None:
    if name == "teacher_logprobs":
        return arrived.brought.teacher_logprobs
    return arrived.tensors.get(LOGPROBS[name])


def _said(arrived: Arrived, joined: Joined, settings: Settings) -> dict[str, Any]:
    """The fields that come from the reward workers' packages."""
    packages = [json.loads(text) if text else {} for text in arrived.brought.packages or ()]
    failed = [package[FAILED] for package in packages if FAILED in package]
    if failed:
        raise StepCreditError(f"{len(failed)} of {len(packages)} rollouts could not be graded; the first: {failed[0]}")
    if not packages:
        return {}
    lasts = [packages[row] for row in joined.lasts.tolist()]
    live = (joined.cu_seqlens.diff() > 0).tolist()  # padding rows carry a copy of another row's package
    fields: dict[str, Any] = {}
    for name, dtype in (("format", torch.float32), ("correct", torch.bool)):
        if any(name in package for package in lasts):
            fields[name] = torch.tensor(_each(name, lasts, live), dtype=dtype)
    if "format" in fields:
        fields["format_rewards"] = fields.pop("format")
        odd = [x for x in fields["format_rewards"].tolist() if x not in (0.0, 1.0)]
        if odd and settings.format_threshold is None:
            raise InputError(
                "`algorithm.stepcredit.format_threshold` must be given when format rewards are other than 0 and 1; "
                f"got {odd[0]:.6g}."
            )
        if settings.format_threshold is not None:
            fields["format_ok"] = fields["format_rewards"] >= settings.format_threshold
    extra = sorted({name for package in lasts for name in package.get("extra", {})})
    if extra:
        channels = [package.get("extra", {}) for package in lasts]
        fields["extra_rewards"] = {name: torch.tensor(_each(name, channels, live)) for name in extra}
    said = ["steps" in package for package, counts in zip(lasts, live, strict=True) if counts]
    if any(said) and not all(said):
        raise InputError(
            f"`process` must be returned by the reward function for every rollout, [] for none; got it for {sum(said)} "
            f"of {len(said)}."
        )
    if any("steps" in package for package in packages):
        fields |= _placed(packages, joined)
    return fields


def _each(name: str, packages: Sequence[Mapping[str, Any]], live: Sequence[bool]) -> list[float]:
    """One number a rollout; 0 for those without a response token, which nothing reads."""
    values = []
    for package, counts in zip(packages, live, strict=True):
        if counts and name not in package:
            raise InputError(f"`{name}` must be returned by the reward function for every rollout; got it for some.")
        values.append(float(package.get(name, 0.0)))
    return values


def _placed(packages: Sequence[Mapping[str, Any]], joined: Joined) -> dict[str, Tensor]:
    """Runs of scored tokens as columns, [rows, time]; the steps of one rollout's rows are numbered through."""
    scores = torch.zeros(joined.mask.shape)
    steps = torch.full(joined.mask.shape, -1, dtype=torch.int64)
    ends = set(joined.lasts.tolist())
    before = 0
    for row, mask in zip(joined.rows.tolist(), joined.mask, strict=True):
        runs = packages[row].get("steps", ()) if mask.any() else ()
        for step, first, end, score in runs:
            scores[row, first:end] = score
            steps[row, first:end] = before + step
        before = 0 if row in ends else before + 1 + max((int(run[0]) for run in runs), default=-1)
    return {"process_rewards": scores, "step_ids": steps}
