"""One rank of the sharding tests: a module of its own, so that spawned processes can import it."""

import itertools
import json
import random
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import stepcredit
from schemes import SCHEMES
from stepcredit import ESTIMATORS, Credit, InputError, RolloutBatch
from stepcredit.estimators import Estimator
from stepcredit.ops.groups import refusing_alike
from strategies import packed, padded, plain_batch

TOLERANCE = 1e-12
BATCH_STATISTICS = {"reinforce_pp", "gdpo", "prime"}
STREAMS = {"norm": ["masked_norm", "abs_max"], "norm_scope": ["process", "all"]}
MAIN_OPTIONS: dict[str, dict[str, list[Any]]] = {
    "grpo": {"correction": [0, 1], "singletons": ["zero", "raw"]},
    "dr_grpo": {"singletons": ["zero", "raw"]},
    "rloo": {"singletons": ["zero", "raw"]},
    "reinforce_pp": {"baseline": [False, True], "gamma": [1.0, 0.9]},
    "gdpo": {"whiten_over": ["rollouts", "tokens"], "singletons": ["zero", "raw"]},
    "papo": {"correction": [0, 1]},
    "grpo_process": {"fusion": ["process", "pooled", "summed", "separate"], **STREAMS},
    "pass": {
        "fusion": ["separate", "summed"],
        "chunking": ["value", "token"],
        "dl_scope": ["fused", "process"],
        **STREAMS,
    },
    "spro": {"attribution": ["prefix", "token", "return_to_go"], "column_std": [False, True]},
    "prime": {"token_baseline": ["code", "paper"], "process_norm": ["batch_max", None]},
}


def join(rank: int, ranks: int, folder: str) -> None:
    """Begins the process group; a rank that waits for one that does not come fails after three minutes."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=180))
    random.seed(rank)


def at_random(plain: dict[str, Any], ranks: int, rng: random.Random) -> list[int]:
    return [rng.randrange(ranks) for _ in plain["mask"]]


def all_on_the_last(plain: dict[str, Any], ranks: int, rng: random.Random) -> list[int]:
    return [ranks - 1] * len(plain["mask"])


def uneven(plain: dict[str, Any], ranks: int, rng: random.Random) -> list[int]:
    return [rng.randrange(ranks) if rng.random() < 0.4 else 0 for _ in plain["mask"]]


def dealt(plain: dict[str, Any], ranks: int, rng: random.Random) -> list[int]:
    """Every group over as many ranks as it has rollouts."""
    turn = {label: itertools.count(rng.randrange(ranks)) for label in set(plain["group"])}
    return [next(turn[label]) % ranks for label in plain["group"]]


def whole_groups(plain: dict[str, Any], ranks: int, rng: random.Random) -> list[int]:
    """No label is known to two ranks."""
    owner = {label: rng.randrange(ranks) for label in sorted(set(plain["group"]))}
    return [owner[label] for label in plain["group"]]


def one_without_tokens(plain: dict[str, Any], ranks: int, rng: random.Random) -> list[int]:
    """The last rank has rollouts, and none of them a response token."""
    owner = [rng.randrange(ranks) for _ in plain["mask"]]
    for i, at in enumerate(owner):
        if at == ranks - 1:
            plain["mask"][i] = [False] * len(plain["mask"][i])
    return owner


PARTITIONS = (at_random, all_on_the_last, uneven, dealt, whole_groups, one_without_tokens)


def cases() -> Iterator[tuple[str, dict[str, Any], Callable[..., list[int]], bool, int, bool]]:
    """Every estimator's main options, and drawn ones under every partition; each in both signal modes."""
    seeds = itertools.count()
    for name, grid in MAIN_OPTIONS.items():
        for values in itertools.product(*grid.values()):
            for by_step in (True, False):
                seed = next(seeds)
                yield (
                    name,
                    dict(zip(grid, values, strict=True)),
                    PARTITIONS[seed % len(PARTITIONS)],
                    by_step,
                    seed,
                    False,
                )
        for partition in PARTITIONS:
            for by_step in (True, False):
                seed = next(seeds)
                yield name, SCHEMES[name][1](random.Random(seed)), partition, by_step, seed, True


def compare(rank: int, ranks: int, folder: str) -> None:
    """This rank's part of every case's credit is what one process gives its rollouts; packed too for drawn options."""
    join(rank, ranks, folder)
    split = 0
    for name, options, partition, by_step, seed, drawn in cases():
        if ranks > 2 and not drawn and (seed // 2 + by_step) % 2:
            continue  # with more ranks, main options take turns between the modes
        rng = random.Random(seed)
        plain = plain_batch(1000 + seed, step_mode=by_step, max_rows=14)
        plain["extra_rewards"] = {key: [rng.random() for _ in plain["mask"]] for key in ("brief", "clear", "kind")}
        owner = partition(plain, ranks, rng)
        estimator, whole = ESTIMATORS[name](**options), padded(plain)
        mine = [i for i, at in enumerate(owner) if at == rank]
        alone = estimator(whole)
        exact = partition is all_on_the_last or (partition is whole_groups and name not in BATCH_STATISTICS)
        tolerance = 0.0 if exact else TOLERANCE
        context = f"{estimator} {partition.__name__} by_step={by_step} seed={seed}"
        _check_part(estimator, whole, alone, mine, tolerance, context)
        if drawn:
            flat = estimator(packed(_plain_rows(plain, mine)), process_group=dist.group.WORLD)
            _check_close(flat.advantages, alone.advantages[mine][whole.response_mask[mine]], tolerance, context)
        live = {i for i, row in enumerate(plain["mask"]) if any(row)}
        split += len({at for i, at in enumerate(owner) if i in live and plain["group"][i] == plain["group"][0]}) > 1
    assert split > 50  # of the first groups, so many really are split
    dist.barrier()  # none is gone while another still talks to it
    dist.destroy_process_group()


def _check_part(
    estimator: Estimator, whole: RolloutBatch, alone: Credit, mine: list[int], tolerance: float, context: str
) -> None:
    used = int(whole.response_mask[mine].any(0).nonzero().max()) + 1 if whole.response_mask[mine].any() else 0
    width = random.randint(used, whole.response_mask.shape[1])  # ranks pad to widths of their own
    got = estimator(_rows(whole, mine, width), process_group=dist.group.WORLD)
    terms, expected_terms = got.terms(), alone.terms()
    assert set(terms) == set(expected_terms), context
    _check_close(got.advantages, alone.advantages[mine][:, :width], tolerance, context)
    for key, term in terms.items():
        _check_close(term, expected_terms[key][mine][:, :width], tolerance, f"{key} of {context}")
    assert torch.equal(got.segment_ids(), alone.segment_ids()[mine][:, :width]), context
    counts, expected = got.counts(), alone.counts()
    assert set(counts) == set(expected), context
    for key in counts:  # rows are counted where they are, groups over all ranks
        n = torch.tensor(counts[key])
        if key in ("excluded_rows", "unscored_rollouts"):
            dist.all_reduce(n)
        assert int(n) == expected[key], f"{key} of {context}"


def _check_close(got: torch.Tensor, expected: torch.Tensor, tolerance: float, context: str) -> None:
    assert got.shape == expected.shape, context
    if got.numel():
        error, scale = float((got - expected).abs().max()), max(1.0, float(expected.abs().max()))
        assert error <= tolerance * scale, f"{error:g} of {scale:g}: {context}"


def _rows(batch: RolloutBatch, rows: list[int], time: int) -> RolloutBatch:
    """A rank's part of the batch, cut to another width; a dict is filled in another order on every rank."""
    fields: dict[str, Any] = {}
    for name in batch.__dataclass_fields__:
        x = getattr(batch, name)
        if isinstance(x, torch.Tensor):
            fields[name] = x[rows][:, :time] if x.ndim == 2 else x[rows]
        elif x is not None:
            fields[name] = {key: x[key][rows] for key in random.sample(sorted(x), len(x))}
    return RolloutBatch(**fields)


def _plain_rows(plain: dict[str, Any], rows: list[int]) -> dict[str, Any]:
    mine = {key: [x[i] for i in rows] if isinstance(x, list) else x for key, x in plain.items()}
    return {**mine, "extra_rewards": {key: [x[i] for i in rows] for key, x in plain["extra_rewards"].items()}}


def refuse(rank: int, ranks: int, folder: str) -> None:
    """What is wrong on one rank alone is refused on all of them, where it would have been a hang."""
    join(rank, ranks, folder)
    world, odd = dist.group.WORLD, rank == ranks - 1
    batch = RolloutBatch.from_lists([1, 1], [0, 0], [1.0, 0.0], process_rewards=[[1.0], [0.0]])
    fewer = RolloutBatch.from_lists([1, 1], [0, 0], [1.0, 0.0])
    named = batch.replace(extra_rewards={"brief" if odd else "clear": torch.ones(2, dtype=torch.float64)})
    alike = "the same fields and options on every rank"
    others = "a valid batch from every rank; got none from another one"
    calls: list[tuple[Callable[[], Any], str, str]] = [
        (lambda: ESTIMATORS["gdpo"]()(fewer if odd else batch, process_group=world), alike, alike),
        (lambda: ESTIMATORS["gdpo"]()(named, process_group=world), alike, alike),
        (lambda: ESTIMATORS["grpo" if odd else "rloo"]()(batch, process_group=world), alike, alike),
        (lambda: ESTIMATORS["pass"](k=0.5 if odd else 0.7)(batch, process_group=world), alike, alike),
        (lambda: ESTIMATORS["pass"]()(fewer if odd else batch, process_group=world), "`process_rewards` must", others),
        (lambda: ESTIMATORS["grpo"]()(None if odd else batch, process_group=world), "`batch` must be a", others),
        (lambda: ESTIMATORS["grpo"]()(batch, out=torch.ones(3) if odd else None, process_group=world), "`out`", others),
        (lambda: _built(float("nan") if odd else 1.0), "`rewards` must be finite", others),
    ]
    for call, theirs, ours in calls:
        with pytest.raises(InputError, match=theirs if odd else ours):
            call()
        good = ESTIMATORS["grpo"](correction=0)(batch, process_group=world)  # and the ranks are still in step
        torch.testing.assert_close(good.advantages.flatten().abs(), torch.ones(2).double(), rtol=0, atol=1e-5)
    with pytest.raises(KeyError if odd else InputError), refusing_alike(world):
        {0: 1}[int(odd)]  # other errors of a rank's own are told too
    with refusing_alike(world):
        pass
    dist.barrier()
    dist.destroy_process_group()


def _built(reward: float) -> None:
    with refusing_alike(dist.group.WORLD):
        RolloutBatch.from_lists([1], [0], [reward])


class Traffic:
    """Counts the collectives of `torch.distributed` and the bytes that this rank hands to them; others fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = self.bytes = 0
        for name in ("all_reduce", "all_gather"):
            monkeypatch.setattr(dist, name, self._counting(name, getattr(dist, name)))
        for name in ("broadcast", "gather", "scatter", "reduce", "reduce_scatter", "all_to_all", "send", "barrier"):
            for form in (
                name,
                f"{name}_object",
                f"{name}_object_list",
                f"all_{name}_object",
                f"all_{name}_into_tensor",
            ):
                if hasattr(dist, form):
                    monkeypatch.setattr(dist, form, None)

    def _counting(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            sent = args[0] if name == "all_reduce" else args[1]
            self.calls += 1
            self.bytes += sent.numel() * sent.element_size()
            return call(*args, **kwargs)

        return counted

    def of(self, run: Callable[[], Any]) -> tuple[Any, list[int]]:
        """What it returns, and its collectives and bytes."""
        before = (self.calls, self.bytes)
        found = run()
        return found, [self.calls - before[0], self.bytes - before[1]]


def measure(rank: int, ranks: int, folder: str, schemes: list[str]) -> None:
    """Writes what each scheme's call and its terms move, for two batches, beside the sizes that it may depend on."""
    join(rank, ranks, folder)
    traffic, found = Traffic(pytest.MonkeyPatch()), []
    for groups, longest, steps in ((5, 40, 4), (12, 97, 9)):
        rng = random.Random(groups)
        label = [i % groups for i in range(6 * groups)]
        length = [rng.randint(1, longest) for _ in label]
        owner = [rng.randrange(ranks) if g > 1 else g for g in label]  # the first two groups are one rank's alone
        mine = [i for i, at in enumerate(owner) if at == rank]
        held = [{g for g, at in zip(label, owner, strict=True) if at == r} for r in range(ranks)]
        split = [g for g in range(groups) if sum(g in some for some in held) > 1]
        assert split == list(range(2, groups))
        sizes = {
            "n": groups,
            "m": max(map(len, held)),
            "p": sum(max(t for t, g in zip(length, label, strict=True) if g == one) for one in split),
        }
        batches = _measured_batches([length[i] for i in mine], [label[i] for i in mine], steps, random.Random(rank))
        for scheme in schemes:
            batch = batches["tokens" if scheme.endswith(", tokens") else "steps"]
            estimator = eval(scheme.removesuffix(", tokens").removesuffix(", steps"), vars(stepcredit))
            credit, moved = traffic.of(lambda: estimator(batch, process_group=dist.group.WORLD))  # noqa: B023
            terms, again = traffic.of(credit.terms)
            assert traffic.of(lambda: (credit.segment_ids(), credit.counts()))[1] == [0, 0]  # noqa: B023
            found.append({"scheme": scheme, "sizes": {**sizes, "t": len(terms)}, "call": moved, "terms": again})
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def _measured_batches(lengths: list[int], labels: list[int], steps: int, rng: random.Random) -> dict[str, RolloutBatch]:
    """All fields, in both signal modes: three channels of reward."""
    step_ids = [[t * steps // length for t in range(length)] for length in lengths]
    noise = [[rng.random() for _ in range(length)] for length in lengths]
    reward = [rng.random() for _ in lengths]
    fields = {"format_rewards": [1.0] * len(lengths), "extra_rewards": {"brief": reward}}
    fields |= {"old_logprobs": noise, "ref_logprobs": [[0.0] * length for length in lengths]}
    tokens = RolloutBatch.from_lists(lengths, labels, reward, process_rewards=noise, **fields)
    signal = [[float(step) for step in row] for row in step_ids]
    stepped = RolloutBatch.from_lists(lengths, labels, reward, process_rewards=signal, step_ids=step_ids, **fields)
    return {"tokens": tokens, "steps": stepped}
