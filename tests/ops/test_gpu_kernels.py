"""Kernels for GPUs against plain loops, in Triton's interpreter; and that a call asks no device for a number."""

import importlib
import json
import os
import random
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from schemes import SCHEMES
from stepcredit import (
    ESTIMATORS,
    GDPO,
    GRPO,
    PASS,
    PRIME,
    RLOO,
    SPRO,
    DrGRPO,
    GRPOProcess,
    InputError,
    REINFORCEpp,
    RolloutBatch,
)
from stepcredit.errors import StepCreditWarning
from stepcredit.estimators import Estimator
from stepcredit.ops import kernels
from stepcredit.ops.kernels import choosing
from strategies import NAN, packed, padded, plain_batch

pytest.importorskip("triton")

FREE = {"w_process", "w_outcome", "w_format", "std_eps", "correction", "singletons", "k", "eta", "beta", "norm_scope"}
FREE |= {"token_baseline", "process_norm", "baseline", "whiten_over"}
FILES = ("checks", "chunks", "density", "moments", "returns", "rows", "step_advantage")


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Rows are longer than a block, as long rows are on a GPU; and tied signals are meant."""
    from stepcredit.ops.kernels.gpu import language

    monkeypatch.setattr(language, "BLOCK", 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StepCreditWarning)
        yield


def credited(estimator: Estimator, batch: RolloutBatch) -> torch.Tensor:
    with kernels.using("interpreted"):
        assert estimator.road(batch) == "kernels"
        return estimator(batch).advantages


def options_of(name: str, seed: int) -> dict[str, Any]:
    """Random options, of those that kernels know."""
    drawn = SCHEMES[name][1](random.Random(seed))
    fusion = {"fusion": ["process", "separate"][seed % 2]} if name == "grpo_process" else {}
    return {**{key: x for key, x in drawn.items() if key in FREE}, **fusion}


def loops(name: str, plain: dict[str, Any], **options: Any) -> torch.Tensor:
    return torch.tensor(SCHEMES[name][0](plain, **options), dtype=torch.float64)


@pytest.mark.parametrize("name", ["grpo", "grpo_process", "pass", "spro", "prime", "reinforce_pp", "gdpo"])
def test_float64_equals_loops_in_every_layout(name: str) -> None:
    nonzero = 0
    for seed in range(6):
        options, plain = options_of(name, seed), plain_batch(seed, step_mode=None if name == "grpo" else seed % 4 < 2)
        want, mask = loops(name, plain, **options), torch.tensor(plain["mask"])
        nonzero += bool(want.any())
        layouts = ((padded, want), (packed, want[mask])) if seed % 2 else ((padded, want),)
        for make, wanted in layouts:
            got = credited(ESTIMATORS[name](**options), make(plain))
            torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
    assert nonzero > 2


def test_packed_rows_may_hold_tokens_that_are_no_response() -> None:
    plain = plain_batch(3, step_mode=True)
    batch = packed(plain, drop_masked=False)
    for name in ("pass", "spro"):
        want = loops(name, plain)
        torch.testing.assert_close(credited(ESTIMATORS[name](), batch), want.flatten(), rtol=1e-9, atol=1e-9)


def shaped(lengths: list[int], group: list[int], *, step: int | None = None, left: int = 0) -> dict[str, Any]:
    """A plain batch of rows of these lengths, ``left`` places in, with a signal of steps so long, or of tokens."""
    g, time = random.Random(len(lengths)), max(lengths) + left
    mask = [[left <= t < left + n for t in range(time)] for n in lengths]
    steps = None if step is None else [[max(0, t - left) // step for t in range(time)] for _ in lengths]
    shades = [[g.gauss(0, 1) for _ in range(time)] for _ in lengths]
    process = shades if steps is None else [[shades[i][k] for k in row] for i, row in enumerate(steps)]
    draw = lambda: [[-g.expovariate(1.0) if on else NAN for on in row] for row in mask]  # noqa: E731
    nothing = dict.fromkeys(("format_ok", "extra_rewards", "process_mask", "correct", "row_mask"))
    return {
        **nothing, "mask": mask, "group": group, "rewards": [g.random() for _ in lengths], "process": process,
        "format_rewards": [1.0] * len(lengths), "step_ids": steps, "old": draw(), "ref": draw(),
    }  # fmt: skip


SHAPES = {
    "many tiny groups": ([3, 2] * 4, [i // 2 for i in range(8)]),
    "one huge group": ([1 + i % 6 for i in range(7)], [7] * 7),
    "one token a row": ([1] * 6, [0, 0, 0, 1, 2, 2]),
    "one token in all": ([0, 0, 1, 0], [0, 1, 1, 0]),
}


@pytest.mark.parametrize("shape", SHAPES, ids=list(SHAPES))
def test_odd_shapes(shape: str) -> None:
    lengths, group = SHAPES[shape]
    for name, step in (("pass", 2), ("pass", None), ("spro", None), ("grpo_process", 2)):
        plain = shaped(lengths, group, step=step, left=3)
        torch.testing.assert_close(
            credited(ESTIMATORS[name](), padded(plain)), loops(name, plain), rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize(("name", "step", "n"), [("pass", 40, 3000), ("pass", None, 900), ("spro", None, 3000)])
def test_a_long_row_beside_a_short_one(name: str, step: int | None, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from stepcredit.ops.kernels.gpu import language

    monkeypatch.setattr(language, "BLOCK", 256)
    plain = shaped([n, 700], [0, 0], step=step, left=5)
    got, want = credited(ESTIMATORS[name](), padded(plain)), loops(name, plain)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["pass", "grpo_process"])
def test_a_step_goes_on_after_a_gap(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from stepcredit.ops.kernels.gpu import language

    monkeypatch.setattr(language, "BLOCK", 8)
    plain = shaped([15, 15, 9], [0, 0, 0], step=5, left=1)
    for row, gap, uncovered in ((0, 3, 8), (1, 7, 13), (2, 2, 6)):  # each inside a step
        plain["mask"][row][gap], plain["process"][row][gap] = False, NAN
        plain["step_ids"][row][uncovered], plain["process"][row][uncovered] = -1, NAN
    plain["process_mask"] = [[(row, t) != (2, 8) for t in range(16)] for row in range(3)]
    torch.testing.assert_close(credited(ESTIMATORS[name](), padded(plain)), loops(name, plain), rtol=1e-9, atol=1e-9)


def test_drift_under_the_tolerance_is_followed_through_blocks() -> None:
    drift = [[0.1 * t if t < 20 else 5.0 - 0.04 * t for t in range(40)]]
    plain = {**shaped([40], [0]), "process": drift}
    want = loops("pass", plain, eta=0.2, std_eps=0.0)
    assert 5 < want.unique().numel() < 30
    got = credited(PASS(eta=0.2, std_eps=0.0), padded(plain))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_numbers_are_widened_as_they_are_read(dtype: torch.dtype) -> None:
    plain = plain_batch(5, step_mode=False)
    batch = padded(plain, dtype)
    wide = {name: getattr(batch, name).double() for name in ("process_rewards", "old_logprobs", "ref_logprobs")}
    for estimator in (PASS(eta=1e-6), SPRO()):
        got = credited(estimator, batch)
        with kernels.using("never"):
            want = estimator(batch.replace(**wide)).advantages
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, want.float(), rtol=1e-5, atol=1e-6)


def test_an_equal_signal_and_a_lone_rollout_get_exactly_nothing() -> None:
    plain = {**shaped([9, 6], [0, 1]), "process": [[0.1] * 9] * 2}
    for estimator in (PASS(w_outcome=0, w_format=0), GRPOProcess(), SPRO()):
        assert not credited(estimator, padded(plain)).any()


@pytest.mark.parametrize("field", ["process_rewards", "old_logprobs", "step_ids"])
def test_what_breaks_a_rule_is_refused_in_the_same_words(field: str) -> None:
    refused = 0
    for seed in range(6):
        rng = random.Random(seed)
        batch = padded(plain_batch(seed, step_mode=True if field == "step_ids" else None))
        spoiled = getattr(batch, field).clone()
        row, t = rng.choice(batch.response_mask.nonzero().tolist() or [[0, 0]])
        spoiled[row, t] = rng.choice([-2, 0, 99] if field == "step_ids" else [NAN, float("inf"), -1e200, 7.0])
        told = []
        for choice in ("interpreted", "never"):
            with kernels.using(choice):  # type: ignore[arg-type]
                try:
                    batch.replace(**{field: spoiled})
                    told.append("")
                except InputError as error:
                    told.append(str(error))
        assert told[0] == told[1]
        refused += bool(told[0])
    assert 0 < refused < 6


def test_the_interpreter_runs_only_where_it_is_switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = padded(plain_batch(1))
    monkeypatch.delenv("TRITON_INTERPRET")
    with kernels.using("interpreted"), pytest.raises(InputError, match="'interpreted' where TRITON_INTERPRET is not 1"):
        GRPO()(batch)
    monkeypatch.setattr(choosing, "_installed", lambda _: False)
    with kernels.using("interpreted"), pytest.raises(InputError, match="'interpreted' where triton is not installed"):
        GRPO()(batch)
    assert kernels.refusal(10**6, torch.device("cuda")) == "triton is not installed"


WAITS = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "bincount", "equal", "is_nonzero")


class Watching(TorchDispatchMode):
    """Notes what would wait for a GPU, and how many operations there are."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, given = func.overloadpacket.__name__, [x for x in args if isinstance(x, torch.Tensor)]
        by_mask = name.startswith("index") and any(
            isinstance(x, torch.Tensor) and x.dtype == torch.bool
            for x in (args[1] if isinstance(args[1], list) else ())
        )
        uncounted = name == "repeat_interleave" and not (kwargs or {}).get("output_size")
        found = func(*args, **(kwargs or {}))
        made = [x for x in (found if isinstance(found, (tuple, list)) else (found,)) if isinstance(x, torch.Tensor)]
        copies = bool(given) and any(x.device.type != "meta" for x in [*made, *given])
        if name.startswith(WAITS) or by_mask or uncounted or copies:
            self.waits.append(name)
        self.operations += not func.is_view
        return found


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of kernels on the meta device, which has shapes and no numbers, and on which none is run."""
    names: list[str] = []

    def launch(kernel: Any, grid: tuple[int, ...], *given: Any, **constants: Any) -> None:
        assert all(isinstance(x, torch.Tensor) and x.device.type == "meta" for x in given)  # a float would be a float32
        assert all(isinstance(x, bool) for x in constants.values())
        names.append(kernel.fn.__name__)

    monkeypatch.setitem(choosing._COMPILERS, "meta", "triton")
    monkeypatch.setattr("stepcredit.estimators.base._shares_memory", lambda *_: False)  # where nothing has an address
    for file in FILES:
        monkeypatch.setattr(importlib.import_module(f"stepcredit.ops.kernels.gpu.{file}"), "launch", launch)
    return names


@pytest.mark.parametrize("first", ["always", "interpreted"])
def test_one_batch_goes_through_either_package(first: choosing.Choice) -> None:
    pytest.importorskip("numba")
    batch = padded(plain_batch(3))
    with kernels.using(first):
        want = GRPO()(batch).advantages
    for choice in ("interpreted", "always", "never"):
        with kernels.using(choice):
            torch.testing.assert_close(GRPO()(batch).advantages, want)


SCHEMES_IN_PLACE = [GRPO(), DrGRPO(), RLOO(), GDPO(), GRPOProcess(), GRPOProcess(fusion="separate"), PASS(), SPRO()]
SCHEMES_IN_PLACE += [GDPO(whiten_over="tokens"), PRIME(), REINFORCEpp(), REINFORCEpp(baseline=True)]


@pytest.mark.parametrize("estimator", SCHEMES_IN_PLACE, ids=str)
def test_a_call_on_a_trusted_batch_asks_the_device_for_nothing(estimator: Estimator, launched: list[str]) -> None:
    for make, step_mode in ((padded, True), (padded, False), (packed, True), (packed, False)):
        batch = make(plain_batch(2, step_mode=step_mode))
        given = {name: getattr(batch, name) for name in batch.__dataclass_fields__}
        fields = {name: x.to("meta") for name, x in given.items() if isinstance(x, torch.Tensor)}
        launched.clear()
        with Watching() as watching, kernels.using("always"):
            credit = estimator(RolloutBatch.trusted(**fields))
        assert credit.advantages.device.type == "meta"
        assert watching.waits == []
        assert launched[0] == "_extents"
        assert len(launched) > 1


def test_what_waits_is_seen() -> None:
    x, on = torch.arange(4, device="meta"), torch.ones(4, dtype=torch.bool, device="meta")
    for wait in (lambda: x[on], lambda: x.bincount(), lambda: x.unique(), lambda: x.cpu(), lambda: bool(on.any())):
        with Watching() as watching:
            try:
                wait()
            except (NotImplementedError, RuntimeError):
                watching.waits.append("refused")
        assert watching.waits


def test_every_kernel_compiles_for_a_gpu() -> None:
    environment = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    worker = Path(__file__).parents[1] / "gpu_compile_worker.py"
    run = subprocess.run([sys.executable, worker], capture_output=True, text=True, env=environment, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout)
    assert not found["failed"]
    assert len(found["compiled"]) > 30
