"""Guards, against loops over the rollouts one by one."""

import random

import pytest
import torch

from stepcredit import Guard, InputError, RolloutBatch


def loop(scores: list[float], correct: bool, guard: Guard) -> list[float]:
    """What a rollout's step scores become, straight from the definitions."""
    values = [min(x - guard.ceiling, 0.0) if guard.ceiling is not None else x for x in scores]
    if guard.differences == "gain":
        values = [x - (values[i - 1] if i else guard.start) for i, x in enumerate(values)]
    if guard.differences == "delta":
        n = len(values)
        values = [0.0 if i == n - 1 else x if i == n - 2 else x - values[i + 1] for i, x in enumerate(values)]
    return values if correct or guard.gate == "none" else [min(x, 0.0) for x in values]


def rollouts(seed: int) -> tuple[list[list[float]], list[list[int]], list[float]]:
    """Scores by step, step lengths, outcomes; some rollouts without a step."""
    rng = random.Random(seed)
    lengths = [[rng.randint(1, 4) for _ in range(rng.randint(0, 5))] for _ in range(6)]
    return [[rng.random() for _ in row] for row in lengths], lengths, [float(rng.random() < 0.5) for _ in range(6)]


GUARDS = [
    Guard(ceiling=ceiling, differences=differences, start=0.5, gate=gate)
    for ceiling in (None, 0.4)
    for differences in ("none", "gain", "delta")
    for gate in ("none", "outcome")
]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("guard", GUARDS, ids=str)
def test_guards_do_what_their_definitions_say(guard: Guard, packed: bool) -> None:
    scores, lengths, outcomes = rollouts(3)
    process, ids, want = [], [], []
    for row, sizes, outcome in zip(scores, lengths, outcomes, strict=True):
        changed = loop(row, outcome > 0, guard)
        process.append([x for x, n in zip(row, sizes, strict=True) for _ in range(n)] + [9.0])  # one token uncovered
        ids.append([i for i, n in enumerate(sizes) for _ in range(n)] + [-1])
        want.append([x for x, n in zip(changed, sizes, strict=True) for _ in range(n)] + [0.0])
    tokens = [len(row) for row in process]
    batch = RolloutBatch.from_lists(
        tokens, [0] * 6, outcomes, process_rewards=process, step_ids=ids
    )  # fmt: skip
    if packed:
        mask = batch.response_mask
        values = {name: getattr(batch, name)[mask] for name in ("response_mask", "process_rewards", "step_ids")}
        ends = torch.tensor([0, *tokens]).cumsum(0)
        batch = RolloutBatch.from_packed(values, ends, torch.zeros(6, dtype=torch.int64), rewards=batch.rewards)
        got = [row.tolist() for row in guard(batch).process_rewards.split(tokens)]
    else:
        got = [row[:n] for row, n in zip(guard(batch).process_rewards.tolist(), tokens, strict=True)]
    assert [x for row in got for x in row] == pytest.approx([x for row in want for x in row], abs=1e-6)


def test_what_is_summed_is_bounded_however_many_steps() -> None:
    scores = torch.rand(1, 50, dtype=torch.float64)
    batch = RolloutBatch(torch.ones(1, 50, dtype=torch.bool), torch.zeros(1, dtype=torch.int64), process_rewards=scores)
    gain = Guard(differences="gain", start=1.0)(batch).process_rewards[0]
    delta = Guard(differences="delta")(batch).process_rewards[0]
    assert float(gain.sum()) == pytest.approx(float(scores[0, -1]) - 1)
    to_go = delta.flip(0).cumsum(0).flip(0)
    assert to_go[:-1].tolist() == pytest.approx(scores[0, :-1].tolist())
    assert float(to_go[-1]) == 0


def test_a_guard_needs_what_it_guards_by() -> None:
    batch = RolloutBatch.from_lists([1], [0], process_rewards=[[1.0]])
    assert Guard()(batch).process_rewards.tolist() == [[1.0]]
    with pytest.raises(InputError, match="`rewards` must be in the batch for a Guard with gate 'outcome'"):
        Guard(gate="outcome")(batch)
    with pytest.raises(InputError, match="`process_rewards` must be in the batch for Guard; got None"):
        Guard()(batch.replace(process_rewards=None))
    with pytest.raises(InputError, match="`differences` must be one of"):
        Guard(differences="both")  # type: ignore[arg-type]
    correct = batch.replace(correct=torch.tensor([False]))
    assert Guard(gate="outcome")(correct).process_rewards.tolist() == [[0.0]]
