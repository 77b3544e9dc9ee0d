"""What of a training step is ours: where its time goes, and the same training by plain TRL step for step."""

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from stepcredit.config import load_config
from stepcredit.config.run import RunConfig
from stepcredit.errors import InputError
from stepcredit.lab.bench.paired_times import spread
from stepcredit.lab.bench.step_clock import StepClock, StepTimes, seconds_a_seam, timing
from stepcredit.lab.bench.step_seams import OURS

WARM_UP = 2  # steps that load kernels and fill caches, timed for nothing
BOUNDS = {"share": 0.01, "ratio": 1.03}
"""What is asked for: the share of a step that is ours, and our step against plain TRL's outside model passes."""


def bench_step(
    recipe: str = "demo-pass",
    overrides: Mapping[str, Any] | None = None,
    *,
    steps: int = 8,
    rounds: int = 8,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Trains a recipe as `stepcredit train` does, and tells where its steps' time goes; then in turns with plain TRL.

    A part's time is exclusive: every moment belongs to the innermost part. Model passes are apart from what asks for
    them. The last step, which ends with a checkpoint, is told by itself. In the comparison three trainings take turns
    a step at a time: TRL's own trainer, ours with GRPO's credit, and ours with the recipe's, all of the same model,
    data, rewards, settings and seed.

    Args:
        recipe: A recipe's name, or the path of a config.
        overrides: ``table.key`` -> value. Nothing is evaluated.
        steps: Steps that count, after two for nothing.
        rounds: Steps of each training in the comparison, likewise; 0 compares nothing.
        say: Takes the progress, a line a step.

    Returns:
        Plain values. ``seconds`` and ``cpu_seconds`` of a step; ``parts``: for each its wall and CPU seconds a step
        and its share of the step (medians over steps, with least and greatest); ``ours``: the same for what is ours
        together, ``added``: without the reward functions, which plain TRL calls too; ``checkpoint``: the parts' seconds
        in the step that ends with one; ``clock``: what the clock itself takes a step. ``paired``: for both of ours, the
        ratios of each round's seconds to plain TRL's, of the whole step, of it without forward passes and generation,
        and without backward passes too. ``accounted`` is the ratio of our step's CPU seconds to what is left of them
        without what is added: it leaves out the noise between two steps. ``same_tokens`` says whether all rounds had
        completions of the same length.

    Raises:
        InputError: A number out of its range, a config that another engine trains, or what the run refuses.
        MissingExtraError: TRL is not installed.
    """
    for name, value, least in (("steps", steps, 1), ("rounds", rounds, 0)):
        if value < least:
            raise InputError(f"`{name}` must be at least {least}; got {value}.")
    config = _config(recipe, overrides or {}, steps)
    clock = StepClock("trainer")
    with tempfile.TemporaryDirectory() as folder:
        with _watched(), timing(clock):
            _train(config, Path(folder) / "run", say)
        *counted, last = clock.steps[WARM_UP:]
        found = {
            "recipe": recipe, "steps": len(counted), "threads": torch.get_num_threads(), **_shares(counted),
            "checkpoint": {name: seconds for name, seconds in sorted(last.parts.items()) if _at_checkpoints(name)},
            "clock": {"seams": counted[0].seams, "seconds": counted[0].seams * seconds_a_seam()},
        }  # fmt: skip
        if rounds:
            found["paired"] = _paired(_config(recipe, overrides or {}, rounds), Path(folder), say)
    return found


def _config(recipe: str, overrides: Mapping[str, Any], steps: int) -> RunConfig:
    config = load_config(recipe, {**overrides, "run.steps": WARM_UP + steps + 1, "evaluation.problems": 0})
    if config.run.engine != "trl":
        raise InputError(f"`recipe` must be trained by TRL; got run.engine = {config.run.engine!r}.")
    return config


def _train(config: RunConfig, folder: Path, say: Callable[[str], None]) -> None:
    from stepcredit.runs.train import start

    start(config, folder, say=say)


def _watched() -> Any:
    from stepcredit.lab.bench.step_seams import seams

    return seams()


def _shares(steps: Sequence[StepTimes]) -> dict[str, Any]:
    """The parts over some steps."""
    names = sorted({name for step in steps for name in step.parts})
    groups = {name: [name] for name in names}
    groups["ours"] = [name for name in names if name.startswith("ours/")]
    groups["added"] = [name for name in groups["ours"] if name in _ADDED]
    told = {name: _part(steps, group) for name, group in groups.items()}
    return {
        "seconds": spread([step.seconds for step in steps]),
        "cpu_seconds": spread([step.cpu_seconds for step in steps]),
        "tokens": spread([float(step.tokens) for step in steps]),
        "ours": told.pop("ours"),
        "added": told.pop("added"),
        "parts": told,
    }


def _part(steps: Sequence[StepTimes], names: Sequence[str]) -> dict[str, Any]:
    wall = [sum(step.parts.get(name, 0.0) for name in names) for step in steps]
    cpu = [sum(step.cpu_parts.get(name, 0.0) for name in names) for step in steps]
    return {
        "seconds": spread(wall),
        "cpu_seconds": spread(cpu),
        "share": spread([part / step.seconds for part, step in zip(wall, steps, strict=True)]),
        "cpu_share": spread([part / step.cpu_seconds for part, step in zip(cpu, steps, strict=True)]),
    }


def _at_checkpoints(name: str) -> bool:
    return name in ("checkpoint", "ours/store", "ours/logging", "ours/overrides")


def _paired(config: RunConfig, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Plain TRL against ours with GRPO's credit and with the recipe's."""
    from stepcredit.lab.bench.step_arms import in_turns, plain_trainers
    from stepcredit.runs.policies import no_progress_bars
    from stepcredit.runs.trainer import grpo_config, make_trainer

    grpo = dataclasses.replace(config, estimator={"type": "grpo"}, signal={}, guard={}, models={})

    def plain() -> None:
        with plain_trainers(), no_progress_bars():
            trainer, _ = make_trainer(grpo, grpo_config(grpo, folder / "trl" / "checkpoints"))
        trainer.train()

    arms: dict[str, Callable[[], None]] = {
        "trl": plain,
        "grpo": lambda: _train(grpo, folder / "grpo", say),
        "recipe": lambda: _train(config, folder / "recipe", say),
    }
    with _watched():
        steps = in_turns(arms, config.run.steps)
    counted = {name: some[WARM_UP:-1] for name, some in steps.items()}
    return {
        "rounds": len(counted["trl"]),
        "trl": _shares(counted["trl"]),
        **{name: _ratios(counted[name], counted["trl"]) for name in ("grpo", "recipe")},
    }


WITHOUT = {
    "whole": (),
    "outside_forwards": ("forward/", "generation"),
    "outside_passes": ("forward/", "generation", "backward"),
}
"""What of a step is compared: without the parts whose names begin so."""


def _ratios(ours: Sequence[StepTimes], theirs: Sequence[StepTimes]) -> dict[str, Any]:
    pairs = list(zip(ours, theirs, strict=True))
    found: dict[str, Any] = {
        name: {
            "seconds": spread([_rest(a.parts, out) / _rest(b.parts, out) for a, b in pairs]),
            "cpu_seconds": spread([_rest(a.cpu_parts, out) / _rest(b.cpu_parts, out) for a, b in pairs]),
            "accounted": spread([_rest(a.cpu_parts, out) / _rest(a.cpu_parts, (*out, *_ADDED)) for a, _ in pairs]),
        }
        for name, out in WITHOUT.items()
    }
    return {**found, "same_tokens": all(a.tokens == b.tokens for a, b in pairs), "ours": _shares(ours)["ours"]}


_ADDED = tuple(name for name in OURS if name != "ours/rewards")  # plain TRL calls the same reward functions


def _rest(parts: Mapping[str, float], out: tuple[str, ...]) -> float:
    return sum(seconds for name, seconds in parts.items() if not (out and name.startswith(out)))
