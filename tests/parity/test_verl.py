"""Our estimators against verl's advantage functions, as installed: where the numbers are the same, and where not.

The second half holds what verl (0.9.1) does differently from our specification, one difference a test, with its size:
such a test fails when verl changes, or when we do.
"""

import random

import numpy as np
import pytest
import torch
from torch import Tensor

import stepcredit as sc
from stepcredit import Estimator, RolloutBatch

pytest.importorskip("verl", reason="verl is not installed: its advantage functions cannot be compared with ours")
core_algos = pytest.importorskip("verl.trainer.ppo.core_algos", reason="verl lacks a package that it needs")

SEEDS = range(60)
TOLERANCE = 1e-5
"""Of the largest advantage: verl computes in float32, we in float64."""
NAN = float("nan")


def draw(seed: int, *, step_mode: bool = True) -> RolloutBatch:
    """Shuffled groups of one to six rollouts, tied and untied rewards, right padding, tool output amid responses.

    Off-mask and uncovered process rewards are nan; every response ends with a response token, as verl supposes.
    """
    rng = random.Random(seed)
    sizes = [1, *(rng.randint(1, 6) for _ in range(rng.randint(1, 5)))]
    groups = [group for group, size in zip(rng.sample(range(-99, 99), len(sizes)), sizes, strict=True)] * 6
    groups = [group for group, size in zip(groups, sizes, strict=False) for _ in range(size)]
    rng.shuffle(groups)
    reward = lambda: rng.choice([0.0, 1.0, 1.0, 0.5, -1.0]) if rng.random() < 0.7 else rng.gauss(0, 1)  # noqa: E731
    mask = [[rng.random() < 0.85 for _ in range(rng.randint(0, 12))] + [True] for _ in groups]
    step_ids = [_steps(rng, row) if step_mode else list(range(len(row))) for row in mask]
    signal = [
        [scores[step] if on and step >= 0 else NAN for on, step in zip(row, ids, strict=True)]
        for row, ids in zip(mask, step_ids, strict=True)
        for scores in [[rng.gauss(0.3, 1) for _ in row]]
    ]
    return RolloutBatch.from_lists(
        mask,
        groups,
        [reward() for _ in groups],
        dtype=torch.float32,
        format_rewards=[float(rng.random() < 0.8) for _ in groups],
        extra_rewards={"brevity": [rng.gauss(0, 3) for _ in groups]},
        process_rewards=signal,
        step_ids=step_ids if step_mode else None,
    )


def _steps(rng: random.Random, mask: list[bool]) -> list[int]:
    """Steps of some tokens each, about one in eight of them uncovered."""
    bounds = [rng.random() < 0.35 for _ in mask]
    ids = [sum(bounds[: t + 1]) for t in range(len(mask))]
    uncovered = {step for step in ids if rng.random() < 0.12}
    return [-1 if step in uncovered else min(step, len(mask) - 1) for step in ids]


def token_rewards(batch: RolloutBatch, *, dense: bool = False) -> Tensor:
    """verl's `token_level_rewards`: the outcome on the last response token; if dense, each step's signal on its own."""
    rewards = torch.zeros(batch.response_mask.shape)
    for i, mask in enumerate(batch.response_mask.tolist()):
        tokens = [t for t, on in enumerate(mask) if on]
        rewards[i, tokens[-1]] += batch.rewards[i]
        if dense:
            ends = {t if batch.step_ids is None else int(batch.step_ids[i, t]): t for t in tokens}
            for step, t in ends.items():
                rewards[i, t] += batch.process_rewards[i, t] if step >= 0 else 0.0
    return rewards


def verl_credit(name: str, batch: RolloutBatch, rewards: Tensor | None = None, /, **options: object) -> Tensor:
    """The advantages of verl's estimator of that name, called as its trainer calls it."""
    advantages, _ = core_algos.get_adv_estimator_fn(name)(
        token_level_rewards=token_rewards(batch) if rewards is None else rewards,
        response_mask=batch.response_mask.long(),
        **options,
    )
    return advantages


def uids(batch: RolloutBatch) -> np.ndarray:
    """verl's `index`: one label a prompt, strings as its trainer makes them."""
    return np.array([f"prompt {group}" for group in batch.group_ids.tolist()], dtype=object)


def gap(ours: Tensor, verls: Tensor) -> float:
    """The largest difference, relative to the largest advantage (absolute if all are zero)."""
    assert ours.shape == verls.shape
    return float((ours - verls).abs().max() / (verls.abs().max() or 1.0))


def assert_same(ours: Estimator, batch: RolloutBatch, verls: Tensor) -> None:
    assert gap(ours(batch).advantages, verls) <= TOLERANCE, ours


@pytest.mark.parametrize("name", ["grpo", "grpo_vectorized"])
@pytest.mark.parametrize(("norm", "ours"), [(True, sc.GRPO(singletons="raw")), (False, sc.DrGRPO(singletons="raw"))])
@pytest.mark.parametrize("seed", SEEDS)
def test_grpo_and_dr_grpo(name: str, norm: bool, ours: Estimator, seed: int) -> None:
    batch = draw(seed)
    assert_same(ours, batch, verl_credit(name, batch, index=uids(batch), norm_adv_by_std_in_grpo=norm))


@pytest.mark.parametrize(("name", "singletons"), [("rloo", "raw"), ("rloo_vectorized", "zero")])
@pytest.mark.parametrize("seed", SEEDS)
def test_rloo(name: str, singletons: str, seed: int) -> None:
    """verl's two versions differ in what a group of one gets: its reward, or zero."""
    batch = draw(seed)
    assert_same(sc.RLOO(singletons=singletons), batch, verl_credit(name, batch, index=uids(batch)))


@pytest.mark.parametrize("step_mode", [True, False])
@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("seed", SEEDS)
def test_reinforce_pp(gamma: float, step_mode: bool, seed: int) -> None:
    batch = draw(seed, step_mode=step_mode)
    config = core_algos.DictConfig({"gamma": gamma})
    verls = verl_credit("reinforce_plus_plus", batch, token_rewards(batch, dense=True), config=config)
    assert_same(sc.REINFORCEpp(gamma=gamma), batch, verls)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("seed", SEEDS)
def test_reinforce_pp_is_gae_without_a_critic(gamma: float, seed: int) -> None:
    """With values of zero and lambda 1, GAE is the discounted return-to-go. verl leaves garbage in it off-mask."""
    batch = draw(seed)
    rewards = token_rewards(batch, dense=True)
    verls = verl_credit("gae", batch, rewards, values=torch.zeros_like(rewards), gamma=gamma, lam=1.0)
    assert_same(sc.REINFORCEpp(gamma=gamma), batch, verls * batch.response_mask)


@pytest.mark.parametrize("seed", SEEDS)
def test_reinforce_pp_baseline(seed: int) -> None:
    batch = draw(seed)
    verls = verl_credit("reinforce_plus_plus_baseline", batch, index=uids(batch))
    assert_same(sc.REINFORCEpp(baseline=True, singletons="raw"), batch, verls)


@pytest.mark.parametrize("seed", SEEDS)
def test_dr_grpo_is_gpg_before_its_rescaling(seed: int) -> None:
    """GPG multiplies by the share of rollouts whose reward is not zero, inverted."""
    batch = draw(seed)
    rescaling = len(batch) / max(int(batch.rewards.count_nonzero()), 1)
    verls = verl_credit("gpg", batch, index=uids(batch))
    assert_same(sc.DrGRPO(singletons="raw"), batch, verls / rescaling)


def verl_gdpo(batch: RolloutBatch, weights: dict[str, float]) -> Tensor:
    """verl's GDPO finds its channels by name among the columns that the reward function made."""
    channels = {"outcome": batch.rewards, "format": batch.format_rewards, **batch.extra_rewards}
    return verl_credit(
        "gdpo",
        batch,
        index=uids(batch),
        config=core_algos.DictConfig(
            {"gdpo_reward_keys": list(weights), "gdpo_reward_weights": list(weights.values())}
        ),
        non_tensor_batch={name: channels[name].numpy() for name in weights},
        batch={"prompts": torch.zeros(len(batch), 0), "attention_mask": torch.ones_like(batch.response_mask).long()},
    )


@pytest.mark.parametrize(
    "weights", [{"outcome": 1.0}, {"outcome": 1.0, "format": 1.0}, {"outcome": 2.0, "format": 0.5, "brevity": -0.3}]
)
@pytest.mark.parametrize("seed", SEEDS)
def test_gdpo(weights: dict[str, float], seed: int) -> None:
    batch = draw(seed)
    assert_same(our_gdpo(weights), batch, verl_gdpo(batch, weights))


def our_gdpo(weights: dict[str, float]) -> sc.GDPO:
    return sc.GDPO(
        w_outcome=weights["outcome"],
        w_format=weights.get("format", 0.0),
        w_extra={"brevity": weights.get("brevity", 0.0)},
        whiten_over="tokens",
        singletons="raw",
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_gdpo_without_channels_falls_back_to_the_outcome(seed: int) -> None:
    batch = draw(seed)
    assert_same(our_gdpo({"outcome": 1.0}), batch, verl_credit("gdpo", batch, index=uids(batch)))


# What verl does differently.


@pytest.mark.parametrize("name", ["grpo", "grpo_vectorized"])
def test_verl_grpo_sums_a_response_s_dense_rewards(name: str) -> None:
    """Its GRPO takes token rewards, but only their sum counts: all tokens of a response get the same credit."""
    for seed in SEEDS:
        batch = draw(seed)
        rewards = token_rewards(batch, dense=True)
        verls = verl_credit(name, batch, rewards, index=uids(batch))
        per_row = verls.sum(dim=1, keepdim=True) / batch.response_mask.sum(dim=1, keepdim=True)
        torch.testing.assert_close(verls, per_row * batch.response_mask)
        assert_same(sc.GRPO(singletons="raw"), batch.replace(rewards=rewards.sum(dim=1)), verls)
    ours = sc.GRPOProcess()(batch).advantages
    assert any(len(set(row[on].tolist())) > 1 for row, on in zip(ours, batch.response_mask, strict=True))


@pytest.mark.parametrize("epsilon", [1e-6, 0.25])
@pytest.mark.parametrize("name", ["grpo", "grpo_vectorized"])
def test_verl_grpo_divides_a_singleton_by_1_plus_epsilon(name: str, epsilon: float) -> None:
    """R / (1 + epsilon), relative difference 1e-6 by default, where our "raw" is R."""
    batch = RolloutBatch.from_lists([1], [0], [2.0], dtype=torch.float32)
    ours = sc.GRPO(singletons="raw", std_eps=epsilon)(batch).advantages
    verls = verl_credit(name, batch, index=uids(batch), epsilon=epsilon)
    assert ours.item() == 2.0
    assert verls.item() == pytest.approx(2.0 / (1 + epsilon), rel=1e-7)
    assert verls.item() != 2.0


def test_verl_gdpo_whitens_with_another_epsilon() -> None:
    """1 / sqrt(var + 1e-8), where we divide by std + 1e-6: the same unless the weighted sum is small.

    At a std of 1e-4 verl's is 1 / sqrt(2) of the z-score (29% less), ours 1 / 1.01 of it.
    """
    batch = RolloutBatch.from_lists([1, 1], [0, 0], [1.0, 0.0], dtype=torch.float32)
    batch = batch.replace(format_rewards=batch.rewards, extra_rewards={"brevity": batch.rewards})
    assert gap(our_gdpo({"outcome": 1.0})(batch).advantages, verl_gdpo(batch, {"outcome": 1.0})) == pytest.approx(
        1e-6, rel=0.1
    )
    ours, verls = our_gdpo({"outcome": 1e-4})(batch).advantages, verl_gdpo(batch, {"outcome": 1e-4})
    z = 0.5**0.5
    assert ours.flatten().tolist() == pytest.approx([z / 1.01, -z / 1.01], rel=1e-5)
    assert verls.flatten().tolist() == pytest.approx([z * z, -z * z], rel=1e-5)
