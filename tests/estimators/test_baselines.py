"""The smaller schemes: what each reduces to, and hand arithmetic for what is peculiar to it."""

import pytest
import torch
from hypothesis import given, settings

import stepcredit as sc
from stepcredit import InputError, RolloutBatch
from strategies import padded, plain_batch, seeds

LAW = settings(max_examples=60, deadline=None)


@LAW
@given(seed=seeds())
def test_rloo_is_dr_grpo_times_n_over_n_minus_1(seed: int) -> None:
    plain = plain_batch(seed)
    batch = padded(plain)
    live = [any(mask) and (plain["row_mask"] is None or plain["row_mask"][i]) for i, mask in enumerate(plain["mask"])]
    sizes = [sum(live[j] for j, other in enumerate(plain["group"]) if other == label) for label in plain["group"]]
    ratio = torch.tensor([n / (n - 1) if n > 1 else 0.0 for n in sizes], dtype=torch.float64)[:, None]
    torch.testing.assert_close(sc.RLOO()(batch).advantages, ratio * sc.DrGRPO()(batch).advantages)


@LAW
@given(seed=seeds())
def test_whitened_schemes_have_mean_0_and_at_most_variance_1_over_tokens(seed: int) -> None:
    batch = padded(plain_batch(seed))
    for scheme in (sc.REINFORCEpp(), sc.REINFORCEpp(baseline=True), sc.PRIME()):
        a = batch.layout.pack(scheme(batch).advantages)
        if a.numel() > 1:
            assert float(a.mean()) == pytest.approx(0.0, abs=1e-9)
            assert float(a.var()) <= 1 + 1e-9  # var / (var + 1e-8)
            if a.any():
                assert float(a.var()) > 1e-3


def test_singletons_are_zero_or_raw() -> None:
    batch = RolloutBatch.from_lists([2], [7], [0.8], process_rewards=[[1.0, 3.0]])
    for scheme in (sc.GRPO, sc.DrGRPO, sc.RLOO):
        assert scheme()(batch).advantages.tolist() == [[0.0, 0.0]]
        assert scheme(singletons="raw")(batch).advantages.tolist() == [[0.8, 0.8]]
    # A process pool of two steps standardizes all the same: (1 - 2) / 1 and (3 - 2) / 1 with ddof 0, then summed.
    process = sc.GRPOProcess(std_eps=0.0, correction=0)(batch)
    assert process.advantages.tolist() == [[0.0, 1.0]]


def test_extra_rewards_and_their_weights() -> None:
    batch = RolloutBatch.from_lists([1, 1], [0, 0], [1.0, 0.0], extra_rewards={"brevity": [0.0, 4.0]})
    assert sc.DrGRPO()(batch).advantages.flatten().tolist() == [-1.5, 1.5]  # R = 1, 4
    weighted = sc.DrGRPO(w_extra={"brevity": 0.5})(batch)
    assert weighted.advantages.flatten().tolist() == [-0.5, 0.5]  # R = 1, 2
    assert {name: x.flatten().tolist() for name, x in weighted.terms().items()} == {
        "outcome": [0.5, -0.5],
        "brevity": [-1.0, 1.0],
    }
    with pytest.raises(InputError, match="`w_extra` must name channels"):
        sc.DrGRPO(w_extra={"brevty": 0.5})(batch)
    with pytest.raises(InputError, match="`w_extra` must name channels"):
        sc.DrGRPO(w_extra={"outcome": 5.0})(batch)
    given = {"brevity": 0.5}
    scheme = sc.DrGRPO(w_extra=given)
    given["brevity"] = 99.0
    assert scheme.w_extra == {"brevity": 0.5}


def test_gdpo_keeps_two_channels_apart_where_grpo_confuses_them() -> None:
    """Rewards (1, 0) and (0, 1) sum to 1 both: GRPO sees no difference to (1, 0) and (1, 0); the channels do."""
    fields = {"format_rewards": [0.0, 1.0, 1.0], "format_ok": [True, True, True]}
    batch = RolloutBatch.from_lists([1, 1, 1], [0, 0, 0], [1.0, 0.0, 0.0], **fields)
    assert (sc.GRPO(w_format=1.0)(batch).advantages == 0).all()
    # z(1,0,0) = (1.414, -.707, -.707), z(0,1,1) = its negative: with weight 2 on the outcome the first remains.
    got = sc.GDPO(w_outcome=2.0, correction=0, std_eps=0.0)(batch).advantages.flatten()
    assert got.tolist() == pytest.approx([2**0.5, -(0.5**0.5), -(0.5**0.5)])


def test_papo_needs_two_correct_rollouts() -> None:
    signal = [[1.0], [0.0], [0.5]]
    two = RolloutBatch.from_lists([1, 1, 1], [0, 0, 0], [1.0, 1.0, 0.0], process_rewards=signal)
    assert sc.PAPO(correction=0, std_eps=0.0)(two).terms()["process"].flatten().tolist() == [1.0, -1.0, 0.0]
    one = two.replace(rewards=torch.tensor([1.0, 0.0, 0.0]))
    assert (sc.PAPO(correction=0)(one).terms()["process"] == 0).all()


def test_reinforce_pp_discounts_by_response_token() -> None:
    """Returns .25 .5 1 | 0 with a hole in row 1: mean .4375, sum of squares 1.3125 - 4 * .4375^2 = .546875, / 3."""
    batch = RolloutBatch.from_lists([[True, False, True, True], [True, False, False, False]], [0, 1], [1.0, 0.0])
    returns = torch.tensor([0.25, 0.5, 1.0, 0.0], dtype=torch.float64)
    want = (returns - 0.4375) / (0.546875 / 3 + 1e-8) ** 0.5
    got = sc.REINFORCEpp(gamma=0.5)(batch).advantages
    torch.testing.assert_close(got[batch.response_mask], want)


def test_prime_last_token_is_zero_but_counts_in_the_mean() -> None:
    """p = (.2, 0) and (.4, 0): m = .1, .2, mean .15; b = 2 (p - .15); return-to-go of row 1: (-.2, -.3)."""
    batch = RolloutBatch.from_lists([2, 2], [0, 0], [0.0, 0.0], process_rewards=[[0.2, 9.0], [0.4, 9.0]])
    b = torch.tensor([[0.1, -0.3], [0.5, -0.3]], dtype=torch.float64)
    returns = torch.stack([b.sum(1), b[:, 1]], 1)
    want = (returns - returns.mean()) / (returns.var() + 1e-8).sqrt()
    torch.testing.assert_close(sc.PRIME(process_norm=None)(batch).advantages, want)


def test_pooled_fusion_contaminates_and_separate_does_not() -> None:
    """Adding 10 to every outcome moves the pooled process term and leaves the separate one where it was."""
    batch = RolloutBatch.from_lists([1, 1], [0, 0], [1.0, 0.0], process_rewards=[[0.9], [0.2]])
    shifted = batch.replace(rewards=batch.rewards + 10)
    for fusion, moves in (("pooled", True), ("separate", False)):
        scheme = sc.GRPOProcess(fusion=fusion)
        same = torch.allclose(scheme(batch).terms()["process"], scheme(shifted).terms()["process"])
        assert same != moves
