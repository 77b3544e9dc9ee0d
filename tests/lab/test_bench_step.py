import time
from pathlib import Path
from typing import Any

import pytest
from trl import GRPOTrainer

from stepcredit.config import load_config
from stepcredit.errors import InputError
from stepcredit.lab.bench.step import WARM_UP, bench_step
from stepcredit.lab.bench.step_arms import in_turns
from stepcredit.lab.bench.step_clock import StepClock, StepTimes, timing
from stepcredit.lab.bench.step_seams import OURS, THEIRS, seams
from stepcredit.runs.store import RunStore
from stepcredit.runs.train import start

SMALL = {
    "task.operations": 2, "run.checkpoint_every": 4, "run.kl_every": 2, "run.rollouts_every": 2, "run.rollouts_kept": 4,
    "trainer.per_device_train_batch_size": 8, "trainer.gradient_accumulation_steps": 2, "trainer.num_generations": 4,
    "trainer.max_completion_length": 20,
}  # fmt: skip
SLOW = 0.05


def timed(folder: Path, say: Any = lambda _: None, steps: int = 4) -> list[StepTimes]:
    """The steps of a small run of `train`."""
    clock = StepClock("trainer")
    config = load_config("demo-pass", {**SMALL, "run.steps": steps, "evaluation.problems": 0})
    with seams(), timing(clock):
        start(config, folder, say=say)
    return clock.steps


def test_time_belongs_to_the_innermost_part() -> None:
    clock = StepClock("trainer")
    clock.cut()
    for part, pause in (("outer", 0.02), ("ours/inner", 0.03)):
        clock.enter(part)
        time.sleep(pause)
    clock.leave()
    time.sleep(0.01)
    clock.leave()
    clock.end()
    (step,) = clock.steps
    assert step.parts["ours/inner"] == pytest.approx(0.03, abs=0.01)
    assert step.parts["outer"] == pytest.approx(0.03, abs=0.01)
    assert sum(step.parts.values()) == pytest.approx(step.seconds, abs=1e-9)
    assert sum(step.cpu_parts.values()) == pytest.approx(step.cpu_seconds, abs=1e-9)


def test_the_parts_of_a_run_are_its_steps_and_a_slow_callback_is_ours(tmp_path: Path) -> None:
    original = GRPOTrainer._generate, GRPOTrainer.__dict__.get("__call__")
    steps = timed(tmp_path / "run")
    assert (GRPOTrainer._generate, GRPOTrainer.__dict__.get("__call__")) == original  # nothing is left behind
    assert len(steps) == 4
    for step in steps:
        assert sum(step.parts.values()) == pytest.approx(step.seconds, abs=1e-9)
        assert set(step.parts) <= {*OURS, *THEIRS, "forward/policy (ours)", "forward/reference (ours)"}
        assert step.tokens > 0
    for model in ("policy", "reference"):  # both read where the KL is, every second batch
        assert [step.parts[f"forward/{model} (ours)"] > 0 for step in steps] == [True, False, True, False]
    assert all(step.parts["forward/policy"] > 0 and step.parts["backward"] > 0 for step in steps)
    told = [row["step_time"] for row in RunStore.open(tmp_path / "run").metrics()]  # TRL's own clock
    for ours, theirs in zip(steps, told, strict=True):  # it leaves out what follows the last micro-batch
        assert theirs <= ours.seconds
        late = sum(ours.parts[name] for name in ("optimizer", "ours/logging", "ours/store", "checkpoint"))
        assert ours.seconds - theirs <= late + 0.5 * ours.parts["trainer"] + 0.1

    slow = timed(tmp_path / "slow", say=lambda _: time.sleep(SLOW))
    for quick, one in zip(steps, slow, strict=True):
        assert quick.parts["ours/logging"] < SLOW <= one.parts["ours/logging"]


def test_arms_that_take_turns_train_as_they_would_alone(tmp_path: Path) -> None:
    seeds = {"a": 3, "b": 4}

    def train(name: str, folder: Path) -> None:
        config = load_config("demo-pass", {**SMALL, "run.steps": 3, "run.seed": seeds[name], "evaluation.problems": 0})
        start(config, folder / name)

    with seams():
        steps = in_turns({name: lambda name=name: train(name, tmp_path / "turns") for name in seeds}, 3)
    assert {name: len(some) for name, some in steps.items()} == {"a": 3, "b": 3}
    for name in seeds:
        train(name, tmp_path / "alone")
        turns, alone = (RunStore.open(tmp_path / way / name).metrics() for way in ("turns", "alone"))
        clocks = ("seconds", "time")
        for one, other in zip(turns, alone, strict=True):
            for key, value in one.items():
                if not any(word in key for word in clocks):
                    assert repr(value) == repr(other[key]), key


def test_an_arm_that_fails_ends_the_comparison() -> None:
    def fails() -> None:
        raise ValueError("no weights")

    with pytest.raises(ValueError, match="no weights"):
        in_turns({"one": fails}, 2)


def test_what_is_told(tmp_path: Path) -> None:
    found = bench_step("demo-pass", SMALL, steps=2, rounds=1)
    assert found["steps"] == 2
    parts = found["parts"]
    assert {"ours/estimator", "generation", "backward"} <= set(parts)
    total = sum(part["share"]["median"] for part in parts.values())
    assert total == pytest.approx(1, abs=0.1)  # medians of parts: not exactly
    assert 0 < found["added"]["share"]["median"] < found["ours"]["share"]["median"] < 1
    assert found["clock"]["seconds"] < 0.01 * found["seconds"]["median"] + 0.01
    paired = found["paired"]
    assert paired["rounds"] == 1
    assert not [name for name in paired["trl"]["parts"] if name.startswith("ours/") and name != "ours/rewards"]
    assert paired["recipe"]["whole"]["seconds"]["median"] > 0
    whole, ours = paired["recipe"]["whole"]["accounted"]["median"], paired["recipe"]["ours"]["cpu_share"]["median"]
    assert 1 < whole <= 1 / (1 - ours)  # ours without the rewards, which plain TRL's step has too
    assert WARM_UP == 2


@pytest.mark.parametrize(("options", "message"), [({"steps": 0}, "`steps`"), ({"rounds": -1}, "`rounds`")])
def test_what_cannot_be_timed_is_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        bench_step("demo-pass", **options)
