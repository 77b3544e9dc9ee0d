"""SPRO: the laws of the masked step advantage."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import stepcredit as sc
from strategies import padded, plain_batch, seeds

LAW = settings(max_examples=80, deadline=None)
ATTRIBUTIONS = st.sampled_from(["prefix", "token", "return_to_go"])


@LAW
@given(seed=seeds(), attribution=ATTRIBUTIONS)
def test_policy_equal_to_reference_is_grpo_exactly(seed: int, attribution: str) -> None:
    plain = plain_batch(seed)
    batch = padded({**plain, "ref": plain["old"], "extra_rewards": None})
    assert torch.equal(sc.SPRO(attribution=attribution)(batch).advantages, sc.GRPO()(batch).advantages)


@LAW
@given(seed=seeds(), attribution=ATTRIBUTIONS, column_std=st.booleans())
def test_each_column_of_live_rollouts_sums_to_zero(seed: int, attribution: str, column_std: bool) -> None:
    plain = plain_batch(seed)
    batch = padded(plain)
    msa = sc.SPRO(beta=1.0, attribution=attribution, column_std=column_std)(batch).terms()["process"]
    columns: dict[tuple[int, int], float] = {}
    for i, mask in enumerate(plain["mask"]):
        for position, t in enumerate([t for t, on in enumerate(mask) if on]):
            key = (plain["group"][i], position)
            columns[key] = columns.get(key, 0.0) + float(msa[i, t])
    assert max((abs(x) for x in columns.values()), default=0.0) < 1e-9


def test_a_constant_in_every_column_changes_nothing() -> None:
    ref = [[-1.0, -2.0, -0.5], [-0.3, -0.9, -1.1]]
    old = [[-0.8, -1.0, -0.7], [-0.5, -0.2, -0.6]]
    batch = sc.RolloutBatch.from_lists([3, 3], [0, 0], [1.0, 0.0], old_logprobs=old, ref_logprobs=ref)
    shifted = batch.replace(old_logprobs=batch.old_logprobs + torch.tensor([0.3, -0.2, 0.9]))
    torch.testing.assert_close(sc.SPRO()(shifted).advantages, sc.SPRO()(batch).advantages)


def test_equal_outcomes_still_get_a_gradient() -> None:
    batch = sc.RolloutBatch.from_lists(
        [1, 1], [0, 0], [1.0, 1.0], old_logprobs=[[-1.0], [-2.0]], ref_logprobs=[[-2.0], [-2.0]]
    )
    # Log-ratios 1 and 0, mean .5, times beta .05.
    assert sc.SPRO()(batch).advantages.flatten().tolist() == pytest.approx([0.025, -0.025])
    assert (sc.GRPO()(batch).advantages == 0).all()


def test_a_lone_survivor_gets_its_outcome_alone() -> None:
    batch = sc.RolloutBatch.from_lists(
        [1, 2], [0, 0], [1.0, 0.0], old_logprobs=[[-1.0], [-1.0, -3.0]], ref_logprobs=[[-2.0], [-1.0, -1.0]]
    )
    credit = sc.SPRO(beta=1.0)(batch)
    assert credit.terms()["process"].tolist() == [[0.5, 0.0], [-0.5, 0.0]]


def test_clip_limits_the_step_advantage_before_it_is_added() -> None:
    batch = sc.RolloutBatch.from_lists(
        [1, 1], [0, 0], [1.0, 0.0], old_logprobs=[[-1.0], [-9.0]], ref_logprobs=[[-2.0], [-2.0]]
    )
    assert sc.SPRO(beta=1.0, clip=0.5)(batch).terms()["process"].flatten().tolist() == [0.5, -0.5]


def test_beta_is_never_silent() -> None:
    assert "beta=0.05" in repr(sc.SPRO())
