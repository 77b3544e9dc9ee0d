"""The memory that the advantage stage takes beside its inputs and output, as the operating system counts it."""

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from stepcredit.batch import RolloutBatch
from stepcredit.lab.bench.cases import Shape
from stepcredit.lab.bench.memory import peak_memories, watched
from stepcredit.lab.bench.schemes import fields_of, scheme_of
from stepcredit.lab.peers import peer

FEW = (64, 1024)  # rollouts and width of a first call, which loads what calls need


def footprints(blocks: Sequence[dict[str, Any]], shape: Shape, whose: str) -> list[dict[str, float]]:
    """The peak of what a call holds beside inputs and output, over the output's bytes.

    Args:
        blocks: As `bench_block` gives them.
        shape: Their rollouts.
        whose: "none", "ours", or "all": a process each.

    Returns:
        For each block "call", of ours; of "all" also "checks" (the batch that they make is held) and the peers by
        name, at least 0.

    Raises:
        StepCreditError: A process failed, or the system does not count (it must be Linux).
    """
    works: list[tuple[str, dict[str, Any]]] = []
    for block in blocks if whose != "none" else ():
        of = {"name": block["scheme"], "layout": block["layout"], "shape": plain(shape)}
        works.append(("call_work", of))
        if whose == "all":
            works.append(("checks_work", of))
            works += [("peer_work", {**of, "rival": one["peer"]}) for one in block["peers"]]
    peaks = iter(peak_memories(__name__, works))
    found = []
    for block in blocks:
        names = {"none": [], "ours": ["call"], "all": ["call", "checks", *(one["peer"] for one in block["peers"])]}[
            whose
        ]
        given = {what: next(peaks) for what in names}
        output = block["output_bytes"]
        own = {what: peak / output for what, peak in given.items() if what in ("call", "checks")}
        found.append(own | {what: max(0, peak - output) / output for what, peak in given.items() if what not in own})
    return found


def compiling_seconds(name: str, shape: Shape, layout: str) -> float:
    """Seconds of the first call in a process that finds no compiled kernel, checks included."""
    of = {"name": name, "layout": layout, "shape": plain(shape)}
    seen = watched(__name__, "first_work", of)
    return float(seen["found"]["seconds"])


def plain(shape: Shape) -> dict[str, Any]:
    """A shape as plain values, for another process."""
    found = dataclasses.asdict(shape)
    return {**found, **{name: str(found[name]).split(".")[1] for name in ("dtype", "step_dtype")}}


def call_work(name: str, layout: str, shape: dict[str, Any]) -> Callable[[], None]:
    """The estimator on a checked batch, into a tensor that was written to."""
    batch = RolloutBatch(**_fields(name, layout, shape))
    out = batch.layout.empty(batch.dtype).fill_(1.0)

    def run() -> None:
        scheme_of(name).estimator(batch, out=out)

    return run


def checks_work(name: str, layout: str, shape: dict[str, Any]) -> Callable[[], None]:
    """The checks."""
    fields = _fields(name, layout, shape)

    def run() -> None:
        RolloutBatch(**fields)

    return run


def peer_work(name: str, layout: str, shape: dict[str, Any], rival: str) -> Callable[[], None]:
    """A peer, with its output."""
    run = peer(rival).ready(RolloutBatch(**_fields(name, layout, shape)))
    few = Shape(**_made({**shape, "rows": FEW[0], "width": FEW[1]}))
    peer(rival).ready(RolloutBatch(**fields_of(name, few, layout)))()  # type: ignore[arg-type]

    def once() -> None:
        run()

    return once


def first_work(name: str, layout: str, shape: dict[str, Any]) -> Callable[[], dict[str, float]]:
    """The first call of all, with no compiled kernel on disk."""
    empty = tempfile.TemporaryDirectory(prefix="stepcredit-")  # gone with the function that is given back
    os.environ["NUMBA_CACHE_DIR"] = empty.name
    torch.set_num_threads(1)
    fields: dict[str, Any] = fields_of(name, Shape(**_made(shape)), layout)

    def run() -> dict[str, float]:
        begun = time.perf_counter()
        assert Path(empty.name).exists()
        scheme_of(name).estimator(RolloutBatch(**fields))
        return {"seconds": time.perf_counter() - begun}

    return run


def _fields(name: str, layout: str, shape: dict[str, Any]) -> dict[str, Any]:
    """The batch's, once the scheme has run on few rollouts: loading code is not the work's memory."""
    torch.set_num_threads(1)
    few = fields_of(name, Shape(**_made({**shape, "rows": FEW[0], "width": FEW[1]})), layout)
    scheme_of(name).estimator(RolloutBatch(**few))  # type: ignore[arg-type]
    return fields_of(name, Shape(**_made(shape)), layout)


def _made(shape: dict[str, Any]) -> dict[str, Any]:
    return {**shape, **{name: getattr(torch, shape[name]) for name in ("dtype", "step_dtype")}}
