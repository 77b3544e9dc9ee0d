"""Credit through verl's own dispatchers against plain loops: names, rows, padding, alignment, and what is missing."""

import json
import random
import warnings
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("verl.trainer", reason="verl is not installed: nothing can run on it")

from omegaconf import OmegaConf
from verl.trainer.ppo.ray_trainer import compute_advantage
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

from on_verl.shaped import verl_batch
from schemes import SCHEMES
from stepcredit import InputError, StepCreditError, StepCreditWarning
from stepcredit.adapters.verl.arriving import bringing
from stepcredit.adapters.verl.bringing import aligned, missing_rollouts, package_of

SEEDS = range(40)


def algorithm(scheme: str, **options: Any) -> Any:
    return OmegaConf.create({"adv_estimator": f"stepcredit_{scheme}", "use_kl_in_reward": False, "stepcredit": options})


def close(got: torch.Tensor, want: torch.Tensor) -> bool:
    return bool((got.double() - want).abs().max() <= 2e-4 * want.abs().max() + 2e-5)


def drawn(name: str, seed: int) -> dict[str, Any]:
    """Options whose credit does not hang on the last bits of a float32."""
    _, draw = SCHEMES[name]
    options = draw(random.Random(seed))
    return {key: value for key, value in options.items() if key not in ("eta", "whiten_over")}


@pytest.mark.parametrize("name", SCHEMES)
def test_v1_with_rollouts_of_several_rows_and_padding_equals_loops(name: str) -> None:
    nonzero = 0
    for seed in SEEDS:
        options = drawn(name, seed)
        plain, shaped = verl_batch(seed)
        want = shaped.rows(SCHEMES[name][0](plain, **options))
        config = algorithm(name, format_threshold=0.25, **options)
        with warnings.catch_warnings(), bringing(shaped.brought):
            warnings.simplefilter("ignore", StepCreditWarning)
            result = compute_advantage_for_multi_trajectories(
                shaped.data, shaped.keys, config.adv_estimator, config=config
            )
        got = result.batch["advantages"]
        assert got.dtype == torch.float32
        assert close(got, want), (seed, options, (got - want).abs().max())
        assert not got[shaped.data.batch["response_mask"] == 0].any()
        nonzero += bool(want.any())
    assert nonzero > len(SEEDS) / 3
    assert shaped.brought.metrics["credit/rollouts"] > 0


@pytest.mark.parametrize("name", SCHEMES)
def test_the_legacy_trainer_equals_loops(name: str) -> None:
    for seed in SEEDS:
        options = drawn(name, seed)
        plain, shaped = verl_batch(seed, split=False, padding=False)
        shaped.data.non_tensor_batch["stepcredit"] = np.array(shaped.brought.packages)
        want = shaped.rows(SCHEMES[name][0](plain, **options))
        config = algorithm(name, format_threshold=0.25, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", StepCreditWarning)
            got = compute_advantage(shaped.data, config.adv_estimator, config=config).batch["advantages"]
        assert close(got, want), (seed, options)


def test_a_verl_that_passes_all_columns_needs_no_hook() -> None:
    from stepcredit.adapters.verl.crediting import advantages

    plain, shaped = verl_batch(3, split=False, padding=False)
    shaped.data.non_tensor_batch["stepcredit"] = np.array(shaped.brought.packages)
    columns = shaped.data.batch
    got, _ = advantages(
        columns["token_level_rewards"], columns["response_mask"], index=shaped.data.non_tensor_batch["uid"],
        config=algorithm("spro", beta=0.5, format_threshold=0.25), batch=columns,
        non_tensor_batch=shaped.data.non_tensor_batch,
    )  # fmt: skip
    assert close(got, shaped.rows(SCHEMES["spro"][0](plain, beta=0.5)))


def test_the_teacher_scores_the_token_after_its_own() -> None:
    rows = []
    want = torch.zeros(3, 4)
    for i, (prompt, response) in enumerate([(3, 4), (1, 2), (5, 0)]):
        whole = torch.full((prompt + response, 1), 99.0)
        for t in range(response):
            whole[prompt - 1 + t, 0] = want[i, t] = 10 * i + t + 1
        rows.append((whole, prompt, response))
    assert aligned(rows).tolist() == want.tolist()
    with pytest.raises(InputError, match=r"distillation_loss.loss_mode. must be k1, k2 or k3.*got 8 log-prob"):
        aligned([(torch.zeros(3, 8), 1, 2)])


def test_the_legacy_trainers_teacher_column_is_read_at_the_response() -> None:
    """Left-padded prompts of 4 and responses of 3: entry 3 of a row scores its first response token."""
    _, shaped = verl_batch(0, split=False, padding=False)
    rows, width = shaped.data.batch["response_mask"].shape
    column = torch.full((rows, 4 + width, 1), 99.0)
    scores = torch.arange(rows * width, dtype=torch.float32).view(rows, width) / 100
    column[:, 3 : 3 + width, 0] = scores
    shaped.data.batch["teacher_logprobs"] = column
    shaped.data.batch["prompts"] = torch.zeros(rows, 4, dtype=torch.int64)
    from stepcredit.adapters.verl.arriving import arrived

    brought = arrived(shaped.data.batch, shaped.data.non_tensor_batch).brought
    assert brought.teacher_logprobs.tolist() == scores.tolist()


def test_only_the_last_row_is_what_the_reward_manager_spoke_of() -> None:
    said = {"reward_extra_info": {"stepcredit": "about the last"}}
    assert package_of(said, is_last=True) == "about the last"
    assert package_of(said, is_last=False) is None
    assert package_of({**said, "stepcredit": "the loop's own"}, is_last=False) == "the loop's own"
    assert package_of({}, is_last=True) is None
    said = {"reward_extra_info": {"stepcredit": '{"format": 1.0, "correct": true}'}, "stepcredit": '{"steps": []}'}
    assert json.loads(package_of(said, is_last=True)) == {"format": 1.0, "correct": True, "steps": []}


@pytest.mark.parametrize(
    ("scheme", "options", "column", "line"),
    [
        ("spro", {}, "ref_log_prob", "actor_rollout_ref.actor.use_kl_loss=True"),
        ("pass", {}, "packages", r"reward.reward_manager.name=stepcredit"),
        ("pass", {"signal": {"type": "opd"}}, None, r"distillation.enabled=True"),
        ("pass", {"signal": {"type": "log_ratio"}}, "ref_log_prob", "actor_rollout_ref.actor.use_kl_loss=True"),
        ("gdpo", {"w_extra": {"style": 1.0}}, "packages", "extra_rewards|style"),
    ],
)
def test_a_missing_column_names_the_line_that_brings_it(
    scheme: str, options: dict[str, Any], column: str | None, line: str
) -> None:
    _, shaped = verl_batch(5, split=False)
    if column == "packages":
        shaped.brought.packages = None
    elif column:
        del shaped.data.batch[column]
    config = algorithm(scheme, **options)
    with bringing(shaped.brought), pytest.raises(InputError, match=line):
        compute_advantage(shaped.data, config.adv_estimator, config=config)


def test_format_rewards_between_0_and_1_need_a_threshold() -> None:
    _, shaped = verl_batch(3, split=False, padding=False)
    config = algorithm("grpo", w_format=1.0)
    with bringing(shaped.brought), pytest.raises(InputError, match=r"algorithm.stepcredit.format_threshold. must be"):
        compute_advantage(shaped.data, config.adv_estimator, config=config)


def test_a_format_that_is_said_of_some_rollouts_only_is_refused() -> None:
    _, shaped = verl_batch(8, split=False, padding=False)
    shaped.brought.packages = ["{}", *shaped.brought.packages[1:]]
    config = algorithm("grpo", w_format=1.0)
    with bringing(shaped.brought), pytest.raises(InputError, match="`format` must be returned by the reward function"):
        compute_advantage(shaped.data, config.adv_estimator, config=config)


def test_a_process_signal_that_is_said_of_some_rollouts_only_is_refused() -> None:
    _, shaped = verl_batch(8, split=False, padding=False)
    first = {key: value for key, value in json.loads(shaped.brought.packages[0]).items() if key != "steps"}
    shaped.brought.packages = [json.dumps(first), *shaped.brought.packages[1:]]
    config = algorithm("pass", format_threshold=0.25)
    with bringing(shaped.brought), pytest.raises(InputError, match=r"`process` must be returned .* \[\] for none"):
        compute_advantage(shaped.data, config.adv_estimator, config=config)


def test_a_rollout_that_could_not_be_graded_stops_the_run() -> None:
    _, shaped = verl_batch(8, split=False, padding=False)
    shaped.brought.packages = [*shaped.brought.packages[:-1], json.dumps({"failed": "OSError: no route"})]
    config = algorithm("grpo")
    with (
        bringing(shaped.brought),
        pytest.raises(StepCreditError, match=r"1 of \d+ rollouts could not.*OSError: no route"),
    ):
        compute_advantage(shaped.data, config.adv_estimator, config=config)


@pytest.mark.parametrize("option", [{"norm_adv_by_std_in_grpo": False}, {"gamma": 0.9}, {"lam": 0.95}])
def test_verls_own_options_that_nothing_reads_are_refused(option: dict[str, Any]) -> None:
    _, shaped = verl_batch(8, split=False, padding=False)
    config = OmegaConf.merge(algorithm("grpo"), option)
    with bringing(shaped.brought), pytest.raises(InputError, match=rf"`algorithm.{next(iter(option))}` must be"):
        compute_advantage(shaped.data, config.adv_estimator, config=config)


def test_under_a_stock_trainer_the_dispatcher_fetches_what_the_trainer_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions of several rows, packages and a teacher's scores, from the transfer queue by the keys of the rows."""
    import transfer_queue

    plain, shaped = verl_batch(21)
    brought, asked = shaped.brought, []

    def kv_batch_get(keys: list[str], partition_id: str, select_fields: list[str]) -> dict[str, Any]:
        asked.append((partition_id, tuple(select_fields)))
        assert keys == shaped.keys
        return {"extra_fields": [{"stepcredit": package} for package in brought.packages]}

    monkeypatch.setattr(transfer_queue, "kv_batch_get", kv_batch_get)
    config = algorithm("pass", format_threshold=0.25)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StepCreditWarning)
        result = compute_advantage_for_multi_trajectories(shaped.data, shaped.keys, config.adv_estimator, config=config)
    assert asked == [("train", ("extra_fields",))]
    want = shaped.rows(SCHEMES["pass"][0](plain))
    assert want.any()
    assert close(result.batch["advantages"], want)


def test_what_verl_dropped_is_counted() -> None:
    whole = [(f"p{p}_{s}", 0) for p in range(3) for s in range(4)]
    assert missing_rollouts([*whole, ("padfeed_0", 0), ("p0_3", 1)]) == 0
    assert missing_rollouts(whole[:-3]) == 3
    assert missing_rollouts([]) == 0
