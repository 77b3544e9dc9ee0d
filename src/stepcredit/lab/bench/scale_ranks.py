"""One controller against data-parallel ranks: the same rollouts, their credit computed in one place and in all."""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from stepcredit.batch import RolloutBatch
from stepcredit.lab.bench.paired_times import paired_times, spread
from stepcredit.lab.bench.scale_rollouts import SCHEMES, packed_fields, ragged_lengths, size_in_bytes

Fields = dict[str, Tensor]


def controller_against_ranks(scheme: str, tokens: int, group: int, ranks: int, repeats: int) -> dict[str, Any]:
    """Times both ways in as many processes of this machine, joined by gloo; every group is split over all ranks.

    The controller is rank 0: the others send it what the scheme reads, it computes, and sends their advantages back.

    Args:
        scheme: One of `SCHEMES`.
        tokens: Response tokens over all ranks.
        group: Rollouts a group.
        ranks: Processes, one thread each.
        repeats: Rounds, after one for nothing; the ways take turns.

    Returns:
        ``seconds`` of either way, ``controller_bytes`` (the inputs that a controller has to be sent and the advantages
        that it sends back), ``collective_bytes`` and ``collectives`` (what the busiest rank hands to collectives
        instead), ``groups``, ``positions`` (the longest rollout of each group, summed) and ``greatest_difference`` of
        the advantages.
    """
    from torch.multiprocessing.spawn import spawn

    with tempfile.TemporaryDirectory() as folder:
        spawn(_rank, args=(ranks, folder, scheme, tokens, group, repeats), nprocs=ranks)  # type: ignore[no-untyped-call]
        told = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(ranks)]
    lengths = ragged_lengths(tokens, group)
    return {
        "scheme": scheme,
        "ranks": ranks,
        "tokens": int(lengths.sum()),
        "groups": lengths.numel() // group,
        "positions": int(lengths.view(-1, group).amax(1).sum()),
        "seconds": told[0]["seconds"],
        "controller_bytes": sum(one["input_bytes"] + one["output_bytes"] for one in told),
        "collective_bytes": max(one["collective_bytes"] for one in told),
        "collectives": told[0]["collectives"],
        "greatest_difference": max(one["difference"] for one in told),
    }


def _rank(rank: int, ranks: int, folder: str, scheme: str, tokens: int, group: int, repeats: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks, timeout=timedelta(minutes=10)
    )
    world = dist.group.WORLD
    assert world is not None
    lengths = ragged_lengths(tokens, group)
    parts = [torch.arange(rank, lengths.numel(), ranks) for rank in range(ranks)]  # the rollouts of each rank
    mine = packed_fields(scheme, lengths[parts[rank]], parts[rank] // group, seed=rank)
    n_tokens = [int(lengths[part].sum()) for part in parts]
    estimator = SCHEMES[scheme]

    def on_ranks() -> Tensor:
        dist.barrier(world)
        advantages = estimator(RolloutBatch(**mine), process_group=world).advantages  # type: ignore[arg-type]
        dist.barrier(world)  # the slowest rank's time is the way's
        return advantages

    def on_controller() -> Tensor:
        advantages: Tensor
        dist.barrier(world)
        if rank == 0:
            whole = _received(mine, n_tokens, [part.numel() for part in parts])
            credit = estimator(RolloutBatch(**whole))  # type: ignore[arg-type]
            advantages, *others = torch.split(credit.advantages, n_tokens)
            for other, part in enumerate(others, start=1):
                dist.send(part, other)
        else:
            _send(mine)
            advantages = torch.empty(n_tokens[rank])
            dist.recv(advantages, 0)
        dist.barrier(world)
        return advantages

    times = paired_times({"ranks": on_ranks, "controller": on_controller}, repeats)
    with collectives_counted() as counted:
        advantages = estimator(RolloutBatch(**mine), process_group=world).advantages  # type: ignore[arg-type]
    found = {
        "seconds": {name: spread(taken) for name, taken in times.items()},
        "input_bytes": size_in_bytes(mine),
        "output_bytes": advantages.numel() * advantages.element_size(),
        "collectives": len(counted),
        "collective_bytes": sum(counted),
        "difference": float((on_controller() - advantages).abs().max()),
    }
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def _send(fields: Fields) -> None:
    """To the controller: every field, and each rollout's length."""
    for name, x in fields.items():
        dist.send(_plain(x.diff() if name == "cu_seqlens" else x), 0)


def _received(mine: Fields, n_tokens: list[int], n_rollouts: list[int]) -> Fields:
    """All ranks' fields, one rank after the other, as one packed batch's."""
    whole = {}
    for name, x in mine.items():
        own = x.diff() if name == "cu_seqlens" else x
        sizes = n_tokens if x.numel() == n_tokens[0] else n_rollouts
        found = [_plain(own), *(torch.empty(size, dtype=_plain(own).dtype) for size in sizes[1:])]
        for other, buffer in enumerate(found[1:], start=1):
            dist.recv(buffer, other)
        whole[name] = torch.cat(found).view(own.dtype)
    whole["cu_seqlens"] = torch.cat([torch.zeros(1, dtype=torch.long), whole["cu_seqlens"].cumsum(0)])
    return whole


def _plain(x: Tensor) -> Tensor:
    return x.view(torch.uint8) if x.dtype == torch.bool else x  # gloo sends no bools


@contextmanager
def collectives_counted() -> Iterator[list[int]]:
    """The bytes that this rank hands to each collective of the reducer while the block runs."""
    counted: list[int] = []
    plain: dict[str, Callable[..., Any]] = {"all_reduce": dist.all_reduce, "all_gather": dist.all_gather}

    def counting(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            x = args[0 if name == "all_reduce" else 1]
            counted.append(x.numel() * x.element_size())
            return plain[name](*args, **kwargs)

        return call

    try:
        for name in plain:
            setattr(dist, name, counting(name))
        yield counted
    finally:
        for name, call in plain.items():
            setattr(dist, name, call)
