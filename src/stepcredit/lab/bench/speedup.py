"""What more threads bring, held against what the machine has to give at the moment."""

import hashlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from stepcredit.batch import RolloutBatch
from stepcredit.lab.bench.cases import Shape
from stepcredit.lab.bench.paired_times import paired_times, spread
from stepcredit.lab.bench.schemes import fields_of, quiet, scheme_of

GIVEN = 0.9  # of the threads asked for: rounds in which the machine gave that many tell of the scheme
_BLOCK = bytes(1 << 18)


def bench_speedup(name: str, shape: Shape, *, layout: str, threads: tuple[int, int], repeats: int) -> dict[str, Any]:
    """Times a call on a checked batch, into ``out``, on few threads and on more, in turns, by the wall clock.

    Beside it runs work that needs registers alone, cut evenly: where that does not gain, no code would.

    Args:
        name: Of the scheme.
        shape: The rollouts.
        layout: One of `LAYOUTS`.
        threads: How many; the second is held against the first.
        repeats: Rounds.

    Returns:
        Plain values: ``scheme``, ``layout``, ``threads``; ``speedup`` and ``machine`` (that of the work beside it), as
        median, least and greatest over the rounds; ``rounds``, how many there were; ``given_rounds``, those in which
        the machine gave 0.9 of the threads; ``given_speedup``, over these, or None.
    """
    batch = RolloutBatch(**fields_of(name, shape, layout))  # type: ignore[arg-type]
    estimator, out = scheme_of(name).estimator, batch.layout.empty(batch.dtype)
    few, many = threads
    call = quiet(lambda: estimator(batch, out=out))
    begun = time.perf_counter()
    _on(few, call)()
    _on(few, call)()
    took = (time.perf_counter() - begun) / 2
    blocks = few * many * max(1, round(took / _seconds_a_block() / few))
    runs = {"few": _on(few, call), "control few": _control(few, blocks), "many": _on(many, call)}
    times = paired_times({**runs, "control many": _control(many, blocks)}, repeats)
    torch.set_num_threads(few)
    speedup = [a / b for a, b in zip(times["few"], times["many"], strict=True)]
    machine = [a / b for a, b in zip(times["control few"], times["control many"], strict=True)]
    given = [gain for gain, could in zip(speedup, machine, strict=True) if could >= GIVEN * many / few]
    return {
        "scheme": name, "layout": layout, "threads": list(threads), "speedup": spread(speedup),
        "machine": spread(machine), "rounds": len(speedup), "given_rounds": len(given),
        "given_speedup": spread(given) if given else None,
    }  # fmt: skip


def _on(threads: int, run: Callable[[], Any]) -> Callable[[], Any]:
    def there() -> Any:
        torch.set_num_threads(threads)
        return run()

    return there


def _control(threads: int, blocks: int) -> Callable[[], None]:
    """Hashes, which hold no lock and read what a core's own cache has."""

    def share(n: int) -> None:
        for _ in range(n):
            hashlib.sha256(_BLOCK)

    def run() -> None:
        with ThreadPoolExecutor(threads) as pool:  # the caller works too: one that slept is put beside its threads
            others = [pool.submit(share, blocks // threads) for _ in range(threads - 1)]
            share(blocks // threads)
            for other in others:
                other.result()

    return run


def _seconds_a_block() -> float:
    begun = time.perf_counter()
    for _ in range(8):
        hashlib.sha256(_BLOCK)
    return (time.perf_counter() - begun) / 8
