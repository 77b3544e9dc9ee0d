"""Credit worked out beside the adapter: from what the reward functions saw, by plain loops over characters and rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from stepcredit.batch import Rollouts, ScoredSpan
from trl_trainer import EOS, PAD, WORDS, Generation

Matrix = list[list[float]]


class HighDigits:
    """A text signal: the share of digits over 4 in each step; says nothing about a step with one digit."""

    name = "high_digits"
    unit = "share of digits over 4"
    requires = frozenset({"steps"})

    def score(self, rollouts: Rollouts) -> list[list[ScoredSpan]]:
        assert rollouts.steps is not None
        scored = []
        for text, steps in zip(rollouts.completions, rollouts.steps, strict=True):
            shares = [(start, end, high_digits(text[start:end])) for start, end in steps]
            scored.append([ScoredSpan(start, end, share) for start, end, share in shares if share is not None])
        return scored


def high_digits(piece: str) -> float | None:
    digits = [c for c in piece if c != "\n"]
    return sum(c in "56789" for c in digits) / len(digits) if len(digits) > 1 else None


def lines(text: str) -> list[str]:
    """A step is a line with its end; a line without content joins the one before it, or the first."""
    pieces: list[str] = []
    lead = ""
    for line in text.splitlines(keepends=True):
        if line.strip():
            pieces.append(lead + line)
            lead = ""
        elif pieces:
            pieces[-1] += line
        else:
            lead += line
    return pieces or ([lead] if lead else [])


def signal_of(ids: Sequence[int], mask: Sequence[int]) -> tuple[list[float], list[int]]:
    """`HighDigits` on each token, and its step; a token is a character, and the end token follows the one before.

    Steps are lines of what the policy wrote in one go: a token of an environment ends one.
    """
    process, steps, last, count = [], [], (-1, 0.0), 0
    for trained, run in itertools.groupby(zip(ids, mask, strict=True), key=lambda pair: bool(pair[1])):
        tokens = [token for token, _ in run]
        if not trained:
            process += [0.0] * len(tokens)
            steps += [-1] * len(tokens)
            continue
        pieces = lines("".join(WORDS[i] for i in tokens if i != EOS))
        characters = iter([(count + n, high_digits(piece)) for n, piece in enumerate(pieces) for _ in piece])
        count += len(pieces)
        for token in tokens:
            if token != EOS:
                step, share = next(characters)
                last = (-1, 0.0) if share is None else (step, share)
            process.append(last[1])
            steps.append(last[0])
    return process, steps


def plain_batch(
    generation: Generation,
    num_generations: int,
    *,
    outcome: Sequence[str],
    format: Sequence[str] = (),
    extra: Sequence[str] = (),
    weights: dict[str, float] | None = None,
    threshold: float = 1.0,
    masks: Sequence[Sequence[int]] | None = None,
    signal: bool = False,
    old: Matrix | None = None,
    ref: Matrix | None = None,
) -> dict[str, Any]:
    """The batch that `references` reads: nested lists, padded to the longest completion."""
    rows, time = range(len(generation.ids)), max(map(len, generation.ids))
    masks = masks or [[1] * len(ids) for ids in generation.ids]
    weight = dict.fromkeys(generation.rewards, 1.0) | (weights or {})

    def channel(names: Sequence[str]) -> list[float | None]:
        sums: list[float | None] = []
        for i in rows:
            given = [(weight[n], generation.rewards[n][i]) for n in names if generation.rewards[n][i] is not None]
            sums.append(sum(w * x for w, x in given) if given else None)
        return sums

    def wide(ragged: Sequence[Sequence[Any]], fill: Any) -> list[list[Any]]:
        return [[*row, *[fill] * (time - len(row))] for row in ragged]

    channels = {"rewards": channel(outcome), **({"format_rewards": channel(format)} if format else {})}
    extras = {name: channel([name]) for name in extra}
    unscorable = [any(x[i] is None for x in [*channels.values(), *extras.values()]) for i in rows]
    kept = [all((generation.rewards[n][i] or 0.0) >= threshold for n in format) for i in rows]
    zeros = lambda values: [0.0 if x is None else x for x in values]  # noqa: E731
    found = [signal_of(ids, mask) for ids, mask in zip(generation.ids, masks, strict=True)]
    return {
        "mask": wide([[bool(x) for x in mask] for mask in masks], False),
        "group": [i // num_generations for i in rows],
        **{name: zeros(values) for name, values in channels.items()},
        "format_ok": kept if format else None,
        "extra_rewards": {name: zeros(values) for name, values in extras.items()} or None,
        "row_mask": [not x for x in unscorable],
        **(
            {"process": wide([x for x, _ in found], 0.0), "step_ids": wide([x for _, x in found], -1)} if signal else {}
        ),
        **({"old": wide(old, 0.0)} if old is not None else {}),
        **({"ref": wide(ref, 0.0)} if ref is not None else {}),
    }


def check_seen(
    seen: Sequence[dict[str, Any]],
    generations: Sequence[Generation],
    expected: Callable[[Generation], Matrix],
    *,
    atol: float = 1e-5,
) -> int:
    """Asserts that every row that the loss was given has its own rollout's credit; returns how many rows there were."""
    credit: dict[tuple[str, tuple[int, ...]], list[float]] = {}
    for generation in generations:
        for prompt, ids, row in zip(generation.prompts, generation.ids, expected(generation), strict=True):
            key = prompt, tuple(ids)
            assert credit.setdefault(key, row[: len(ids)]) == row[: len(ids)], "two rollouts, one text, two credits"
    checked = 0
    for batch in seen:
        assert batch["advantages"].shape == batch["completion_ids"].shape
        for prompt, ids, row in zip(
            *(batch[k].tolist() for k in ("prompt_ids", "completion_ids", "advantages")), strict=True
        ):
            key = "".join(WORDS[i] for i in prompt if i != PAD), tuple(i for i in ids if i != PAD)
            want = credit[key] + [0.0] * (len(ids) - len(credit[key]))
            assert max(abs(a - b) for a, b in zip(row, want, strict=True)) < atol, (key, row, want)
            assert all(a == 0.0 for a in row[len(credit[key]) :])
            checked += 1
    return checked
