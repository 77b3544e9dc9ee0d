"""The advantage stage against the time that a copy of its bytes takes, and against peers that compute the same."""

import os
from collections.abc import Sequence
from itertools import product
from typing import Any

import torch

from stepcredit.errors import InputError, StepCreditError
from stepcredit.lab.bench.block import bench_block, clock_of
from stepcredit.lab.bench.cases import CASES, LAYOUTS, Shape
from stepcredit.lab.bench.footprint import compiling_seconds, footprints
from stepcredit.lab.bench.schemes import RIVALS, scheme_of
from stepcredit.lab.bench.speedup import bench_speedup
from stepcredit.lab.peers import UnsupportedError, peer

TARGETED = ("grpo", "grpo-process", "spro", "pass-steps", "pass-tokens", "prime")
DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "bfloat16", "float16")}
STEP_DTYPES = {"int32": torch.int32, "int64": torch.int64}
MEMORY = ("none", "ours", "all")


def bench_advantages(
    cases: Sequence[str] = ("ragged",),
    shapes: Sequence[tuple[int, int]] = (),
    *,
    group: int | None = None,
    layouts: Sequence[str] = ("padded",),
    dtype: str = "float32",
    step_ids: str = "int64",
    threads: Sequence[int] = (1,),
    device: str = "cpu",
    schemes: Sequence[str] | None = None,
    peers: Sequence[str] | None = None,
    repeats: int = 7,
    memory: str = "ours",
    compiling: bool = False,
) -> dict[str, Any]:
    """Times each scheme on each case at each shape, beside its peers.

    Args:
        cases: Some of `CASES`.
        shapes: (B, T) of the batches; none for each case's own.
        group: Rollouts a group; None for each case's own.
        layouts: Some of `LAYOUTS`, of the same rollouts.
        dtype: Of float fields: "float32", "float64", "bfloat16" or "float16".
        step_ids: "int64" or "int32".
        threads: Of torch's. The first is what schemes are timed on; each further one is held against it.
        device: As torch names it; on a GPU memory is not counted.
        schemes: Some of `SCHEMES`; None: those with a target, and those that the peers compute.
        peers: Some of `RIVALS`; None: those that are installed. Those that are not are left out by name.
        repeats: Rounds.
        memory: Whose peak memory is counted, in a process each: "none", "ours", or "all" for the peers' too.
        compiling: Also time the first call of a process that finds no compiled kernel.

    Returns:
        Plain values: ``blocks`` (see `bench_block`; with ``case``, ``says``, ``rows``, ``width``, ``group``,
        ``memory``, see `footprints`, and ``compiling_seconds``, if asked for), ``speedups`` (see `bench_speedup`),
        ``left_out`` (peer -> why), ``dtype``, ``step_ids``, ``threads``, ``device``, ``clock``, ``cores``, ``torch``.

    Raises:
        InputError: A name or number out of its range.
        StepCreditError: Memory could not be counted, or a peer that was asked for is not installed.
    """
    _check(layouts, dtype, step_ids, threads, repeats, memory)
    _check_device(device)
    asked, left_out = _installed(peers)
    names = list(schemes or TARGETED)
    names += [] if schemes else [one for one in dict.fromkeys(RIVALS[p].scheme for p in asked) if one not in names]
    for name in names:
        scheme_of(name)
    blocks, speedups = [], []
    before = torch.get_num_threads()
    torch.set_num_threads(threads[0])
    try:
        for shape in _shapes(cases, shapes, group, dtype, step_ids, device):
            where = {"case": shape.case, "says": CASES[shape.case].says, "rows": shape.rows, "width": shape.width}
            where["group"] = shape.group
            for layout in layouts:
                clock = clock_of(device, threads[0])
                timed = [
                    bench_block(name, shape, layout=layout, peers=asked, repeats=repeats, clock=clock) for name in names
                ]
                held = footprints(timed, shape, memory if device == "cpu" else "none")
                blocks += [{**where, **one, "memory": its} for one, its in zip(timed, held, strict=True)]
                for one in blocks[-len(names) :] if compiling else ():
                    one["compiling_seconds"] = compiling_seconds(one["scheme"], shape, layout)
                for name, more in product(names, threads[1:]):
                    found = bench_speedup(name, shape, layout=layout, threads=(threads[0], more), repeats=repeats)
                    speedups.append({**where, **found})
    finally:
        torch.set_num_threads(before)
    return {
        "blocks": blocks, "speedups": speedups, "left_out": left_out, "dtype": dtype, "step_ids": step_ids,
        "threads": list(threads), "device": device,
        "clock": "thread CPU time" if device == "cpu" and threads[0] == 1 else "wall clock",
        "cores": os.cpu_count(), "torch": torch.__version__,
    }  # fmt: skip


def disagreements(result: dict[str, Any]) -> list[str]:
    """The peers whose numbers were not ours, each in a line; none where all agreed."""
    return [
        f"{one['peer']} on {block['case']}: {one['greatest_difference']:.2g} apart, ours are up to {one['largest']:.2g}"
        for block in result["blocks"]
        for one in block["peers"]
        if not one["agrees"]
    ]


def _installed(peers: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    """The peers to run, and those that are not there."""
    found: list[str] = []
    left_out: dict[str, str] = {}
    for name in RIVALS if peers is None else peers:
        if name not in RIVALS:
            raise InputError(f"`peers` must be of {', '.join(RIVALS)}; got {name!r}.")
        try:
            _probe(name)
        except StepCreditError as error:
            if peers is not None:
                raise
            left_out[name] = str(error)
        else:
            found.append(name)
    return found, left_out


def _probe(name: str) -> None:
    """Runs a peer on a few rollouts; raises what it raises for want of an engine."""
    from stepcredit.batch import RolloutBatch

    few = Shape("ragged", 4, 8, 2).fields("step_rewards")
    try:
        peer(name).ready(RolloutBatch(**few))()  # type: ignore[arg-type]
    except UnsupportedError as error:
        raise StepCreditError(str(error)) from None


def _shapes(
    cases: Sequence[str], shapes: Sequence[tuple[int, int]], group: int | None, dtype: str, step_ids: str, device: str
) -> list[Shape]:
    found = []
    for name in cases:
        case = CASES.get(name)
        if case is None:
            raise InputError(f"`cases` must be of {', '.join(CASES)}; got {name!r}.")
        for rows, width in shapes or [(case.rows, case.width)]:
            size = case.group or rows if group is None else group
            found.append(Shape(name, rows, width, size, DTYPES[dtype], STEP_DTYPES[step_ids], device))
    return found


def _check_device(device: str) -> None:
    rule = f"`device` must be cpu, or a cuda device that torch has here; got {device!r}"
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise InputError(f"{rule}.")
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"{rule}: {str(error).splitlines()[0]}.") from None


def _check(
    layouts: Sequence[str], dtype: str, step_ids: str, threads: Sequence[int], repeats: int, memory: str
) -> None:
    known = {"layouts": tuple(LAYOUTS), "dtype": tuple(DTYPES), "step_ids": tuple(STEP_DTYPES), "memory": MEMORY}
    given = {"layouts": layouts, "dtype": (dtype,), "step_ids": (step_ids,), "memory": (memory,)}
    for name, values in given.items():
        for value in values:
            if value not in known[name]:
                raise InputError(f"`{name}` must be of {', '.join(known[name])}; got {value!r}.")
    if not threads:
        raise InputError("`threads` must name at least one number; got none.")
    for name, numbers in {"repeats": (repeats,), "threads": threads}.items():
        if min(numbers) < 1:
            raise InputError(f"`{name}` must be at least 1; got {min(numbers)}.")
