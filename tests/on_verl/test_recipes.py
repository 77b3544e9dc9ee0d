"""Every recipe for GPUs on verl, through verl's own config composition and validation; values come back."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("verl.trainer", reason="verl is not installed: nothing can run on it")

from stepcredit import InputError
from stepcredit.config.run import load_config
from stepcredit.config.tables import recipes
from stepcredit.runs.verl.composing import composed, validate
from stepcredit.runs.verl.overrides import arguments
from stepcredit.runs.verl.run import resolved

VALIDATION = "actor_rollout_ref.rollout.val_kwargs.do_sample"
RECIPES = [name for name in recipes() if name.endswith("-verl")]


def test_there_are_some() -> None:
    assert {"grpo-math-verl", "pass-math-verl", "spro-math-verl"} < set(RECIPES)


@pytest.mark.parametrize("recipe", RECIPES)
def test_verl_accepts_it(recipe: str) -> None:
    found = resolved(load_config(recipe), Path("/shared/runs/one"))  # composes and validates
    config = composed(arguments(found))
    assert config.actor_rollout_ref.rollout.name == "vllm"
    assert (config.trainer.nnodes, config.trainer.n_gpus_per_node) == (2, 8)
    assert config.data.train_batch_size * config.actor_rollout_ref.rollout.n == 2048
    assert config.actor_rollout_ref.actor.strategy == "fsdp2"


@pytest.mark.parametrize(
    "value",
    [
        "it's \\ {so}",
        "a\\'",
        "b\\",
        "",
        "true",
        "1e3",
        "a b",
        "a${b}",
        "/r\u00e9sum\u00e9",
        {"a_b": 0.5},
        [1, "x"],
        None,
        0.5,
        "/a/b.c",
        "pkg://a.b",
    ],
)
def test_verl_reads_a_value_as_it_was(value: Any) -> None:
    assert composed(arguments({"algorithm.stepcredit.x": value})).algorithm.stepcredit.x == value


@pytest.mark.parametrize("name", ["trainer.total_epoch", "actor_rollout_ref.actor.optm.lr", "trainr.nnodes"])
def test_a_name_that_verl_does_not_have_is_refused(name: str) -> None:
    """Its command line would take it, since ours adds what is not there."""
    with pytest.raises(InputError, match=rf"`verl.{name}` must be a setting of verl's config; did you mean"):
        resolved(load_config("grpo-math-verl", {f"verl.{name}": 1}), Path("/shared/runs/one"))


def test_a_broken_recipe_is_refused() -> None:
    found = resolved(load_config("grpo-math-verl"), Path("/shared/runs/one"))
    with pytest.raises(InputError, match="must pass verl's own validation"):
        validate(composed(arguments({**found, "actor_rollout_ref.rollout.temperature": 0, VALIDATION: True})))
