"""One rank of the sharding test: a module of its own, so that spawned processes can import it."""

import os
import random
import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist

from schemes import SCHEMES
from stepcredit import ESTIMATORS, InputError, RolloutBatch
from strategies import packed, padded, plain_batch

BATCHES = 12


def _rows(batch: RolloutBatch, rows: list[int], time: int) -> RolloutBatch:
    """A rank's part of the batch, cut to another width: ranks pad to their own longest response."""
    fields: dict[str, Any] = {}
    for name in batch.__dataclass_fields__:
        x = getattr(batch, name)
        if isinstance(x, torch.Tensor):
            fields[name] = x[rows][:, :time] if x.ndim == 2 else x[rows]
        elif x is not None:  # a dict, filled in another order on every rank
            fields[name] = {key: x[key][rows] for key in random.sample(sorted(x), len(x))}
    return RolloutBatch(**fields)


def compare(rank: int, ranks: int, port: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    random.seed(rank)
    worst = 0.0
    for name, (_, draw) in SCHEMES.items():
        for seed in range(BATCHES):
            rng = random.Random(seed)
            plain = plain_batch(1000 + seed)
            plain["extra_rewards"] = {key: [rng.random() for _ in plain["mask"]] for key in ("brief", "clear", "kind")}
            whole = padded(plain)
            estimator = ESTIMATORS[name](**draw(random.Random(seed)))
            owner = [
                rng.randrange(ranks) if seed else 0 for _ in range(len(whole))
            ]  # seed 0: the other ranks are empty
            mine = [i for i, at in enumerate(owner) if at == rank]
            used = int(whole.response_mask[mine].any(0).nonzero().max()) + 1 if whole.response_mask[mine].any() else 0
            got = estimator(_rows(whole, mine, used), process_group=dist.group.WORLD)
            alone = estimator(whole)
            terms, expected_terms = got.terms(), alone.terms()
            error = (got.advantages - alone.advantages[mine][:, :used]).abs()
            assert set(terms) == set(expected_terms), (name, seed)
            errors = [error] + [(terms[key] - expected_terms[key][mine][:, :used]).abs() for key in terms]
            worst = max([worst, *(float(e.max()) for e in errors if e.numel())])
            assert worst < 1e-9, (name, seed, estimator)
            assert torch.equal(got.segment_ids(), alone.segment_ids()[mine][:, :used]), (name, seed)
            assert got.counts()["groups"] == alone.counts()["groups"]
            flat = estimator(packed(_plain_rows(plain, mine)), process_group=dist.group.WORLD)
            want = alone.advantages[mine][whole.response_mask[mine]]
            torch.testing.assert_close(flat.advantages, want, rtol=0, atol=1e-9)
    _refuse_alike(rank)
    dist.destroy_process_group()


def _plain_rows(plain: dict[str, Any], rows: list[int]) -> dict[str, Any]:
    mine = {key: [x[i] for i in rows] if isinstance(x, list) else x for key, x in plain.items()}
    return {**mine, "extra_rewards": {key: [x[i] for i in rows] for key, x in plain["extra_rewards"].items()}}


def _refuse_alike(rank: int) -> None:
    """A field that one rank alone has is refused on all of them, where it would have been a hang."""
    batch = RolloutBatch.from_lists([1, 1], [0, 0], [1.0, 0.0])
    if rank == 0:
        batch = batch.replace(format_rewards=torch.tensor([1.0, 0.0]))
    with pytest.raises(InputError, match="the same fields and options on every rank"):
        ESTIMATORS["gdpo"]()(batch, process_group=dist.group.WORLD)
