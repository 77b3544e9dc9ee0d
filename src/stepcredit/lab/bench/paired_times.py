"""Times of alternatives, taken in turns in one process: what else the machine does then falls on all of them."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def paired_times(
    alternatives: Mapping[str, Callable[[], Any]],
    repeats: int | Mapping[str, int],
    *,
    clock: Callable[[], float] = time.perf_counter,
    warm_up: bool = True,
) -> dict[str, list[float]]:
    """Runs every alternative once for nothing, then ``repeats`` times in turns, each round in the other order.

    Args:
        alternatives: What is timed, by name.
        repeats: How many times are taken of each, at least 1; by name, where slow ones sit out the later rounds.
        clock: Gives seconds.
        warm_up: Whether to run each once for nothing.

    Returns:
        For each alternative its times in seconds, in the order taken: the same index is the same round.

    Example:
        >>> times = paired_times({"one": int, "other": int}, repeats=3)
        >>> [len(taken) for taken in times.values()]
        [3, 3]
    """
    of = repeats if isinstance(repeats, Mapping) else dict.fromkeys(alternatives, repeats)
    times: dict[str, list[float]] = {name: [] for name in alternatives}
    for run in alternatives.values() if warm_up else ():
        run()
    for turn in range(max(of.values(), default=0)):
        names = [name for name in alternatives if turn < of[name]]
        for name in names if turn % 2 == 0 else reversed(names):
            begun = clock()
            alternatives[name]()
            times[name].append(clock() - begun)
    return times


def spread(values: list[float]) -> dict[str, float]:
    """The median of some numbers with the least and the greatest.

    Example:
        >>> spread([3.0, 1.0, 2.0])
        {'median': 2.0, 'least': 1.0, 'greatest': 3.0}
    """
    return {"median": statistics.median(values), "least": min(values), "greatest": max(values)}
