"""Kernels against plain loops and against torch: credit, checks, warnings, and who runs when."""

import math
import multiprocessing
import os
import random
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch

from schemes import SCHEMES
from stepcredit import (
    ESTIMATORS,
    GRPO,
    PASS,
    PRIME,
    RLOO,
    SPRO,
    GRPOProcess,
    InputError,
    REINFORCEpp,
    RolloutBatch,
    StepCreditWarning,
)
from stepcredit.errors import MissingExtraError
from stepcredit.estimators import Estimator
from stepcredit.estimators.base import Assignment
from stepcredit.ops import kernels
from stepcredit.ops.groups import Pool
from stepcredit.ops.kernels import choosing, cpu
from stepcredit.ops.kernels.cpu.compiling import Kernel, array
from stepcredit.ops.kernels.operands import Rows, Signal
from stepcredit.ops.returns import return_so_far, return_to_go
from stepcredit.ops.scaling import center, standardize
from stepcredit.ops.segments import Segments
from stepcredit.shaping.chunks import chunk_by_value
from strategies import NAN, packed, padded, plain_batch

pytest.importorskip("numba")

COMPILED = ("grpo_process", "pass", "spro", "prime", "reinforce_pp")
WRITTEN = ("grpo", "dr_grpo", "rloo", "papo", "gdpo")
FREE = {"w_process", "w_outcome", "w_format", "std_eps", "correction", "singletons", "k", "eta", "beta", "norm_scope"}
FREE |= {"token_baseline", "process_norm", "baseline", "whiten_over"}


@pytest.fixture(autouse=True)
def _tied_signals_are_meant() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StepCreditWarning)
        yield


def options_of(name: str, seed: int) -> dict[str, Any]:
    """Random options, of those that kernels know."""
    drawn = SCHEMES[name][1](random.Random(seed))
    fusion = {"fusion": ["process", "separate"][seed % 2]} if name == "grpo_process" else {}
    return {**{key: x for key, x in drawn.items() if key in FREE}, **fusion}


def large(seed: int, rows: int = 48, time: int = 3000) -> dict[str, torch.Tensor]:
    """A batch that several threads share: ragged, with left padding, a few holes, ties and uncovered tokens."""
    g = torch.Generator().manual_seed(seed)
    first, last = torch.randint(0, 50, (rows, 1), generator=g), torch.randint(time // 4, time, (rows, 1), generator=g)
    at = torch.arange(time)[None]
    mask = (at >= first) & (at < last)
    mask[::7] &= torch.rand(time, generator=g) < 0.9
    mask[3] = False
    steps = (at - first).div(40, rounding_mode="floor").clamp(min=0).int()
    steps[::5] = torch.where(steps[::5] % 4 == 3, -1, steps[::5])
    shade = torch.randn(rows, time, generator=g)
    return {
        "response_mask": mask,
        "group_ids": torch.randint(0, 6, (rows,), generator=g),
        "rewards": torch.rand(rows, generator=g).round(),
        "format_rewards": (torch.rand(rows, generator=g) < 0.7).float(),
        "process_rewards": torch.where(mask, shade.gather(1, steps.clamp(min=0).long()), NAN),
        "noise": torch.where(mask, shade, NAN),
        "step_ids": steps,
        "process_mask": torch.rand(rows, time, generator=g) < 0.8,
        "old_logprobs": torch.where(mask, -shade.abs(), NAN),
        "ref_logprobs": torch.where(mask, -shade.flip(1).abs(), NAN),
        "row_mask": torch.rand(rows, generator=g) < 0.95,
    }


def both(estimator: Estimator, batch: RolloutBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """The credit by kernels and by torch."""
    with kernels.using("always"):
        assert estimator.road(batch) == "kernels"
        fast = estimator(batch).advantages
    with kernels.using("never"):
        assert estimator.road(batch) == "torch: kernels are switched off"
        return fast, estimator(batch).advantages


@pytest.mark.parametrize("name", COMPILED + WRITTEN)
def test_float64_equals_loops_in_every_layout(name: str) -> None:
    nonzero = 0
    for seed in range(150):
        options, plain = options_of(name, seed), plain_batch(seed)
        estimator = ESTIMATORS[name](**options)
        want = torch.tensor(SCHEMES[name][0](plain, **options), dtype=torch.float64)
        nonzero += bool(want.any())
        mask = torch.tensor(plain["mask"])
        for make, wanted in ((padded, want), (packed, want[mask])):
            with kernels.using("always"):
                batch = make(plain)
                if batch.step_ids is not None and seed % 2:
                    batch = batch.replace(step_ids=batch.step_ids.int())
                assert estimator.road(batch) == "kernels"
                torch.testing.assert_close(estimator(batch).advantages, wanted, rtol=1e-9, atol=1e-9)
    assert nonzero > 50


@pytest.mark.parametrize("name", COMPILED)
def test_float32_equals_loops_on_the_rounded_values(name: str) -> None:
    for seed in range(60):
        options, plain = options_of(name, seed), plain_batch(seed)
        rounded = {key: _rounded(value) for key, value in plain.items()}
        want = torch.tensor(SCHEMES[name][0](rounded, **options), dtype=torch.float32)
        with kernels.using("always"):
            got = ESTIMATORS[name](**options)(padded(plain, torch.float32)).advantages
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


SIGNALS = {
    "steps": ["process_rewards", "step_ids"],
    "steps in places": ["process_rewards", "step_ids", "process_mask"],
    "tokens": ["noise"],
    "tokens in places": ["noise", "process_mask"],
    "equal tokens": ["process_rewards"],
}


@pytest.mark.parametrize("fields", SIGNALS.values(), ids=list(SIGNALS))
@pytest.mark.parametrize(
    "estimator", [PASS(), GRPOProcess(), GRPOProcess(fusion="separate"), PRIME(), REINFORCEpp()], ids=str
)
def test_threads_and_torch_agree_on_a_large_batch(estimator: Estimator, fields: list[str]) -> None:
    made = large(len(fields))
    given = ("response_mask", "group_ids", "rewards", "format_rewards", "row_mask")
    signal = {"process_rewards" if name == "noise" else name: made[name] for name in fields}
    batch = RolloutBatch(**{name: made[name] for name in given}, **signal)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        fast, slow = both(estimator, batch)
    finally:
        torch.set_num_threads(threads)
    assert bool(slow.any())
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)
    assert torch.equal(fast, both(estimator, batch)[0])  # one thread, or as many as there are: the same numbers


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_starts_threads_of_its_own() -> None:
    made = large(2)
    batch = RolloutBatch(**{name: made[name] for name in ("response_mask", "group_ids", "rewards")})
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with kernels.using("always"):
            whole = GRPO()(batch).advantages  # the helper is alive when the process forks
            child = multiprocessing.get_context("fork").Process(target=_same_again, args=(batch, whole))
            child.start()
            child.join(30)
            child.kill()
    finally:
        torch.set_num_threads(threads)
    assert child.exitcode == 0


def test_nobody_writes_on_behind_an_error() -> None:
    begun, ended = [], []

    def part(lo: int, hi: int) -> None:
        if threading.current_thread() is threading.main_thread():
            while not begun:
                time.sleep(0.001)
            raise KeyboardInterrupt
        begun.append(lo)
        time.sleep(0.05)
        ended.append(lo)

    kernel, threads = Kernel(part), torch.get_num_threads()
    vars(kernel)["compiled"] = part
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyboardInterrupt):
            kernel.run(64, 1 << 20)
        assert begun
        assert begun == ended
    finally:
        torch.set_num_threads(threads)


def test_batches_of_all_sizes_share_their_threads() -> None:
    kernel, threads, before = Kernel(lambda *_: time.sleep(0.001)), torch.get_num_threads(), threading.active_count()
    vars(kernel)["compiled"] = kernel.plain
    torch.set_num_threads(6)
    try:
        for size in range(1, 6):
            kernel.run(64, size << 16)
    finally:
        torch.set_num_threads(threads)
    assert threading.active_count() - before <= 5


def _same_again(batch: RolloutBatch, whole: torch.Tensor) -> None:
    same = (GRPO()(batch).advantages.numpy() == whole.numpy()).all()  # NumPy: torch's own threads stay behind too
    os._exit(0 if same and threading.active_count() == 2 else 1)


@pytest.mark.parametrize("estimator", [SPRO(), GRPO(), RLOO()], ids=str)
def test_log_ratios_and_rewards_on_a_large_batch(estimator: Estimator) -> None:
    made = large(9)
    names = ("response_mask", "group_ids", "rewards", "old_logprobs", "ref_logprobs", "row_mask")
    fast, slow = both(estimator, RolloutBatch(**{name: made[name] for name in names}))
    assert bool(slow.any())
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-6)


def test_a_lone_rollout_gets_exactly_nothing() -> None:
    plain = {**plain_batch(4), "process_mask": None}
    plain["group"] = list(range(len(plain["mask"])))
    with kernels.using("always"):
        assert bool((SPRO()(padded(plain)).advantages == 0).all())


def test_an_equal_signal_gets_exactly_nothing() -> None:
    made = {name: x for name, x in large(1).items() if name in ("response_mask", "group_ids", "step_ids")}
    signal = torch.full(made["response_mask"].shape, 0.1)
    for fields in (made, {name: x for name, x in made.items() if name != "step_ids"}):
        for estimator in (PASS(), GRPOProcess()):
            assert not both(estimator, RolloutBatch(**fields, process_rewards=signal))[0].any()


@pytest.mark.parametrize("name", COMPILED + WRITTEN)
def test_what_comes_with_the_credit_is_that_of_torch(name: str) -> None:
    for seed in range(40):
        estimator, batch = ESTIMATORS[name](**options_of(name, seed)), padded(plain_batch(seed))
        with kernels.using("always"):
            fast = estimator(batch)
            out = torch.full_like(fast.advantages, NAN)
            assert estimator(batch, out=out).advantages is out
            assert torch.equal(out, fast.advantages)
        with kernels.using("never"):
            slow = estimator(batch)
        assert fast.counts() == slow.counts()
        assert torch.equal(fast.segment_ids(), slow.segment_ids())
        terms = slow.terms()
        assert list(fast.terms()) == list(terms)
        for term, x in fast.terms().items():
            torch.testing.assert_close(x, terms[term], rtol=1e-9, atol=1e-9)


def test_the_warning_is_that_of_torch() -> None:
    for seed in range(60):
        batch, told = padded(plain_batch(seed, step_mode=False)), []
        for choice in ("always", "never"):
            with kernels.using(choice), warnings.catch_warnings(record=True) as caught:  # type: ignore[arg-type]
                warnings.simplefilter("always")
                credit = PASS()(batch)
                found = [(str(one.message), one.filename == __file__) for one in caught]
                credit.terms()
                assert len(caught) == len(found)  # once, not again for the terms
            told.append(found)
        assert told[0] == told[1]


@pytest.mark.parametrize("field", ["process_rewards", "old_logprobs", "step_ids"])
def test_what_breaks_a_rule_is_refused_in_the_same_words(field: str) -> None:
    refused = 0
    for seed in range(120):
        rng = random.Random(seed)
        plain = plain_batch(seed, step_mode=True if field == "step_ids" else None)
        batch = padded(plain)
        spoiled = getattr(batch, field).clone()
        row, t = rng.randrange(spoiled.shape[0]), rng.randrange(spoiled.shape[1])
        values = [-2, 0, 99] if field == "step_ids" else [math.nan, math.inf, -1e200, 7.0]
        spoiled[row, t] = rng.choice(values)
        told = []
        for choice in ("always", "never"):
            with kernels.using(choice):  # type: ignore[arg-type]
                try:
                    batch.replace(**{field: spoiled})
                    told.append("")
                except InputError as error:
                    told.append(str(error))
        assert told[0] == told[1]
        refused += bool(told[0])
    assert 10 < refused < 110


def test_a_trusted_batch_is_not_read_but_credited_alike() -> None:
    made = large(2)
    fields = {name: made[name] for name in ("response_mask", "group_ids", "rewards", "process_rewards", "step_ids")}
    assert torch.equal(PASS()(RolloutBatch.trusted(**fields)).advantages, PASS()(RolloutBatch(**fields)).advantages)
    fields["process_rewards"] = torch.full_like(fields["process_rewards"], NAN)
    with pytest.raises(InputError, match="must be finite"):
        RolloutBatch(**fields)
    trusted = RolloutBatch.trusted(**fields)
    with pytest.raises(InputError, match="must be finite"):
        trusted.replace(rewards=None)
    with pytest.raises(InputError, match=r"`rewards` must have shape \[batch\] = \[48\]"):
        RolloutBatch.trusted(fields["response_mask"], fields["group_ids"], torch.zeros(3))
    with pytest.raises(InputError, match="did you mean rewards"):
        RolloutBatch.trusted(fields["response_mask"], fields["group_ids"], rewardz=torch.zeros(48))


@pytest.mark.parametrize("name", ["grpo_process", "pass", "spro"])
def test_out_may_be_a_field_of_the_batch(name: str) -> None:
    fields = {"spro": "old_logprobs"}
    for seed in range(20):
        estimator, plain = ESTIMATORS[name](**options_of(name, seed)), plain_batch(seed)
        with kernels.using("always"):
            want, batch = estimator(padded(plain)).advantages, padded(plain)
            got = estimator(batch, out=getattr(batch, fields.get(name, "process_rewards"))).advantages
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", COMPILED)
def test_a_mask_that_was_written_to_leads_no_kernel_out_of_its_arrays(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Kernel, "compiled", property(lambda self: self.plain))  # numpy checks every index from above
    for seed in range(25):
        estimator, plain = ESTIMATORS[name](**options_of(name, seed)), plain_batch(seed)
        with kernels.using("always"):
            batch = padded(plain)
            torch.testing.assert_close(
                estimator(batch).advantages,
                torch.tensor(SCHEMES[name][0](plain, **options_of(name, seed)), dtype=torch.float64),
            )
            batch.response_mask.fill_(True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # what was padding holds nan
                estimator(batch)
            batch.response_mask.fill_(False)
            estimator(batch)


@pytest.mark.parametrize("true", [2, 128, 255])
@pytest.mark.parametrize("width", [53, 64])  # of 64 all bytes are read eight at a time
def test_true_may_be_any_byte_but_0(true: int, width: int) -> None:
    g = torch.Generator().manual_seed(4)
    bits = (torch.rand(9, width, generator=g) < 0.7) & (torch.arange(width) < width - 3)
    fields = {"group_ids": torch.arange(9) // 3, "rewards": torch.rand(9, generator=g)}
    fields |= {"process_rewards": torch.randn(9, width, generator=g).double()}
    for others in (1, true):
        bytes_ = torch.where(bits, true, 0).to(torch.uint8)
        bytes_[:, ::2] = torch.where(bits[:, ::2], others, 0)
        for estimator in (GRPO(), PASS()):
            with kernels.using("always"):
                got = estimator(RolloutBatch(bytes_.view(torch.bool), **fields)).advantages
                torch.testing.assert_close(got, estimator(RolloutBatch(bits, **fields)).advantages)


def test_a_later_step_is_held_to_its_own_first_value() -> None:
    mask, steps = torch.ones(1, 3, dtype=torch.bool), torch.tensor([[0, 1, 1]])
    for values, refused in (([0.5, 0.7, 0.7], False), ([0.5, 0.7, 0.5], True)):
        rows = Rows.of(mask, None, None)
        signal = Signal.of(torch.tensor([values]), steps, None)
        assert cpu.signal_is_sound(signal, 1e6, rows) is not refused


@pytest.mark.parametrize("is_packed", [False, True])
def test_runs_are_found_as_by_a_loop(is_packed: bool) -> None:
    g = torch.Generator().manual_seed(3)
    mask = torch.rand(40, 37, generator=g) < torch.linspace(0, 1, 40)[:, None]
    mask[::5] = torch.arange(37) % 2 == 0
    mask[7] = True
    counts = torch.rand(40, generator=g) < 0.8
    cuts = torch.randint(0, 80, (40,), generator=g).cumsum(0).clamp(max=mask.numel())
    edges = torch.cat([cuts.new_zeros(1), cuts]) if is_packed else torch.arange(41) * 37
    with kernels.using("always"):
        rows = Rows.of(mask.flatten() if is_packed else mask, counts, edges if is_packed else None)
    want = []
    for r, (begin, end) in enumerate(pairwise(edges.tolist())):
        places = [t for t in range(begin, end) if mask.flatten()[t] and counts[r]]
        gaps = [i for i in range(1, len(places)) if places[i] > places[i - 1] + 1]
        want.append([(places[a], places[b - 1] + 1) for a, b in pairwise([0, *gaps, len(places)]) if b > a])
    assert rows.runs is not None
    found = list(zip(rows.runs.starts.tolist(), rows.runs.stops.tolist(), strict=True))
    assert [found[a:b] for a, b in pairwise(rows.runs.of_row.tolist())] == want
    assert rows.length.tolist() == [sum(b - a for a, b in runs) for runs in want]
    assert max(map(len, want)) > 10
    assert [] in want


def test_who_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = padded(plain_batch(1)), RolloutBatch(torch.ones(2, 1 << 13, dtype=torch.bool), [0, 0], [1.0, 0.0])
    narrow = padded(plain_batch(1), torch.bfloat16)
    assert GRPO().road(many) == "kernels"
    assert GRPO().road(few) == "torch: the batch has fewer than 16384 token places"
    with kernels.using("always"):
        assert PASS().road(narrow) == "torch: kernels read float32 and float64; the batch has torch.bfloat16"
        assert PASS(chunk_value="sum").road(few) == "torch: there is none for chunk_value='sum'"
        assert type("Mine", (PASS,), {})().road(few) == "torch: Mine has no kernel of its own"
    with pytest.raises(InputError, match="`process_rewards` must be in the batch"):
        PASS().road(many)
    monkeypatch.setenv("STEPCREDIT_KERNELS", "never")
    assert GRPO().road(many) == "torch: kernels are switched off"
    monkeypatch.setenv("STEPCREDIT_KERNELS", "sometimes")
    with pytest.raises(InputError, match="must be one of auto, always, never, interpreted; got 'sometimes'"):
        GRPO().road(many)
    monkeypatch.delenv("STEPCREDIT_KERNELS")
    monkeypatch.setattr(choosing, "_installed", lambda _: False)
    assert GRPO().road(many) == "torch: numba is not installed"
    with kernels.using("always"), pytest.raises(MissingExtraError, match=r"stepcredit\[fast\]"):
        GRPO().road(many)


def test_where_no_cache_can_be_written_a_kernel_compiles_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    import numba

    real = numba.njit

    def refusing(*given: Any, cache: bool = False, **options: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return real(*given, **options)

    monkeypatch.setattr(numba, "njit", refusing)

    def plus_one(lo, hi, x):  # type: ignore[no-untyped-def]
        for i in range(lo, hi):
            x[i] += 1

    x = torch.zeros(3)
    Kernel(plus_one).run(3, 3, array(x))
    assert x.tolist() == [1, 1, 1]


def _rounded(value: Any) -> Any:
    """Floats as float32 holds them; everything else as it is."""
    if isinstance(value, float):
        return float(torch.tensor(value, dtype=torch.float32))
    if isinstance(value, list):
        return [_rounded(x) for x in value]
    return {key: _rounded(x) for key, x in value.items()} if isinstance(value, dict) else value


class Halved(PASS):
    """Overrides a part that PASS's kernel restates."""

    def scaled_steps(self, view: Any) -> Any:
        return 0.5 * super().scaled_steps(view)


class Negated(SPRO):
    """Overrides the scheme itself."""

    def assign(self, view: Any) -> Assignment:
        found = super().assign(view)
        return Assignment(-found.advantages, lambda: {"all": -found.advantages})


class ByToken(GRPO):
    """Gives a number a token, as a scheme of one's own may, where GRPO gives one a rollout."""

    def assign(self, view: Any) -> Assignment:
        return Assignment.linear(self.weighted(view), view.rows.spread)


@pytest.mark.parametrize("estimator", [Halved(), Negated(), ByToken()])
def test_a_subclass_does_not_inherit_the_kernel_of_what_it_changes(estimator: Estimator) -> None:
    batch = padded(plain_batch(11, step_mode=True))
    with kernels.using("never"), warnings.catch_warnings():
        warnings.simplefilter("ignore", StepCreditWarning)
        want = estimator(batch).advantages
    with kernels.using("always"), warnings.catch_warnings():
        warnings.simplefilter("ignore", StepCreditWarning)
        credit = estimator(batch)
        road = estimator.road(batch)
    assert want.any()
    assert torch.equal(credit.advantages, want)
    torch.testing.assert_close(sum(credit.terms().values()), credit.advantages)
    assert road == "kernels" if isinstance(estimator, ByToken) else "no kernel of its own" in road


def test_out_that_overlaps_the_batch_in_another_storage_is_seen() -> None:
    numbers = torch.randn(200, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).numpy()
    signal = torch.from_numpy(numbers[:72]).view(6, 12)
    batch = RolloutBatch(torch.ones(6, 12, dtype=torch.bool), torch.tensor([0, 0, 0, 1, 1, 1]),
                         torch.tensor([1.0, 0, 1, 0, 0, 1]), process_rewards=signal)  # fmt: skip
    with kernels.using("never"):
        want = PASS()(batch.replace(process_rewards=signal.clone())).advantages
    out = torch.from_numpy(numbers[12:84]).view(6, 12)
    with kernels.using("always"):
        credit = PASS()(batch, out=out)
    torch.testing.assert_close(credit.advantages, want, rtol=1e-9, atol=1e-12)


def test_out_that_overlaps_a_row_field_is_seen() -> None:
    numbers = torch.zeros(24, dtype=torch.float64)
    numbers[:6] = torch.tensor([1.0, 0, 1, 0, 0, 1])
    batch = RolloutBatch(
        torch.ones(6, 4, dtype=torch.bool), torch.tensor([0, 0, 0, 1, 1, 1]), numbers[:6],
        process_rewards=torch.rand(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
    )  # fmt: skip
    with kernels.using("never"):
        want = PASS()(batch.replace(rewards=numbers[:6].clone())).advantages
    with kernels.using("always"):
        credit = PASS()(batch, out=numbers.view(6, 4))
    torch.testing.assert_close(credit.advantages, want, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(sum(credit.terms().values()), want, rtol=1e-9, atol=1e-12)


def test_a_numba_that_cannot_be_imported_leaves_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    choosing._broken.cache_clear()
    monkeypatch.setitem(sys.modules, "numba", None)  # importing it raises ImportError, and it is still found
    monkeypatch.setattr(choosing, "_installed", lambda _: True)
    try:
        assert "numba cannot be imported" in (choosing.refusal(10**6, torch.device("cpu")) or "")
        batch = RolloutBatch(torch.ones(4, 8192, dtype=torch.bool), torch.tensor([0, 0, 1, 1]), torch.rand(4))
        assert GRPO().road(batch).startswith("torch: numba cannot be imported")
        assert GRPO()(batch).advantages.any()
        with kernels.using("always"), pytest.raises(InputError, match="must not be 'always' where numba cannot be"):
            GRPO()(batch)
    finally:
        choosing._broken.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.0])
def test_sums_and_cuts_along_rows_equal_loops(dtype: torch.dtype, gamma: float) -> None:
    g = torch.Generator().manual_seed(5)
    rows = Segments.from_lengths(torch.randint(1, 60, (40,), generator=g))
    x = torch.randn(rows.size, generator=g).to(dtype)
    u = torch.randint(0, 4, (rows.size,), generator=g) * 0.6 + 1e-9 * torch.randn(rows.size, generator=g).double()
    edges = torch.rand(rows.size, generator=g) < 0.1
    to_go, so_far, opens = [], [], []
    for values, cut, edge in zip(*(t.split(rows.lengths.tolist()) for t in (x, u, edges)), strict=True):
        row = values.tolist()
        to_go += [sum(gamma ** (j - t) * row[j] for j in range(t, len(row))) for t in range(len(row))]
        so_far += [sum(row[: t + 1]) for t in range(len(row))]
        first = 0
        for t, here in enumerate(cut.tolist()):
            first = t if t == 0 or edge[t] or (t - first >= 3 and abs(here - cut[first]) > 1e-8) else first
            opens.append(t == first)
    accuracy = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    for choice in ("always", "never"):
        with kernels.using(choice):
            torch.testing.assert_close(return_to_go(x, rows, gamma), torch.tensor(to_go, dtype=dtype), **accuracy)
            torch.testing.assert_close(return_so_far(x, rows), torch.tensor(so_far, dtype=dtype), **accuracy)
            chunks = chunk_by_value(u, edges, rows, eta=1e-8, min_chunk=3)
            assert chunks.offsets.tolist() == [*(j for j, new in enumerate(opens) if new), rows.size]


def test_a_gradient_goes_through_torch() -> None:
    x = torch.ones(5, requires_grad=True)
    with kernels.using("always"):
        return_to_go(x, Segments.from_lengths(torch.tensor([3, 2])), 0.5).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 1.5, 1.75, 1.0, 1.5]


@pytest.mark.parametrize("n", [5, 9])
def test_values_that_do_not_fit_are_refused_and_reach_no_kernel(n: int) -> None:
    rows, pool = Segments.from_lengths(torch.tensor([3, 4])), Pool.of(torch.arange(7))
    x, edges = torch.ones(n, dtype=torch.float64), torch.zeros(n, dtype=torch.bool)
    calls: list[Callable[[], Any]] = [
        lambda: return_to_go(x, rows),
        lambda: return_so_far(x, rows),
        lambda: chunk_by_value(x, edges, rows),
        lambda: center(x, pool),
        lambda: standardize(x, pool),
        lambda: center(torch.ones(7, 2), pool),
    ]
    for call in calls:
        for choice in ("always", "never"):
            with kernels.using(choice), pytest.raises((InputError, RuntimeError, IndexError)):
                call()


@pytest.mark.parametrize("norm", ["batch_max", None])
def test_a_huge_reward_on_the_last_token_of_prime_leaves_no_rounding(norm: Any) -> None:
    x = torch.rand(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 0.5
    x[0, -1], x[2, -1] = 1e20, -1e20
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    batch = RolloutBatch(torch.ones(4, 6, dtype=torch.bool), torch.tensor([0, 0, 1, 1]), rewards, process_rewards=x)
    fast, slow = both(PRIME(process_norm=norm), batch)
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)


def test_out_that_is_read_negated_is_refused() -> None:
    batch = RolloutBatch(torch.ones(2, 1 << 13, dtype=torch.bool), [0, 0], [1.0, 0.0])
    with pytest.raises(InputError, match="a negative view"):
        GRPO()(batch, out=torch._neg_view(torch.zeros(2, 1 << 13)))
