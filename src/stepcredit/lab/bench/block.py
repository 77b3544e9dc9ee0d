"""One scheme on one batch, and the peers that compute the same, timed in turns with a copy of as many bytes."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stepcredit.batch import Credit, RolloutBatch
from stepcredit.errors import MissingExtraError
from stepcredit.estimators import Estimator
from stepcredit.lab.bench.cases import Shape
from stepcredit.lab.bench.paired_times import paired_times, spread
from stepcredit.lab.bench.schemes import RIVALS, fields_of, minimal_bytes, quiet, scheme_of
from stepcredit.lab.peers import UnsupportedError, peer

WAYS = ("call", "fresh", "unchecked", "checks", "terms")
AGREED = 1e-3  # of the largest advantage: peers sum in float32, along 65,536 tokens too
PATIENCE, LEAST = 2.0, 2  # seconds for all the times of one alternative; the fewest that are taken all the same


def clock_of(device: str, threads: int) -> Callable[[], float]:
    """Seconds: this thread's processor time, or the wall clock's where others work for it.

    Args:
        device: Where the batch is; a GPU is waited for.
        threads: Of torch's.
    """
    if device != "cpu":

        def waited() -> float:
            torch.cuda.synchronize()
            return time.perf_counter()

        return waited
    return time.thread_time if threads == 1 else time.perf_counter


def bench_block(
    name: str, shape: Shape, *, layout: str, peers: Sequence[str], repeats: int, clock: Callable[[], float]
) -> dict[str, Any]:
    """Times a scheme and its peers.

    Every round has, in turns: ``copy``, `torch.Tensor.copy_` of as many bytes as the scheme's inputs and output have;
    ``call``, the estimator on a batch that was checked, into ``out``; ``fresh``, the same into a new tensor;
    ``unchecked``, `RolloutBatch.trusted` and the estimator, into ``out``; ``checks``, `RolloutBatch` alone; ``terms``,
    as ``unchecked`` and then `Credit.terms`; and each peer, whose arguments were made before.

    Args:
        name: Of the scheme.
        shape: The rollouts.
        layout: One of `LAYOUTS`; peers are given padded batches alone.
        peers: Names of those asked for; only those that compute what the scheme does run.
        repeats: Rounds; an alternative that takes long sits out the later ones.
        clock: See `clock_of`.

    Returns:
        Plain values: ``scheme``, ``estimator``, ``layout``, ``road``, ``tokens``, ``bytes``, ``response_bytes`` (see
        `minimal_bytes`), ``output_bytes``, ``first_seconds`` (of the first call here, by the wall clock), ``seconds``
        and ``ratio`` (over the copy's of the same round), each by way as median, least and greatest; ``repeats`` by
        way; ``peers``, a dict each; ``left_out``, peer -> why.
    """
    fields, estimator = fields_of(name, shape, layout), scheme_of(name).estimator
    batch = RolloutBatch(**fields)  # type: ignore[arg-type]
    out = batch.layout.empty(batch.dtype)
    begun = time.perf_counter()
    quiet(lambda: estimator(batch))()
    first = time.perf_counter() - begun
    whole, fixed = minimal_bytes(fields, out, shape.tokens)
    runs: dict[str, Callable[[], Any]] = {"copy": _copy(whole, shape.device)}
    runs |= {way: quiet(run) for way, run in _ours(estimator, batch, fields, out).items()}
    found, left_out = _rivals(name, batch, peers if layout == "padded" else ())
    runs |= {one["peer"]: one.pop("run") for one in found}
    warm = {way: _once(run, clock) for way, run in runs.items()}
    turns = {way: min(repeats, max(LEAST, int(PATIENCE / max(took, 1e-9)))) for way, took in warm.items()}
    times = paired_times(runs, turns, clock=clock, warm_up=False)
    ratio = {way: spread(_over(times[way], times["copy"])) for way in WAYS}
    for one in found:
        taken = times[one["peer"]]
        one |= {"repeats": len(taken), "seconds": spread(taken), "ratio": spread(_over(taken, times["copy"]))}
        one["over_ours"] = spread(_over(taken, times["fresh"]))
    return {
        "scheme": name, "estimator": repr(estimator), "layout": layout, "road": estimator.road(batch),
        "tokens": shape.tokens, "bytes": whole, "response_bytes": fixed,
        "output_bytes": out.numel() * out.element_size(), "first_seconds": first,
        "seconds": {way: spread(times[way]) for way in ("copy", *WAYS)}, "ratio": ratio,
        "repeats": {way: turns[way] for way in ("copy", *WAYS)}, "peers": found, "left_out": left_out,
    }  # fmt: skip


def _ours(estimator: Estimator, batch: RolloutBatch, fields: dict[str, Any], out: Tensor) -> dict[str, Any]:
    def unchecked() -> Credit:
        return estimator(RolloutBatch.trusted(**fields), out=out)

    return {
        "call": lambda: estimator(batch, out=out),
        "fresh": lambda: estimator(batch),
        "unchecked": unchecked,
        "checks": lambda: RolloutBatch(**fields),
        "terms": lambda: unchecked().terms(),
    }


def _rivals(name: str, batch: RolloutBatch, peers: Sequence[str]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The scheme's peers, each with its run, and how far its numbers are from ours with its settings."""
    found, left_out = [], {}
    for one in peers:
        rival = RIVALS[one]
        if rival.scheme != name:
            continue
        if batch.row_mask is None and batch.layout.live.numel() < len(batch):
            left_out[one] = "it counts rollouts without a response token in their groups, as we do not"
            continue
        try:
            run = peer(one).ready(batch)
            theirs = run()
        except (UnsupportedError, MissingExtraError, ValueError) as error:  # verl refuses a single token so
            left_out[one] = " ".join(str(error).split())
            continue
        ours = quiet(partial(rival.settings, batch))().advantages
        counted, read = batch.layout.counted, (x for x in (batch.rewards, batch.process_rewards) if x is not None)
        coarsest = max(torch.finfo(x.dtype).eps for x in read)
        gap = float(torch.where(counted, ours - theirs, 0.0).abs().max())
        largest = float(torch.where(counted, ours, 0.0).abs().max())
        found.append(
            {"peer": one, "settings": repr(rival.settings), "run": run, "greatest_difference": gap,
             "largest": largest, "agrees": gap <= max(AGREED, 4 * coarsest) * max(largest, 1e-30)}
        )  # fmt: skip
    return found, left_out


def _copy(size: int, device: str) -> Callable[[], Tensor]:
    source, target = (torch.ones(size, dtype=torch.uint8, device=device) for _ in range(2))
    return lambda: target.copy_(source)


def _once(run: Callable[[], Any], clock: Callable[[], float]) -> float:
    begun = clock()
    run()
    return clock() - begun


def _over(times: list[float], others: list[float]) -> list[float]:
    """Ratios round by round, of the rounds that both took part in."""
    return [a / max(b, 1e-9) for a, b in zip(times, others, strict=False)]
