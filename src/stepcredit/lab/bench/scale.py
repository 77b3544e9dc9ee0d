"""How the advantage stage grows with tokens: its time and memory on one controller, and against data-parallel ranks."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from stepcredit.errors import InputError, StepCreditError
from stepcredit.lab.bench.memory import available_memory, watched
from stepcredit.lab.bench.paired_times import spread
from stepcredit.lab.bench.scale_ranks import controller_against_ranks
from stepcredit.lab.bench.scale_rollouts import SCHEMES

LARGEST_POWER, REPEATED_POWER, FITTED = 34, 24, 3
MARGIN = 0.85  # of the free memory; the rest is left to whatever else runs
BYTES_A_TOKEN = 400  # before a size was measured; more than any scheme was seen to take
OUT_OF_MEMORY = ("ended with -9", "MemoryError", "allocate memory")  # killed, Python's, torch's
BEYOND = (2**28, 2**30, 2**32)


def bench_scale(
    schemes: Sequence[str] = tuple(SCHEMES),
    *,
    smallest: int = 16,
    largest: int = 22,
    group: int = 8,
    layout: str = "packed",
    repeats: int = 3,
    ranks: Sequence[int] = (2, 4),
    rank_tokens: int = 20,
) -> dict[str, Any]:
    """Measures each scheme at 2^smallest, 2^(smallest + 2), ... 2^largest tokens.

    The stage is what a trainer's controller runs: `RolloutBatch` checks its fields, the estimator assigns credit; one
    thread, float32, ragged rollouts, a process for each size. A size that the free memory would not hold, by the growth
    so far, is not begun; half of it is, if that is new and fits.

    Args:
        schemes: Some of `SCHEMES`.
        smallest: Power of two.
        largest: Power of two, measured whatever the steps.
        group: Rollouts a group.
        layout: "packed", or "padded" to the longest rollout; tokens are response tokens either way.
        repeats: Times to take at each size up to 2^24; larger ones run once.
        ranks: Numbers of data-parallel processes to hold against one controller; none to leave that out.
        rank_tokens: Power of two, the tokens of that comparison.

    Returns:
        Plain values: ``sizes`` (see `advantage_stage`; seconds as median, least and greatest, ``peak_bytes`` of the
        process, ``added_bytes`` of the stage), ``stopped`` (scheme, tokens and why, for each that ended early),
        ``growth`` (see `growth`, by scheme), ``ranks`` (see `controller_against_ranks`), ``group``, ``layout``,
        ``cores``.

    Raises:
        InputError: A name or number out of its range.
        StepCreditError: A process failed, or memory could not be counted.
    """
    _check(schemes, smallest, largest, group, layout, repeats, ranks, rank_tokens)
    sizes: list[dict[str, Any]] = []
    stopped = []
    for scheme in schemes:
        measured, why = _sizes_of(scheme, smallest, largest, group, layout, repeats)
        sizes += measured
        stopped += [why] if why else []
    return {
        "sizes": sizes,
        "stopped": stopped,
        "growth": {name: growth([one for one in sizes if one["scheme"] == name]) for name in schemes},
        "ranks": [
            controller_against_ranks(scheme, 2**rank_tokens, group, count, repeats)
            for scheme in schemes
            for count in ranks
        ],
        "group": group,
        "layout": layout,
        "cores": os.cpu_count(),
    }


def growth(sizes: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """A power law through the largest sizes measured: ``seconds = a tokens^b`` of the processor, and bytes likewise.

    Args:
        sizes: A scheme's sizes as measured, at least two for a law.

    Returns:
        ``seconds_exponent`` and ``bytes_exponent``; ``fitted_from`` and ``fitted_to``, in tokens; and ``extrapolated``:
        for each size of 2^28, 2^30 and 2^32 that lies beyond, ``tokens``, ``seconds`` and ``added_bytes``, none of
        which was measured. None for fewer than two sizes.

    Example:
        >>> sizes = [{"tokens": n, "cpu_seconds": {"median": n / 1e6}, "added_bytes": 100 * n} for n in (2**20, 2**22)]
        >>> law = growth(sizes)
        >>> round(law["seconds_exponent"], 6), round(law["extrapolated"][0]["seconds"], 1)
        (1.0, 268.4)
    """
    used = sorted(sizes, key=lambda one: int(one["tokens"]))[-FITTED:]
    if len(used) < 2:
        return None
    tokens = np.log([one["tokens"] for one in used])
    seconds = np.polyfit(tokens, np.log([one["cpu_seconds"]["median"] for one in used]), 1)
    added = np.polyfit(tokens, np.log([one["added_bytes"] for one in used]), 1)
    last = used[-1]["tokens"]

    def at(law: Any, size: int) -> float:
        return float(np.exp(np.polyval(law, np.log(size))))

    return {
        "seconds_exponent": float(seconds[0]),
        "bytes_exponent": float(added[0]),
        "fitted_from": used[0]["tokens"],
        "fitted_to": last,
        "extrapolated": [
            {"tokens": size, "seconds": at(seconds, size), "added_bytes": at(added, size)}
            for size in BEYOND
            if size > 1.01 * last
        ],
    }


def controller_share(seconds_a_token: float, tokens: float, step_seconds: float) -> float:
    """The share of a training step in which every other process waits for the controller's advantage stage.

        share = c N / (c N + S)

    Args:
        seconds_a_token: c, of the stage, in seconds.
        tokens: N, response tokens a step.
        step_seconds: S, everything else in the step.

    Returns:
        In [0, 1].

    Example:
        >>> controller_share(1e-6, tokens=1e6, step_seconds=9.0)
        0.1
    """
    stage = seconds_a_token * tokens
    return stage / (stage + step_seconds)


def tokens_at_share(seconds_a_token: float, share: float, step_seconds: float) -> float:
    """The tokens a step at which the controller's share is reached, S as it is: data-parallel ranks take the growth.

        N = share S / ((1 - share) c)

    Args:
        seconds_a_token: c.
        share: In (0, 1).
        step_seconds: S.

    Returns:
        Tokens.

    Example:
        >>> round(tokens_at_share(1e-6, 0.1, step_seconds=9.0))
        1000000
    """
    return share * step_seconds / ((1 - share) * seconds_a_token)


def _sizes_of(
    scheme: str, smallest: int, largest: int, group: int, layout: str, repeats: int
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """A scheme's sizes from the smallest on, and where and why it ended early, if it did."""
    measured: list[dict[str, Any]] = []
    powers = sorted({*range(smallest, largest, 2), largest})
    while powers:
        power = powers.pop(0)
        tokens = 2**power
        last = measured[-1] if measured else None
        needs = last["peak_bytes"] * tokens / last["tokens"] if last else BYTES_A_TOKEN * tokens
        free = available_memory()
        if needs > MARGIN * free:
            if last and tokens / 2 > 1.5 * last["tokens"]:
                powers = [power - 1, power]
                continue
            why = f"it would need about {needs / 2**30:.1f} GiB; {free / 2**30:.1f} GiB are free"
            return measured, {"scheme": scheme, "tokens": tokens, "why": why}
        options = {"scheme": scheme, "tokens": tokens, "group": group, "layout": layout}
        options["repeats"] = repeats if power <= REPEATED_POWER else 1
        try:
            seen = watched("stepcredit.lab.bench.scale_rollouts", "advantage_stage", options)
        except StepCreditError as error:
            if not measured or not any(sign in str(error) for sign in OUT_OF_MEMORY):
                raise
            return measured, {"scheme": scheme, "tokens": tokens, "why": str(error)}
        measured.append({"scheme": scheme, **_read(seen)})
    return measured, None


def _read(seen: dict[str, Any]) -> dict[str, Any]:
    found = seen["found"]
    checking, crediting, cpu = (found.pop(name) for name in ("batch_seconds", "credit_seconds", "cpu_seconds"))
    return {
        **found,
        "batch_seconds": spread(checking),
        "credit_seconds": spread(crediting),
        "cpu_seconds": spread(cpu),
        "seconds": spread([a + b for a, b in zip(checking, crediting, strict=True)]),
        "peak_bytes": seen["peak_bytes"],
        "added_bytes": seen["peak_bytes"] - seen["before_bytes"],
    }


def _check(
    schemes: Sequence[str],
    smallest: int,
    largest: int,
    group: int,
    layout: str,
    repeats: int,
    ranks: Sequence[int],
    rank_tokens: int,
) -> None:
    for name in schemes:
        if name not in SCHEMES:
            raise InputError(f"`schemes` must be of {', '.join(SCHEMES)}; got {name!r}.")
    if layout not in ("packed", "padded"):
        raise InputError(f"`layout` must be 'packed' or 'padded'; got {layout!r}.")
    numbers = {"group": group, "repeats": repeats, **{f"ranks[{place}]": count for place, count in enumerate(ranks)}}
    for name, value in numbers.items():
        if value < 1:
            raise InputError(f"`{name}` must be at least 1; got {value}.")
    for name, power in (("smallest", smallest), ("largest", largest), ("rank_tokens", rank_tokens)):
        if not 10 <= power <= LARGEST_POWER or 2**power < group:
            raise InputError(f"`{name}` must be a power of two from 10 to {LARGEST_POWER}; got {power}.")
    if smallest > largest:
        raise InputError(f"`smallest` must be at most `largest`, {largest}; got {smallest}.")
