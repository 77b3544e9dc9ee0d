"""The kit finds what is broken, and nothing in what is not."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import stepcredit as sc
from lab.conform_mutants import MUTANTS, nan_for_lone_groups, plain
from schemes import SCHEMES
from stepcredit import ESTIMATORS, InputError, RolloutBatch
from stepcredit.cli import main
from stepcredit.lab.conform import LAWS, conform, find_target, golden_batches
from stepcredit.lab.conform.ranks import on_ranks
from stepcredit.ops.groups import all_reduce

NAMES = [law.name for law in LAWS]


def outcomes(thing: Any, **more: Any) -> dict[str, str]:
    return {one.law: one.outcome for one in conform(thing, **more).verdicts}


def broken(thing: Any, **more: Any) -> set[str]:
    return {law for law, outcome in outcomes(thing, **more).items() if outcome == "BROKEN"}


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_ours_hold_or_say_why_not(name: str) -> None:
    report = conform(ESTIMATORS[name]())
    assert report.conforms, [one for one in report.verdicts if one.outcome == "BROKEN"]
    assert [one.law for one in report.verdicts] == NAMES
    for one in report.verdicts:
        if one.outcome == "exempt":  # no exemption outlives its reason
            assert "it holds all the same" not in one.fact, one


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
@pytest.mark.parametrize("seed", range(3))
def test_ours_hold_under_other_options(name: str, seed: int) -> None:
    options = SCHEMES[name][1](random.Random(seed))
    for weight in ("w_process", "w_outcome"):  # an option that takes a stream away leaves nothing to say of it
        if options.get(weight) == 0:
            options[weight] = 0.5
    laws = [law for law in LAWS if law.name not in ("options", "shards")]
    report = conform(ESTIMATORS[name](**options), laws=laws, random_ones=2)
    assert report.conforms, (options, [one for one in report.verdicts if one.outcome == "BROKEN"])


def test_plain_loops_hold() -> None:
    found = outcomes(plain)
    assert "BROKEN" not in found.values()
    assert {law for law, outcome in found.items() if outcome == "n.a."} == {"packed", "shards", "options"}


@pytest.mark.parametrize(("law", "mutant"), [(law, mutant) for law, some in MUTANTS.items() for mutant in some])
def test_each_break_is_caught_by_its_law(law: str, mutant: Any) -> None:
    of_it = [one for one in LAWS if one.name == law]
    assert outcomes(mutant, laws=of_it) == {law: "BROKEN"}
    whole = sc.GRPOProcess(fusion="separate")
    assert outcomes(whole, laws=of_it)[law] == "holds"


def test_credit_that_is_not_finite_is_blamed_on_one_law() -> None:
    found = outcomes(nan_for_lone_groups)
    assert {law for law, outcome in found.items() if outcome == "BROKEN"} == {"form"}


def test_a_nan_in_a_twin_is_no_agreement() -> None:
    nan_where_equal = lambda batch: plain(batch) / batch.rewards.std()  # noqa: E731
    assert outcomes(nan_where_equal, laws=[law for law in LAWS if law.name == "equal"]) == {"equal": "BROKEN"}


def test_every_law_has_a_break() -> None:
    assert list(MUTANTS) == NAMES


def test_what_raises_breaks_a_law_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def bad(batch):\n    raise KeyError('no such\\ncolumn')\n")
    assert main(["conform", f"{file}:bad"]) == 1
    out = capsys.readouterr()
    assert "answers" in out.out
    assert "raised KeyError: 'no such\\ncolumn' in worked example" in out.out
    assert "Traceback" not in out.out + out.err


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ("batch.rewards", r"must return credit of the mask's shape \[4, 8\]; got \[4\]"),
        ("batch.response_mask", "a tensor of floats; got torch.bool"),
        ("None", "a tensor of floats; got NoneType"),
    ],
)
def test_what_returns_no_credit_is_one_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], result: str, said: str
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f"def bad(batch):\n    return {result}\n")
    assert main(["conform", f"{file}:bad"]) == 1
    out = capsys.readouterr()
    assert out.out == ""
    assert out.err.count("\n") == 1
    with pytest.raises(InputError, match=said):
        conform(find_target(f"{file}:bad", {}))


def test_a_module_a_file_and_a_scheme_with_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own_credit.py").write_text(
        "import torch\nfrom stepcredit import GRPO\nscheme = GRPO\nmade = GRPO(std_eps=0.5)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert find_target("own_credit:scheme", {"std_eps": 0.1}).estimator == sc.GRPO(std_eps=0.1)
    assert find_target("own_credit:made", {}).estimator == sc.GRPO(std_eps=0.5)
    assert find_target("own_credit.py:scheme", {}).estimator == sc.GRPO()
    assert main(["conform", "pass", "--set", "k=0.5", "--random", "0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["target"] == repr(sc.PASS(k=0.5))
    assert [row["law"] for row in found["laws"]] == NAMES
    assert all(row["says"] for row in found["laws"])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pas", "did you mean pass"),
        ("verl:grop", "verl:grpo"),
        ("no_such_module:thing", "could not be imported: ModuleNotFoundError"),
        ("stepcredit:no_such", "could not be imported: AttributeError"),
        ("stepcredit:ESTIMATORS", "must be an estimator, or RolloutBatch"),
    ],
)
def test_a_target_that_is_none(name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        find_target(name, {})


def test_an_exemption_is_shown_with_its_reason_and_must_name_a_law() -> None:
    def mine(batch: RolloutBatch) -> torch.Tensor:
        return plain(batch) / len(batch)

    mine.exempt = {"alone": "divides by the batch", "excluded": "likewise"}  # type: ignore[attr-defined]
    report = conform(mine)
    assert report.conforms
    (alone,) = [one for one in report.verdicts if one.law == "alone"]
    assert alone.outcome == "exempt"
    assert alone.fact.startswith("divides by the batch (")
    mine.exempt = {"alon": "..."}  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="`exempt` must name laws of mine; got 'alon'"):
        conform(mine)


def test_a_signal_that_is_required_and_not_read_breaks_its_laws() -> None:
    def mine(batch: RolloutBatch) -> torch.Tensor:
        return sc.GRPO()(batch).advantages

    assert "shift" not in broken(mine)
    mine.requires = {"process_rewards"}  # type: ignore[attr-defined]
    assert {"shift", "edges", "place", "coverage"} <= broken(mine)


def test_golden_batches_are_always_the_same_and_hold_what_their_names_say() -> None:
    for one, other in zip(golden_batches(), golden_batches(), strict=True):
        assert str(one) == str(other)
        assert torch.equal(one.batch.rewards, other.batch.rewards)
        assert torch.equal(one.batch.process_rewards, other.batch.process_rewards)
    named = {one.name: one.batch for one in golden_batches()}
    assert 1 in named["groups of one"].group_ids.unique(return_counts=True)[1]
    assert (named["one-token responses"].response_mask.sum(1) == 1).all()
    holes = named["tool output"].response_mask.long()
    assert (holes.diff(dim=1) > 0).any()
    assert not named["excluded rollouts"].row_mask.all()
    assert not named["format violators"].format_ok.all()
    partial = named["partial coverage"]
    assert ((partial.step_ids < 0) & partial.response_mask).any()
    assert any(((b.step_ids < 0) | ~b.response_mask).all(1).any() for b in (partial,))
    assert len(golden_batches(frozenset({"step_ids"}))) < len(golden_batches())


def test_ranks_replay_until_all_collectives_are_answered() -> None:
    def work(rank: int, group: Any) -> float:
        total = all_reduce(torch.tensor(float(rank + 1)), group)
        return float(all_reduce(total * (rank + 1), group, "max"))

    assert on_ranks(3, work) == [18.0, 18.0, 18.0]

    def hangs(rank: int, group: Any) -> None:
        if rank == 0:
            all_reduce(torch.zeros(1), group)

    with pytest.raises(sc.StepCreditError, match="wait for each other"):
        on_ranks(2, hangs)
