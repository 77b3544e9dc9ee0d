"""The conformance kit on an installed verl: its own estimators, its losses, and our adapter by its dispatcher."""

import pytest
import torch

import stepcredit as sc
from stepcredit.lab.conform import conform, golden_batches

pytest.importorskip("verl", reason="verl is not installed")
pytest.importorskip("verl.trainer.ppo.ray_trainer", reason="verl lacks a package that its trainer imports")

from stepcredit.adapters.verl.columns import Joined
from stepcredit.lab.conform.through_verl import conform_verl
from stepcredit.lab.peers import UnsupportedError, peer

BROKEN = {
    "grpo": ["excluded", "constant", "equal"],
    "rloo_vectorized": ["excluded"],
    "reinforce_plus_plus": ["answers", "equal"],
    "gae": ["answers", "zero", "equal"],
    "optimal_token_baseline": ["unread", "observation", "constant", "equal"],
    "tir_optimal_token_baseline": ["unread", "constant", "equal"],
    "grpo:dense": ["unread", "excluded", "constant", "equal", "uncovered", "unscored", "shift"],
}
"""Of verl 0.9.1: a change here is verl's, or ours."""


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_what_verl_breaks(name: str) -> None:
    verdicts = conform(peer(f"verl:{name}")).verdicts
    assert [one.law for one in verdicts if one.outcome == "BROKEN"] == BROKEN[name]


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("grpo", sc.GRPO(singletons="raw")),
        ("rloo_vectorized", sc.RLOO()),
        ("reinforce_plus_plus", sc.REINFORCEpp(w_process=0.0)),
        ("reinforce_plus_plus:dense", sc.REINFORCEpp()),
    ],
)
def test_peers_are_what_our_schemes_are_where_the_definitions_agree(name: str, ours: sc.Estimator) -> None:
    compared = 0
    for golden in golden_batches():
        if golden.name == "random" or golden.name == "a group of equal rewards":
            continue
        try:
            credit = peer(f"verl:{name}")(golden.batch)
        except UnsupportedError:
            continue
        plain = golden.batch.replace(format_rewards=None, format_ok=None, extra_rewards=None)
        torch.testing.assert_close(credit, ours(plain).advantages.float(), rtol=1e-4, atol=1e-5)
        compared += 1
    assert compared > 8


def test_the_adapter_conforms_and_losses_follow_credit() -> None:
    report = conform_verl()
    assert report.conforms, [one for one in report.verdicts if one.outcome == "BROKEN"]
    outcomes = {one.law: one.outcome for one in report.verdicts}
    assert outcomes["loss vanilla"] == outcomes["joined rows"] == outcomes["faithful spro"] == "holds"
    assert outcomes["loss geo_mean"] == "exempt"


def test_a_broken_adapter_does_not_conform(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Joined.unpack
    monkeypatch.setattr(Joined, "unpack", lambda self, values: right(self, values.roll(1)))
    broken = {one.law for one in conform_verl().verdicts if one.outcome == "BROKEN"}
    assert {"faithful pass", "faithful grpo_process", "faithful spro"} <= broken
