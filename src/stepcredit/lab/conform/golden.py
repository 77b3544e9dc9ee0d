"""Golden batches: small, named, always the same, each with something in it that advantage code gets wrong."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stepcredit.batch import RolloutBatch


@dataclass(frozen=True, eq=False)
class Golden:
    """A batch with a name.

    Attributes:
        name: What it has in it.
        seed: What it was drawn from.
        batch: float64, padded on the right; zeros wherever nothing may be read, every response ends with a token of
            its own, and ``correct`` and ``format_ok`` are given.
    """

    name: str
    seed: int
    batch: RolloutBatch

    def __str__(self) -> str:
        rows, time = self.batch.response_mask.shape
        return f"{self.name} (seed {self.seed}, [{rows}, {time}])"


@dataclass(frozen=True)
class _Shape:
    """What a batch is drawn with.

    Attributes:
        sizes: Rollouts of each group.
        lengths: The least and the greatest length of a response, tool output included.
        holes: The share of tool output.
        steps: "some" (of a few tokens each), "each" token a step, or None for a token-level signal.
        uncovered: The share of tokens or steps without a signal; also takes one whole rollout out.
        ties: Signals of few different values, that repeat from token to token.
        equal: Every second group has one reward.
        channels: Format and further rewards, with a violator.
        excluded: One rollout of each group does not count.
    """

    sizes: Sequence[int] = (4, 4)
    lengths: tuple[int, int] = (3, 8)
    holes: float = 0.0
    steps: str | None = "some"
    uncovered: float = 0.0
    ties: bool = False
    equal: bool = False
    channels: bool = False
    excluded: bool = False


_SHAPES: Mapping[str, _Shape] = {
    "two groups of four": _Shape(),
    "ragged groups": _Shape(sizes=(3, 2, 5), channels=True),
    "groups of one": _Shape(sizes=(1, 3, 1)),
    "tool output": _Shape(holes=0.4, lengths=(4, 11)),
    "token-level signal": _Shape(steps=None, lengths=(6, 6)),
    "token-level signal, ragged": _Shape(sizes=(4, 3), steps=None, holes=0.2, lengths=(2, 9), channels=True),
    "signal with ties": _Shape(steps=None, ties=True, lengths=(7, 9)),
    "every token a step": _Shape(steps="each", lengths=(6, 6)),
    "partial coverage": _Shape(uncovered=0.3, holes=0.2),
    "partial coverage, token-level": _Shape(uncovered=0.3, steps=None),
    "a group of equal rewards": _Shape(sizes=(4, 4, 4), equal=True),
    "one-token responses": _Shape(lengths=(1, 1)),
    "excluded rollouts": _Shape(sizes=(4, 5), excluded=True, holes=0.1, channels=True),
    "groups of seven": _Shape(sizes=(7, 7)),
    "large groups": _Shape(sizes=(3, 6, 11, 13), lengths=(1, 3)),
    "format violators": _Shape(sizes=(5, 4), channels=True, holes=0.2),
}


def golden_batches(requires: frozenset[str] = frozenset(), *, random_ones: int = 6) -> list[Golden]:
    """The golden batches, and random ones of seeds 0, 1, ...

    Args:
        requires: Fields that every batch must have: what lacks one is left out.
        random_ones: How many random ones.
    """
    found = [worked_example()]
    found += [Golden(name, seed, _draw(shape, seed)) for seed, (name, shape) in enumerate(_SHAPES.items(), 100)]
    for seed in range(random_ones):
        rng = random.Random(seed)  # noqa: S311
        sizes = [rng.randint(1, 5) for _ in range(rng.randint(1, 4))]
        steps = rng.choice(["some", None])
        shape = _Shape(sizes, (1, rng.randint(1, 12)), rng.choice([0.0, 0.3]), steps, channels=rng.random() < 0.5)
        found.append(Golden("random", seed, _draw(shape, seed)))
    return [one for one in found if all(getattr(one.batch, name, None) is not None for name in requires)]


def worked_example() -> Golden:
    """One group of four ragged rollouts with 3, 2, 2 and 1 scored steps; the last violates the format."""
    scores = [[(3, 0.9), (3, 0.4), (2, 0.7)], [(2, 0.2), (3, 0.2)], [(4, 0.6), (2, 0.8)], [(3, 0.1)]]
    steps = [[(step, score) for step, (n, score) in enumerate(row) for _ in range(n)] for row in scores]
    old = [[-0.1 - ((7 * i + 3 * t) % 10) / 10 for t in range(len(row))] for i, row in enumerate(steps)]
    ref = [[-0.1 - ((3 * i + 7 * t) % 10) / 10 for t in range(len(row))] for i, row in enumerate(steps)]
    batch = RolloutBatch.from_lists(
        [len(row) for row in steps], [0] * 4, [1.0, 0.0, 1.0, 0.0],
        format_rewards=[1.0, 1.0, 1.0, 0.0], format_ok=[True, True, True, False], correct=[True, False, True, False],
        process_rewards=[[score for _, score in row] for row in steps],
        step_ids=[[step for step, _ in row] for row in steps],
        old_logprobs=old, ref_logprobs=ref, teacher_logprobs=ref, base_logprobs=old,
    )  # fmt: skip
    return Golden("worked example", 0, batch)


def _draw(shape: _Shape, seed: int) -> RolloutBatch:
    """A batch of that shape, its rows shuffled."""
    rng = random.Random(seed)  # noqa: S311
    groups = [10 + 3 * g for g, size in enumerate(shape.sizes) for _ in range(size)]
    rng.shuffle(groups)
    masks = [[rng.random() >= shape.holes for _ in range(rng.randint(*shape.lengths) - 1)] + [True] for _ in groups]
    # values that float32 holds exactly, so that a tie stays one in every precision
    rewards = [float(rng.choice([0, 1, 1, 0.5, -1])) for _ in groups]
    if shape.equal:
        rewards = [1.0 if group % 2 == 0 else r for group, r in zip(groups, rewards, strict=True)]
    steps = [_steps(rng, shape, mask) for mask in masks]
    signal = [_signal(rng, shape, row) for row in steps]
    logprobs = {
        f"{role}_logprobs": [[-rng.expovariate(1.0) if on else 0.0 for on in mask] for mask in masks]
        for role in ("old", "ref", "teacher", "base")
    }
    fields: dict[str, Any] = {"correct": [r > 0 for r in rewards], **logprobs}
    if shape.steps is not None:
        fields["step_ids"] = steps
    elif shape.uncovered:
        fields["process_mask"] = [[step >= 0 for step in row] for row in steps]
    if shape.channels:
        ok = [i != 1 and rng.random() < 0.8 for i in range(len(groups))]
        fields |= {"format_rewards": [float(x) for x in ok], "format_ok": ok}
        fields["extra_rewards"] = {"length": [rng.random() for _ in groups]}
    if shape.excluded:
        fields["row_mask"] = [groups.index(group) != i for i, group in enumerate(groups)]
    return RolloutBatch.from_lists(masks, groups, rewards, process_rewards=signal, **fields)


def _steps(rng: random.Random, shape: _Shape, mask: list[bool]) -> list[int]:
    """The step of each token, -1 where there is no signal."""
    ids = list(range(len(mask)))
    if shape.steps == "some":
        ids = [0] * len(mask)
        for t in range(1, len(mask)):
            ids[t] = ids[t - 1] + (rng.random() < 0.4)
    whole = shape.uncovered > 0 and rng.random() < 0.2
    without = {step for step in ids if whole or rng.random() < shape.uncovered}
    return [-1 if step in without else step for step in ids]


def _signal(rng: random.Random, shape: _Shape, steps: list[int]) -> list[float]:
    """One value a covered step, 0 elsewhere."""
    if shape.ties:
        blocks = [0.25 * (t // 3) + 1e-7 * rng.random() for t in range(len(steps))]
        return [value if step >= 0 else 0.0 for value, step in zip(blocks, steps, strict=True)]
    scores = {step: rng.gauss(0.3, 1.0) for step in steps}
    return [scores[step] if step >= 0 else 0.0 for step in steps]


def counted(batch: RolloutBatch) -> Tensor:
    """Bool [batch, time]: the response tokens of rows that count."""
    mask = batch.response_mask
    return mask if batch.row_mask is None else mask & batch.row_mask[:, None]


def padded_by(batch: RolloutBatch, columns: int) -> RolloutBatch:
    """The batch with so many more columns of padding on the right."""
    return with_tokens(batch, lambda x, fill: torch.cat([x, x.new_full((len(x), columns), fill)], 1))


def chosen_rows(batch: RolloutBatch, rows: Sequence[int], **changes: Any) -> RolloutBatch:
    """Some rows of the batch, in that order, with some fields changed after."""
    index = torch.tensor(list(rows), dtype=torch.long)
    fields = {name: x[index] for name, x in tensors(batch).items()}
    if batch.extra_rewards:
        fields["extra_rewards"] = {name: x[index] for name, x in batch.extra_rewards.items()}
    return RolloutBatch(**(fields | changes))


def tensors(batch: RolloutBatch) -> dict[str, Any]:
    """The fields that are tensors, by name."""
    named = {name: getattr(batch, name) for name in batch.__dataclass_fields__}
    return {name: x for name, x in named.items() if isinstance(x, torch.Tensor)}


def with_tokens(batch: RolloutBatch, change: Any) -> RolloutBatch:
    """The batch with every [batch, time] field changed: ``change(field, what stands where nothing is)``."""
    fills = {"response_mask": False, "process_mask": False, "step_ids": -1}
    named = tensors(batch)
    fields = {name: change(x, fills.get(name, 0.0)) if x.ndim == 2 else x for name, x in named.items()}
    return RolloutBatch(**fields, extra_rewards=batch.extra_rewards)


def in_float32(batch: RolloutBatch) -> RolloutBatch:
    """The batch as an engine has it: float32 fields."""
    floats = {name: x.float() for name, x in tensors(batch).items() if x.is_floating_point()}
    extra = {name: x.float() for name, x in (batch.extra_rewards or {}).items()}
    return batch.replace(**floats, extra_rewards=extra or None)
