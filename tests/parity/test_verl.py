"""Our estimators against verl's advantage functions, as installed: where the numbers are the same, and where not.

The second half holds what verl (0.9.1) does differently from our specification, one difference a test, with its size:
such a test fails when verl changes, or when we do.
"""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import stepcredit as sc
from stepcredit import Estimator, RolloutBatch

pytest.importorskip("verl", reason="verl is not installed: its advantage functions cannot be compared with ours")
core_algos = pytest.importorskip("verl.trainer.ppo.core_algos", reason="verl lacks a package that it imports")

SEEDS = range(60)
SCALES = [1.0, 2.0**-16]
"""Of the rewards. Small ones bring out every epsilon; a power of two keeps ties exact in float32."""
TOLERANCE = 1e-5
"""Of the largest advantage: verl computes in float32, we in float64."""


def draw(
    seed: int, *, scale: float = 1.0, smallest: int = 1, step_mode: bool = True, channels: bool = False
) -> RolloutBatch:
    """Shuffled groups of up to six rollouts, tied and untied rewards, right padding, tool output amid responses.

    One group has the smallest size. Process rewards are nan where nothing may read them. Every response ends with a
    response token, as verl supposes.
    """
    rng = random.Random(seed)
    sizes = [smallest, *(rng.randint(smallest, 6) for _ in range(rng.randint(1, 5)))]
    labels = rng.sample(range(-99, 99), len(sizes))
    groups = [label for label, size in zip(labels, sizes, strict=True) for _ in range(size)]
    rng.shuffle(groups)
    rewards = [rng.choice([0.0, 1.0, 1.0, 0.5, -1.0]) if rng.random() < 0.7 else rng.gauss(0, 1) for _ in groups]
    mask = [[rng.random() < 0.85 for _ in range(rng.randint(0, 12))] + [True] for _ in groups]
    step_ids = [_steps(rng, len(row)) for row in mask]
    signal = [_signal(rng, *row) for row in zip(mask, step_ids if step_mode else map(_tokens, mask), strict=True)]
    batch = RolloutBatch.from_lists(
        mask, groups, rewards, dtype=torch.float32, process_rewards=signal, step_ids=step_ids if step_mode else None
    )
    batch = batch.replace(rewards=scale * batch.rewards, process_rewards=scale * batch.process_rewards)
    if not channels:
        return batch
    return batch.replace(
        format_rewards=scale * torch.tensor([float(rng.random() < 0.8) for _ in groups]),
        format_ok=torch.ones(len(batch), dtype=torch.bool),
        extra_rewards={"brevity": scale * torch.tensor([rng.gauss(0, 3) for _ in groups])},
    )


def _tokens(row: list[bool]) -> list[int]:
    """Every token a step of its own."""
    return list(range(len(row)))


def _steps(rng: random.Random, length: int) -> list[int]:
    """Steps of a few tokens each, some of them uncovered."""
    ids = [0] * length
    for t in range(1, length):
        ids[t] = ids[t - 1] + (rng.random() < 0.35)
    uncovered = {step for step in range(length) if rng.random() < 0.12}
    return [-1 if step in uncovered else step for step in ids]


def _signal(rng: random.Random, mask: list[bool], steps: list[int]) -> list[float]:
    """One score a covered step; nan elsewhere."""
    scores = [rng.gauss(0.3, 1) for _ in mask]
    return [scores[step] if on and step >= 0 else float("nan") for on, step in zip(mask, steps, strict=True)]


def token_rewards(batch: RolloutBatch, *, dense: bool = False) -> Tensor:
    """verl's `token_level_rewards`: the outcome on the last token; if dense, each step's signal on the step's last."""
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
    """The advantages of verl's estimator of that name, called as its trainer calls it; outcome only by default."""
    advantages, _ = core_algos.get_adv_estimator_fn(name)(
        token_level_rewards=token_rewards(batch) if rewards is None else rewards,
        response_mask=batch.response_mask.long(),
        index=np.array([f"prompt {group}" for group in batch.group_ids.tolist()], dtype=object),
        **options,
    )
    return advantages


def verl_reinforce_pp(batch: RolloutBatch, rewards: Tensor, gamma: float = 1.0) -> Tensor:
    return verl_credit("reinforce_plus_plus", batch, rewards, config=core_algos.DictConfig({"gamma": gamma}))


def verl_gae(batch: RolloutBatch, rewards: Tensor, gamma: float = 1.0) -> Tensor:
    """GAE with lambda 1 and without a critic, that is, with values of zero."""
    values, mask = torch.zeros_like(rewards), batch.response_mask.long()
    advantages, _ = core_algos.compute_gae_advantage_return(
        token_level_rewards=rewards, values=values, response_mask=mask, gamma=gamma, lam=1.0
    )
    return advantages


def verl_gdpo(batch: RolloutBatch, weights: dict[str, float]) -> Tensor:
    """GDPO finds its channels by name among the columns that verl's reward function made."""
    channels = {"outcome": batch.rewards, "format": batch.format_rewards, **(batch.extra_rewards or {})}
    up_to_last = batch.response_mask.long().flip(1).cummax(dim=1).values.flip(1)
    return verl_credit(
        "gdpo",
        batch,
        config=core_algos.DictConfig(
            {"gdpo_reward_keys": list(weights), "gdpo_reward_weights": list(weights.values())}
        ),
        non_tensor_batch={name: channels[name].numpy() for name in weights},
        batch={"prompts": torch.zeros(len(batch), 0), "attention_mask": up_to_last},
    )


def our_gdpo(weights: dict[str, float]) -> sc.GDPO:
    extra = {"brevity": weights["brevity"]} if "brevity" in weights else {}
    options = {"w_outcome": weights["outcome"], "w_format": weights.get("format", 0.0), "w_extra": extra}
    return sc.GDPO(**options, whiten_over="tokens", singletons="raw")


def gap(ours: Tensor, verls: Tensor) -> float:
    """The largest difference, relative to the largest advantage (absolute if all are zero)."""
    assert ours.shape == verls.shape
    return float((ours - verls).abs().max() / (verls.abs().max() or 1.0))


def assert_same(ours: Estimator, verls: Callable[[RolloutBatch], Tensor], **drawn: object) -> None:
    """The same advantages on every seed's batch, few of them all zeros."""
    nonzero = 0
    for seed in SEEDS:
        batch = draw(seed, **drawn)
        want = verls(batch)
        assert gap(ours(batch).advantages, want) <= TOLERANCE, (seed, ours)
        nonzero += bool(want.any())
    assert nonzero > 0.8 * len(SEEDS)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("norm", "ours"), [(True, sc.GRPO(singletons="raw")), (False, sc.DrGRPO(singletons="raw"))])
@pytest.mark.parametrize("name", ["grpo", "grpo_vectorized"])
def test_grpo_and_dr_grpo(name: str, norm: bool, ours: Estimator, scale: float) -> None:
    assert_same(ours, lambda batch: verl_credit(name, batch, norm_adv_by_std_in_grpo=norm), scale=scale)


@pytest.mark.parametrize(("name", "singletons"), [("rloo", "raw"), ("rloo_vectorized", "zero")])
def test_rloo(name: str, singletons: str) -> None:
    """verl's two versions differ in what a group of one gets: its reward, or zero."""
    assert_same(sc.RLOO(singletons=singletons), lambda batch: verl_credit(name, batch))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("step_mode", [True, False])
@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_reinforce_pp(gamma: float, step_mode: bool, scale: float) -> None:
    verls = lambda batch: verl_reinforce_pp(batch, token_rewards(batch, dense=True), gamma)  # noqa: E731
    assert_same(sc.REINFORCEpp(gamma=gamma), verls, step_mode=step_mode, scale=scale)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_reinforce_pp_is_gae_without_a_critic(gamma: float, scale: float) -> None:
    verls = lambda batch: verl_gae(batch, token_rewards(batch, dense=True), gamma) * batch.response_mask  # noqa: E731
    assert_same(sc.REINFORCEpp(gamma=gamma), verls, scale=scale)


@pytest.mark.parametrize("scale", SCALES)
def test_reinforce_pp_baseline(scale: float) -> None:
    ours = sc.REINFORCEpp(baseline=True, singletons="raw")
    assert_same(ours, lambda batch: verl_credit("reinforce_plus_plus_baseline", batch), scale=scale)


def test_dr_grpo_is_gpg_before_its_rescaling() -> None:
    """GPG is multiplied by the batch's size over its number of rewards that are not zero."""
    rescaling = lambda batch: len(batch) / max(int(batch.rewards.count_nonzero()), 1)  # noqa: E731
    assert_same(sc.DrGRPO(singletons="raw"), lambda batch: verl_credit("gpg", batch) / rescaling(batch))


@pytest.mark.parametrize(
    "weights",
    [
        {"outcome": 1.0},
        {"outcome": 1.0, "format": 1.0, "brevity": 0.0},
        {"outcome": 2.0, "format": 0.5, "brevity": -0.3},
    ],
)
def test_gdpo(weights: dict[str, float]) -> None:
    """Small rewards without singletons only: a raw reward among z-scores would make the whitening's epsilon matter."""
    channels = "format" in weights
    ours, verls = our_gdpo(weights), lambda batch: verl_gdpo(batch, weights)
    assert_same(ours, verls, channels=channels)
    assert_same(ours, verls, channels=channels, scale=2.0**-16, smallest=2)


def test_gdpo_without_channels_is_of_the_outcome_alone() -> None:
    assert_same(our_gdpo({"outcome": 1.0}), lambda batch: verl_credit("gdpo", batch))


# What verl does differently.


@pytest.mark.parametrize("name", ["grpo", "grpo_vectorized"])
def test_verl_grpo_knows_only_the_sum_of_dense_rewards(name: str) -> None:
    """It takes a reward a token, but gives all tokens of a response the same credit, that of their sum."""
    for seed in SEEDS:
        batch = draw(seed)
        rewards = token_rewards(batch, dense=True)
        verls = verl_credit(name, batch, rewards)
        assert all(len(set(row[on].tolist())) == 1 for row, on in zip(verls, batch.response_mask, strict=True))
        summed = batch.replace(rewards=rewards.sum(dim=1))
        assert gap(sc.GRPO(singletons="raw")(summed).advantages, verls) <= TOLERANCE
        ours = sc.GRPOProcess()(batch).advantages
        assert any(len(set(row[on].tolist())) > 1 for row, on in zip(ours, batch.response_mask, strict=True))


@pytest.mark.parametrize("epsilon", [1e-6, 0.25])
@pytest.mark.parametrize("name", ["grpo", "grpo_vectorized"])
def test_verl_grpo_divides_singletons_by_1_plus_epsilon(name: str, epsilon: float) -> None:
    """2 / (1 + epsilon), by default 1e-6 less of it, where our "raw" is 2."""
    batch = RolloutBatch.from_lists([1], [0], [2.0], dtype=torch.float32)
    assert sc.GRPO(singletons="raw", std_eps=epsilon)(batch).advantages.item() == 2.0
    verls = verl_credit(name, batch, epsilon=epsilon).item()
    assert verls == pytest.approx(2.0 / (1 + epsilon), rel=1e-7)
    assert verls != 2.0


@pytest.mark.parametrize(
    ("weight", "ours_per_z", "verls_per_z"),
    [(1e-2, 1 / (1 + 1e-4), (1 + 1e-4) ** -0.5), (1e-4, 1 / 1.01, 0.5**0.5)],
)
def test_verl_gdpo_whitens_with_another_epsilon(weight: float, ours_per_z: float, verls_per_z: float) -> None:
    """1 / sqrt(var + 1e-8), where we have 1 / (std + 1e-6): 5e-5 apart at a std of .01, 29% at 1e-4.

    Only a weighted sum that is that small shows it: z-scores themselves have a std near 1, where it is 1e-6.
    """
    batch = RolloutBatch.from_lists([1, 1], [0, 0], [1.0, 0.0], dtype=torch.float32)
    z = torch.tensor([[0.5**0.5], [-(0.5**0.5)]])
    weights = {"outcome": weight}
    torch.testing.assert_close(our_gdpo(weights)(batch).advantages, ours_per_z * z, rtol=2e-6, atol=0.0)
    torch.testing.assert_close(verl_gdpo(batch, weights), verls_per_z * z, rtol=2e-6, atol=0.0)


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("grpo", 1e-2, 0.5),
        ("grpo_vectorized", 1e-2, 0.5),
        ("rloo", 1e-8, 1e-6),
        ("rloo_vectorized", 1e-8, 1e-6),
        ("reinforce_plus_plus", 1e-4, 1e-2),
        ("reinforce_plus_plus_baseline", 0.0, 1e-6),
        ("gdpo", 1e-6, 1e-2),
    ],
)
def test_verl_credits_rounding_where_all_rewards_are_equal(name: str, least: float, most: float) -> None:
    """Rewards of .7, whose float32 mean is not always .7: GRPO's credit reaches .11, REINFORCE++'s .001, ours is 0.

    The sum's order, and so the size, depends on the processor.
    """
    largest = 0.0
    for n in range(2, 20):
        batch = RolloutBatch.from_lists([1] * n, [0] * n, [0.7] * n, dtype=torch.float32)
        credit = verl_credit(name, batch, config=core_algos.DictConfig({"gamma": 1.0}))
        largest = max(largest, float(credit.abs().max()))
        for ours in (sc.GRPO(), sc.RLOO(), sc.REINFORCEpp(), sc.REINFORCEpp(baseline=True), our_gdpo({"outcome": 1.0})):
            assert not ours(batch).advantages.any()
    assert least <= largest <= most


def test_verl_counts_rollouts_without_response_tokens() -> None:
    """The third rollout's reward is in verl's mean, 1/3; in ours, 1/2, it is not."""
    batch = RolloutBatch.from_lists([[True], [True], [False]], [0, 0, 0], [1.0, 0.0, 0.0], dtype=torch.float32)
    verls = verl_credit("grpo", batch, torch.tensor([[1.0], [0.0], [0.0]]), norm_adv_by_std_in_grpo=False)
    assert verls.flatten().tolist() == pytest.approx([2 / 3, -1 / 3, 0.0])
    assert sc.DrGRPO()(batch).advantages.flatten().tolist() == [0.5, -0.5, 0.0]


def test_verl_reads_nan_on_tool_output() -> None:
    """One nan on a token that is not the policy's makes the whole batch nan in verl; we never read it."""
    fields = {"process_rewards": [[0.1, float("nan"), 0.2], [0.3]], "dtype": torch.float32}
    batch = RolloutBatch.from_lists([[True, False, True], [True]], [0, 0], [1.0, 0.0], **fields)
    rewards = token_rewards(batch, dense=True)
    assert rewards.isfinite().all()
    assert verl_reinforce_pp(batch, rewards).isfinite().all()
    rewards[0, 1] = float("nan")
    assert verl_reinforce_pp(batch, rewards).isnan().all()
    assert verl_credit("grpo", batch, rewards).isnan().all()
    assert sc.REINFORCEpp()(batch).advantages.isfinite().all()


def test_verl_reinforce_pp_loses_an_outcome_on_tool_output() -> None:
    """verl puts the outcome on the last token, response or not. Where a tool has the last word, REINFORCE++ drops it.

    Its GRPO, which sums without the mask, does not. We put it on the last response token.
    """
    batch = RolloutBatch.from_lists([[True, False]] * 2, [0, 0], [1.0, 0.0], dtype=torch.float32)
    rewards = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    assert not verl_reinforce_pp(batch, rewards).any()
    assert gap(sc.GRPO()(batch).advantages, verl_credit("grpo", batch, rewards)) <= TOLERANCE
    assert sc.REINFORCEpp()(batch).advantages[:, 0].tolist() == pytest.approx([0.5**0.5, -(0.5**0.5)])


def test_verl_gae_is_not_zero_off_mask() -> None:
    batch = RolloutBatch.from_lists([1, 2], [0, 0], [1.0, 0.0], dtype=torch.float32)
    verls = verl_gae(batch, token_rewards(batch))
    assert verls[0, 1] != 0
    assert sc.REINFORCEpp()(batch).advantages[0, 1] == 0


@pytest.mark.parametrize("name", ["reinforce_plus_plus", "reinforce_plus_plus_baseline", "gdpo"])
def test_verl_refuses_to_whiten_a_single_token(name: str) -> None:
    batch = RolloutBatch.from_lists([1], [0], [1.0], dtype=torch.float32)
    config = core_algos.DictConfig({"gamma": 1.0})
    with pytest.raises(ValueError, match="sum of the mask is one"):
        verl_credit(name, batch, config=config)
    for ours in (sc.REINFORCEpp(), sc.REINFORCEpp(baseline=True, singletons="raw"), our_gdpo({"outcome": 1.0})):
        assert ours(batch).advantages.tolist() == [[0.0]]
