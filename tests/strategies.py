"""Random rollout batches as plain lists, and their two tensor layouts.

A plain batch is the dict that `references` reads: ragged, unsorted and singleton groups, tied rewards, holes in the
mask, empty and excluded rows, uncovered tokens, and nan wherever nothing may be read.
"""

import random
from typing import Any

import torch
from hypothesis import strategies as st

from stepcredit import RolloutBatch

NAN = float("nan")
REWARDS = (0.0, 1.0, 1.0, 0.5, -1.0)


def plain_batch(seed: int, *, step_mode: bool | None = None, max_rows: int = 9, max_time: int = 12) -> dict[str, Any]:
    """One random batch, the same for the same arguments."""
    rng = random.Random(seed)
    rows, time = rng.randint(1, max_rows), rng.randint(1, max_time)
    labels = [rng.randint(-(2**40), 2**40) for _ in range(rng.randint(1, 4))]
    step_mode = rng.random() < 0.5 if step_mode is None else step_mode
    row_mask = [rng.random() < 0.9 for _ in range(rows)] if rng.random() < 0.4 else None
    keep = rng.choice([0.6, 0.9, 1.0])
    mask = [[start <= t < end and rng.random() < keep for t in range(time)] for start, end in _windows(rng, rows, time)]
    live = [any(mask[i]) and (row_mask is None or row_mask[i]) for i in range(rows)]
    step_ids = [_steps(rng, mask[i]) for i in range(rows)] if step_mode else None
    process_mask = None
    if rng.random() < 0.3:
        process_mask = [[rng.random() < 0.8 for _ in range(time)] for _ in range(rows)]
    ties = rng.random() < 0.5
    process = [
        _signal(
            rng, mask[i], step_ids[i] if step_ids else None, process_mask[i] if process_mask else None, ties, live[i]
        )
        for i in range(rows)
    ]
    per_row = lambda draw: [draw() if live[i] else NAN for i in range(rows)]  # noqa: E731
    binary = rng.random() < 0.6
    format_rewards = per_row(lambda: rng.choice([0.0, 1.0, 1.0, 1.0] if binary else [-1.0, 0.0, 0.3]))
    explicit_ok = not binary or rng.random() < 0.3
    logprobs = lambda: [[-rng.expovariate(1.0) if on and live[i] else NAN for on in mask[i]] for i in range(rows)]  # noqa: E731
    return {
        "mask": mask,
        "group": [rng.choice(labels) for _ in range(rows)],
        "rewards": per_row(lambda: rng.choice(REWARDS) if rng.random() < 0.7 else rng.gauss(0, 1)),
        "format_rewards": format_rewards,
        "format_ok": [rng.random() < 0.8 for _ in range(rows)] if explicit_ok else None,
        "extra_rewards": {"length": per_row(rng.random)} if rng.random() < 0.3 else None,
        "process": process,
        "step_ids": step_ids,
        "process_mask": process_mask,
        "correct": [rng.random() < 0.6 for _ in range(rows)] if rng.random() < 0.4 else None,
        "row_mask": row_mask,
        "old": logprobs(),
        "ref": logprobs(),
    }


def seeds() -> st.SearchStrategy[int]:
    """Seeds for `plain_batch`."""
    return st.integers(0, 2**32 - 1)


FIELDS = {
    "rewards": "rewards",
    "format_rewards": "format_rewards",
    "format_ok": "format_ok",
    "correct": "correct",
    "row_mask": "row_mask",
}
TOKEN_FIELDS = {
    "process": "process_rewards",
    "step_ids": "step_ids",
    "process_mask": "process_mask",
    "old": "old_logprobs",
    "ref": "ref_logprobs",
}


def padded(plain: dict[str, Any], dtype: torch.dtype = torch.float64) -> RolloutBatch:
    """The plain batch as [batch, time] tensors."""
    fields = {new: _tensor(plain[old], dtype) for old, new in (FIELDS | TOKEN_FIELDS).items() if plain[old] is not None}
    if plain["extra_rewards"]:
        fields["extra_rewards"] = {name: _tensor(x, dtype) for name, x in plain["extra_rewards"].items()}
    return RolloutBatch(torch.tensor(plain["mask"]), torch.tensor(plain["group"]), **fields)


def packed(plain: dict[str, Any], dtype: torch.dtype = torch.float64, *, drop_masked: bool = True) -> RolloutBatch:
    """The plain batch in the packed layout; with the masked tokens in it or without."""
    rows = range(len(plain["mask"]))
    chosen = [[t for t, on in enumerate(plain["mask"][i]) if on or not drop_masked] for i in rows]
    flatten = lambda x: _tensor([x[i][t] for i in rows for t in chosen[i]], dtype)  # noqa: E731
    values = {new: flatten(plain[old]) for old, new in TOKEN_FIELDS.items() if plain[old] is not None}
    values["response_mask"] = torch.tensor([plain["mask"][i][t] for i in rows for t in chosen[i]], dtype=torch.bool)
    lengths = torch.tensor([0, *(len(row) for row in chosen)])
    fields = {new: _tensor(plain[old], dtype) for old, new in FIELDS.items() if plain[old] is not None}
    if plain["extra_rewards"]:
        fields["extra_rewards"] = {name: _tensor(x, dtype) for name, x in plain["extra_rewards"].items()}
    return RolloutBatch.from_packed(values, lengths.cumsum(0), torch.tensor(plain["group"]), **fields)


def _tensor(x: list[Any], dtype: torch.dtype) -> torch.Tensor:
    tensor = torch.tensor(x)
    return torch.tensor(x, dtype=torch.float64).to(dtype) if tensor.is_floating_point() else tensor


def _windows(rng: random.Random, rows: int, time: int) -> list[tuple[int, int]]:
    """Where each response starts and ends: left padding, right padding, sometimes nothing in between."""
    starts = [rng.randint(0, time) if rng.random() < 0.3 else 0 for _ in range(rows)]
    return [(start, rng.randint(start, time)) for start in starts]


def _steps(rng: random.Random, mask: list[bool]) -> list[int]:
    """Step ids over the response tokens, some tokens and some whole steps uncovered, garbage elsewhere."""
    step, ids = 0, []
    for on in mask:
        if not on:
            ids.append(rng.randint(-9, 9))
            continue
        step += rng.random() < 0.35
        ids.append(-1 if rng.random() < 0.12 else step)
    return ids


def _signal(
    rng: random.Random,
    mask: list[bool],
    step_ids: list[int] | None,
    process_mask: list[bool] | None,
    ties: bool,
    live: bool,
) -> list[float]:
    draw = (lambda: rng.choice([0.0, 0.25, 1.0])) if ties else (lambda: rng.gauss(0.3, 1.0))
    by_step: dict[int, float] = {}
    signal = []
    for t, on in enumerate(mask):
        covered = on and live and (process_mask is None or process_mask[t])
        if step_ids is not None:
            covered = covered and step_ids[t] >= 0
        if not covered:
            signal.append(NAN)
        elif step_ids is None:
            signal.append(draw())
        else:
            signal.append(by_step.setdefault(step_ids[t], draw()))
    return signal
