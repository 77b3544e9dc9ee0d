"""Our estimators against TRL's trainers, as installed: where the advantages are the same, and where not.

The rewards are ours, everything after them is what the trainer makes of them in one generation batch. The second half
holds what TRL (1.16) does differently, one difference a test, with its size: such a test fails when TRL changes, or
when we do.
"""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import stepcredit as sc
from stepcredit import Estimator, InputError, RolloutBatch

pytest.importorskip("trl", reason="TRL is not installed: its trainers cannot be compared with our estimators")

from trl_dealer import GROUP, PROMPTS, Dealer, Rewards

SEEDS = range(20)
SCALES = [1.0, 2.0**-14]
"""Of the rewards. Small ones bring out the epsilon; a power of two keeps ties exact in float32."""
TOLERANCE = 1e-5
"""Of the largest advantage: TRL computes in float32, we in float64."""
STD_EPS = 1e-4
"""Added to every standard deviation in TRL, where it is no setting."""
NORMALIZE_THEN_SUM = {"multi_objective_aggregation": "normalize_then_sum"}


@pytest.fixture(scope="module")
def dealer(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Dealer]:
    """A dealer by names of reward functions and TRL's settings; a trainer is made once."""
    made: dict[str, Dealer] = {}

    def of(
        *names: str, rloo: bool = False, script: bool = False, credit: Estimator | None = None, **settings: Any
    ) -> Dealer:
        key = repr((names, rloo, script, credit, settings))
        if key not in made:
            kind: dict[str, Any] = {"rloo": rloo, "script": script, "credit": credit}
            made[key] = Dealer(tmp_path_factory.mktemp("trl"), names or ("outcome",), settings, **kind)
        return made[key]

    return of


def draw(seed: int, *names: str, scale: float = 1.0, silent: float = 0.0) -> Rewards:
    """Tied and untied rewards in groups, some of them constant; a share of them None, which is no reward at all."""
    rng = random.Random(seed)
    rewards: Rewards = {}
    for name in names or ("outcome",):
        rewards[name] = []
        for _ in range(PROMPTS):
            choices = [1.0] if rng.random() < 0.2 else [0.0, 1.0, 1.0, 0.5, -1.0, rng.gauss(0, 1), rng.gauss(0, 1)]
            row = [float(torch.tensor(scale * rng.choice(choices))) for _ in range(GROUP)]
            rewards[name] += [None if rng.random() < silent else x for x in row]
    return rewards


def as_batch(rewards: Rewards, mask: Tensor) -> RolloutBatch:
    """The same rewards as a batch of ours: a rollout without an outcome does not count."""
    outcome = rewards["outcome"]
    extra = {name: torch.tensor(values) for name, values in rewards.items() if name not in ("outcome", "format")}
    form = rewards.get("format")
    return RolloutBatch(
        mask.bool(),
        torch.arange(len(outcome)) * PROMPTS // len(outcome),
        torch.tensor([0.0 if x is None else x for x in outcome]),
        format_rewards=None if form is None else torch.tensor(form),
        format_ok=None if form is None else torch.ones(len(form), dtype=torch.bool),
        extra_rewards=extra or None,
        row_mask=torch.tensor([x is not None for x in outcome]),
    )


def per_rollout(ours: Estimator, batch: RolloutBatch) -> Tensor:
    """Our advantages, which are the same on every token of a response here."""
    advantages = ours(batch).advantages
    assert torch.equal(advantages, advantages[:, :1] * batch.response_mask)
    return advantages[:, 0]


def gap(ours: Tensor, trls: Tensor) -> float:
    """The largest difference, relative to the largest advantage (absolute if all are zero)."""
    assert ours.shape == trls.shape
    return float((ours - trls).abs().max() / (trls.abs().max() or 1.0))


def assert_same(
    dealer: Dealer, ours: Callable[[RolloutBatch], Tensor], *names: str, scale: float = 1.0, silent: float = 0.0
) -> None:
    """The same advantages for every seed's rewards, few of them all zeros."""
    nonzero = 0
    for seed in SEEDS:
        rewards = draw(seed, *names, scale=scale, silent=silent)
        output = dealer.deal(rewards)
        want = output["advantages"]
        assert gap(ours(as_batch(rewards, output["completion_mask"])), want) <= TOLERANCE, seed
        nonzero += bool(want.any())
    assert nonzero > 0.8 * len(SEEDS)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("silent", [0.0, 0.4])
def test_grpo(dealer: Callable[..., Dealer], scale: float, silent: float) -> None:
    """Rollouts without a reward are left out, and a group in which one is left has no advantage, in both."""
    ours = lambda batch: per_rollout(sc.GRPO(std_eps=STD_EPS), batch)  # noqa: E731
    assert_same(dealer(scale_rewards="group"), ours, scale=scale, silent=silent)


@pytest.mark.parametrize("silent", [0.0, 0.4])
def test_dr_grpo(dealer: Callable[..., Dealer], silent: float) -> None:
    assert_same(dealer(scale_rewards="none"), lambda batch: per_rollout(sc.DrGRPO(), batch), silent=silent)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("silent", [0.0, 0.4])
def test_batch_scaling_is_dr_grpo_over_the_spread_of_all_rewards(
    dealer: Callable[..., Dealer], scale: float, silent: float
) -> None:
    """Of the rewards themselves, in which the groups' means differ, not of what is left of them after centering."""

    def ours(batch: RolloutBatch) -> Tensor:
        assert batch.row_mask is not None
        assert batch.rewards is not None
        return per_rollout(sc.DrGRPO(), batch) / (batch.rewards[batch.row_mask].std() + STD_EPS)

    assert_same(dealer(scale_rewards="batch"), ours, scale=scale, silent=silent)


@pytest.mark.parametrize("silent", [0.0, 0.4])
def test_rloo(dealer: Callable[..., Dealer], silent: float) -> None:
    """Without the KL penalty that `RLOOTrainer` takes from the rewards by default."""
    assert_same(dealer(rloo=True, beta=0.0), lambda batch: per_rollout(sc.RLOO(), batch), silent=silent)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    "weights", [{"outcome": 1.0}, {"outcome": 1.0, "format": 1.0}, {"outcome": 2.0, "format": 0.5, "brevity": -0.3}]
)
def test_gdpo(dealer: Callable[..., Dealer], weights: dict[str, float], scale: float) -> None:
    extra = {"brevity": weights["brevity"]} if "brevity" in weights else {}
    gdpo = sc.GDPO(w_format=weights.get("format", 0.0), w_outcome=weights["outcome"], w_extra=extra, std_eps=STD_EPS)
    trls = dealer(*weights, reward_weights=list(weights.values()), **NORMALIZE_THEN_SUM)
    assert_same(trls, lambda batch: per_rollout(gdpo, batch), *weights, scale=scale)


def test_weights_sum_channels_before_grpo(dealer: Callable[..., Dealer]) -> None:
    grpo = sc.GRPO(w_outcome=2.0, w_format=0.5, w_extra={"brevity": -0.3}, std_eps=STD_EPS)
    names = ("outcome", "format", "brevity")
    assert_same(dealer(*names, reward_weights=[2.0, 0.5, -0.3]), lambda batch: per_rollout(grpo, batch), *names)


@pytest.mark.parametrize(
    ("ours", "settings"),
    [
        (sc.GRPO(), {"scale_rewards": "group"}),
        (sc.DrGRPO(), {"scale_rewards": "none"}),
        (sc.RLOO(), {"rloo": True, "beta": 0.0}),
        (sc.GDPO(), NORMALIZE_THEN_SUM),
    ],
    ids=["grpo", "dr_grpo", "rloo", "gdpo"],
)
def test_a_rollout_without_siblings_has_no_advantage(
    dealer: Callable[..., Dealer], ours: Estimator, settings: dict[str, Any]
) -> None:
    """Which happens in evaluation, with one generation a prompt; it is our default for singletons."""
    trls = dealer(num_generations_eval=1, per_device_eval_batch_size=PROMPTS, **settings)
    rewards: Rewards = {"outcome": [1.0, 0.0, 0.3]}
    output = trls.deal(rewards, evaluating=True)
    assert output["advantages"].tolist() == [0.0, 0.0, 0.0]
    assert not per_rollout(ours, as_batch(rewards, output["completion_mask"])).any()


# What TRL does differently.


@pytest.mark.parametrize("std", [1.0, 1e-3])
def test_trls_epsilon_is_a_hundred_times_ours(dealer: Callable[..., Dealer], std: float) -> None:
    """std + 1e-4 where we have, by default, std + 1e-6: 1e-4 of an advantage at a std of 1, 9% at .001."""
    a = std * 0.75**0.5  # of (a, -a, a, -a), whose std with correction 1 is a sqrt(4/3)
    rewards: Rewards = {"outcome": [a, -a, a, -a] * PROMPTS}
    output = dealer(scale_rewards="group").deal(rewards)
    z = torch.tensor([1.0, -1.0, 1.0, -1.0] * PROMPTS) * 0.75**0.5
    torch.testing.assert_close(output["advantages"], z * std / (std + 1e-4), rtol=2e-6, atol=0.0)
    ours = per_rollout(sc.GRPO(), as_batch(rewards, output["completion_mask"]))
    torch.testing.assert_close(ours, z * std / (std + 1e-6), rtol=2e-6, atol=0.0)


@pytest.mark.parametrize(
    ("settings", "least", "most"),
    [
        ({"scale_rewards": "group"}, 1e-4, 1e-2),
        ({"scale_rewards": "batch"}, 1e-8, 1e-6),
        ({"scale_rewards": "none"}, 1e-8, 1e-6),
        ({"rloo": True, "beta": 0.0}, 1e-8, 1e-6),
        (NORMALIZE_THEN_SUM, 0.1, 3.0),
    ],
    ids=["group", "batch", "none", "rloo", "gdpo"],
)
def test_trl_credits_rounding_where_all_rewards_are_equal(
    dealer: Callable[..., Dealer], settings: dict[str, Any], least: float, most: float
) -> None:
    """Rewards in tenths, whose float32 mean is not always theirs: GDPO whitens the rounding up to a whole credit.

    The sum's order, and so the size, depends on the processor.
    """
    largest = 0.0
    trls = dealer(num_generations=6, per_device_train_batch_size=6 * PROMPTS, **settings)
    for tenths in ([1, 2, 3], [7, 6, 9], [3, 11, 13]):
        rewards: Rewards = {"outcome": [x / 10 for x in tenths for _ in range(6)]}
        output = trls.deal(rewards)
        largest = max(largest, float(output["advantages"].abs().max()))
        batch = as_batch(rewards, output["completion_mask"])
        for ours in (sc.GRPO(), sc.DrGRPO(), sc.RLOO(), sc.GDPO()):
            assert not ours(batch).advantages.any()
    assert least <= largest <= most


def test_trl_counts_truncated_rollouts_that_do_not_train(dealer: Callable[..., Dealer]) -> None:
    """`mask_truncated_completions` takes them out of the loss, and leaves their rewards in the group's mean and std."""
    trls = dealer(mask_truncated_completions=True, max_completion_length=10, script=True)
    cut = apart = 0
    for seed in SEEDS:
        rewards = draw(seed)
        output = trls.deal(rewards)
        batch = as_batch(rewards, output["completion_mask"])
        kept = batch.response_mask.any(dim=1)
        everyone = batch.replace(response_mask=torch.ones_like(batch.response_mask))
        assert gap(per_rollout(sc.GRPO(std_eps=STD_EPS), everyone), output["advantages"]) <= TOLERANCE
        ours = sc.GRPO(std_eps=STD_EPS)(batch).advantages[:, 0]
        cut += int((~kept).sum())
        apart += int(((ours - output["advantages"]).abs() > 0.1)[kept].sum())
    assert min(cut, apart) > len(SEEDS) / 2


def test_trls_gdpo_keeps_a_rollout_on_which_one_function_is_silent(dealer: Callable[..., Dealer]) -> None:
    """TRL leaves it out of that function's channel alone. It does not count at all to the adapter, which says how many.

    Brevities are equal otherwise and add nothing: the credit is of outcomes, four a group in TRL, and three in ours.
    """
    rewards: Rewards = {"outcome": [1.0, 0.0, 0.0, 1.0] * PROMPTS, "brevity": [1.0, None, 1.0, 1.0] * PROMPTS}
    theirs, ours = dealer("outcome", "brevity", **NORMALIZE_THEN_SUM), dealer("outcome", "brevity", credit=sc.GDPO())
    a = (11 / 12) ** 0.5  # over twelve rollouts with correction 1, values -1 and 1 have a std of 1 / a
    assert theirs.deal(rewards)["advantages"].tolist() == pytest.approx([a, -a, -a, a] * PROMPTS, abs=1e-3)
    b = 2 / 3  # over nine, values of 1, -2 and 1 have one of 3 / 2
    credit = ours.deal(rewards)["advantages"][:, 0]
    assert credit.tolist() == pytest.approx([b, 0.0, -2 * b, b] * PROMPTS, abs=1e-5)
    assert ours.trainer._metrics["train"]["credit/excluded_rows"] == [PROMPTS]


def test_trl_trains_on_what_an_infinite_reward_leaves(dealer: Callable[..., Dealer]) -> None:
    """The largest float32 against each of its siblings, and nothing for itself; we refuse the batch."""
    rewards: Rewards = {"outcome": [float("inf"), 1.0, 2.0, 3.0, *[0.0] * (PROMPTS - 1) * GROUP]}
    output = dealer(scale_rewards="none").deal(rewards)
    lowest = torch.finfo(torch.float32).min
    assert output["advantages"].tolist() == [0.0, lowest, lowest, lowest, *[0.0] * (PROMPTS - 1) * GROUP]
    with pytest.raises(InputError, match="`rewards` must be finite"):
        as_batch(rewards, output["completion_mask"])
