"""TRL's own advantages as its trainers compute them, and our adapter from the rollout to the gradient."""

from typing import Any

import pytest
import torch

import stepcredit as sc
from stepcredit.errors import InputError
from stepcredit.lab.conform import conform, golden_batches

pytest.importorskip("trl")

from stepcredit.adapters.trl import trainer as adapter
from stepcredit.lab.conform.through_trl import conform_trl
from stepcredit.lab.peers import UnsupportedError, peer

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's own
PLAIN = {"format_rewards": None, "format_ok": None, "extra_rewards": None}


def supported(name: str) -> list[tuple[Any, torch.Tensor]]:
    found, one = [], peer(name)
    for golden in golden_batches(frozenset({"rewards"})):
        try:
            found.append((golden.batch, one(golden.batch)))
        except UnsupportedError:
            continue
    assert len(found) > 7
    return found


@pytest.mark.parametrize(
    ("name", "ours"),
    [("trl:grpo", sc.GRPO(std_eps=1e-4)), ("trl:grpo_none", sc.DrGRPO()), ("trl:rloo", sc.RLOO())],
)
def test_peers_are_what_our_schemes_are_where_the_definitions_agree(name: str, ours: sc.Estimator) -> None:
    for batch, credit in supported(name):
        want = ours(batch.replace(**PLAIN)).advantages.float()
        torch.testing.assert_close(credit, want, rtol=1e-5, atol=2e-6)


def test_trl_ignores_scale_rewards_where_it_normalizes_first() -> None:
    for (_, one), (_, other) in zip(supported("trl:gdpo"), supported("trl:gdpo_none"), strict=True):
        assert torch.equal(one, other)
    grouped, none = supported("trl:grpo"), supported("trl:grpo_none")
    assert any(not torch.equal(one, other) for (_, one), (_, other) in zip(grouped, none, strict=True))


def test_what_trl_breaks() -> None:
    broken = [one.law for one in conform(peer("trl:grpo")).verdicts if one.outcome == "BROKEN"]
    assert broken == ["excluded", "equal"]


def test_the_adapter_conforms() -> None:
    report = conform_trl()
    assert report.conforms, [one for one in report.verdicts if one.outcome == "BROKEN"]
    assert {one.law for one in report.verdicts if one.outcome == "holds"} > {
        "gradient",
        "faithful",
        "loss dapo",
        "place",
    }


def test_a_broken_adapter_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    right = adapter.with_credit

    def one_token_late(*args: Any) -> Any:
        output = right(*args)
        return {**output, "advantages": output["advantages"].roll(1, 1)}

    monkeypatch.setattr(adapter, "with_credit", one_token_late)
    broken = {one.law for one in conform_trl().verdicts if one.outcome == "BROKEN"}
    assert "faithful" in broken

    def refuses(*args: Any) -> Any:
        raise InputError("`x` must be y;\ngot z.")

    monkeypatch.setattr(adapter, "with_credit", refuses)
    facts = {one.law: one.fact for one in conform_trl().verdicts if one.outcome == "BROKEN"}
    assert facts["answers"].startswith("raised InputError: `x` must be y; got z.")
