"""Measuring growth: rollouts of the asked size, laws fitted right, sizes that do not fit left out by name."""

import json
import math
from typing import Any

import pytest
import torch

from stepcredit import RolloutBatch
from stepcredit.cli import main
from stepcredit.errors import StepCreditError
from stepcredit.lab.bench import scale as module
from stepcredit.lab.bench.memory import available_memory
from stepcredit.lab.bench.scale import bench_scale, controller_share, growth, tokens_at_share
from stepcredit.lab.bench.scale_rollouts import SCHEMES, packed_fields, padded_fields, ragged_lengths


@pytest.mark.parametrize(("tokens", "group"), [(2**10, 8), (2**16, 8), (2**20, 3), (2**21, 16), (16, 16)])
def test_rollouts_are_ragged_whole_groups_of_that_size(tokens: int, group: int) -> None:
    lengths = ragged_lengths(tokens, group)
    assert lengths.numel() % group == 0
    assert abs(int(lengths.sum()) - tokens) <= max(lengths.numel(), tokens // 1000)
    assert lengths.min() >= 1
    if tokens >= 2**20:
        assert 16_384 >= lengths.max() > 3 * lengths.median() > 9 * lengths.min()
    assert torch.equal(lengths, ragged_lengths(tokens, group))


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_both_layouts_hold_the_same_rollouts(scheme: str) -> None:
    lengths = ragged_lengths(2**12, 4)
    fields = packed_fields(scheme, lengths, torch.arange(lengths.numel()) // 4)
    packed, padded = RolloutBatch(**fields), RolloutBatch(**padded_fields(fields))
    assert SCHEMES[scheme].requires <= set(packed.present) == set(padded.present)
    assert packed.dtype == torch.float32
    flat, wide = SCHEMES[scheme](packed).advantages, SCHEMES[scheme](padded).advantages
    torch.testing.assert_close(flat, wide[padded.response_mask], rtol=0, atol=1e-6)
    assert flat.abs().max() > 0.1


def sizes_of(seconds: Any, added: Any, powers: list[int]) -> list[dict[str, Any]]:
    return [{"tokens": 2**p, "cpu_seconds": {"median": seconds(2**p)}, "added_bytes": added(2**p)} for p in powers]


def test_growth_finds_the_law_of_the_largest_sizes() -> None:
    # small sizes pay a fixed cost that the law must not read; from 2^22 on it is 2e-7 N^1.1, and 50 bytes a token
    flat = sizes_of(lambda _: 1.0, lambda _: 1e9, [18, 20])
    law = growth([*flat, *sizes_of(lambda n: 2e-7 * n**1.1, lambda n: 50.0 * n, [22, 24, 26])])
    assert law is not None
    assert law["seconds_exponent"] == pytest.approx(1.1)
    assert law["bytes_exponent"] == pytest.approx(1.0)
    assert (law["fitted_from"], law["fitted_to"]) == (2**22, 2**26)
    assert [one["tokens"] for one in law["extrapolated"]] == [2**28, 2**30, 2**32]
    assert law["extrapolated"][1]["seconds"] == pytest.approx(2e-7 * 2 ** (30 * 1.1))
    assert law["extrapolated"][1]["added_bytes"] == pytest.approx(50 * 2**30)
    measured = growth(sizes_of(lambda n: n, lambda n: n, [26, 28]))
    assert measured is not None
    assert [one["tokens"] for one in measured["extrapolated"]] == [2**30, 2**32]  # 2^28 was measured
    assert growth(flat[:1]) is None


def test_share_and_its_tokens_are_each_others_inverse() -> None:
    # 1e-6 s a token, 4e6 tokens: 4 s beside 36 s is a tenth of 40 s
    assert controller_share(1e-6, 4e6, 36.0) == pytest.approx(0.1)
    assert tokens_at_share(1e-6, 0.1, 36.0) == pytest.approx(4e6)


def test_what_does_not_fit_is_not_begun_and_half_of_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, failure = [], "the process ended with -9"

    def watched(_: str, __: str, options: dict[str, Any]) -> dict[str, Any]:
        tokens = options["tokens"]
        begun.append((math.log2(tokens), options["repeats"]))
        if tokens == 2**27 and options["scheme"] == "spro":
            raise StepCreditError(f"measuring advantage_stage failed: {failure}")
        found = {"tokens": tokens, "batch_seconds": [1.0], "credit_seconds": [2.0], "cpu_seconds": [3.0]}
        return {"found": found, "before_bytes": 10 * tokens, "peak_bytes": 100 * tokens}

    monkeypatch.setattr(module, "watched", watched)
    monkeypatch.setattr(module, "available_memory", lambda: 160 * 2**27)  # 2^27 fits, 2^28 does not
    found = bench_scale(["grpo"], smallest=20, largest=30, ranks=[])
    assert begun == [(20, 3), (22, 3), (24, 3), (26, 1), (27, 1)]
    assert [one["added_bytes"] for one in found["sizes"]] == [90 * 2 ** int(power) for power, _ in begun]
    (stop,) = found["stopped"]
    assert (stop["scheme"], stop["tokens"]) == ("grpo", 2**28)
    assert stop["why"] == "it would need about 25.0 GiB; 20.0 GiB are free"
    (killed,) = bench_scale(["spro"], smallest=25, largest=27, ranks=[])["stopped"]
    assert killed["why"].endswith("ended with -9")
    failure = "InputError: `rewards` must be finite"
    with pytest.raises(StepCreditError, match="rewards"):  # no lack of memory: told, not taken for one
        bench_scale(["spro"], smallest=25, largest=27, ranks=[])


def test_the_verb_measures_and_ranks_agree(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--schemes", "pass-tokens", "--smallest", "14", "--largest", "17", "--ranks", "2", "--rank-tokens", "14"]
    words += ["--repeats", "1", "--step-seconds", "10", "--step-tokens", "1e6", "--json"]
    assert main(["bench", "scale", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [round(math.log2(one["tokens"])) for one in found["sizes"]] == [14, 16, 17]
    last = found["sizes"][-1]
    assert last["seconds"]["median"] == last["batch_seconds"]["median"] + last["credit_seconds"]["median"]
    # mask 1 byte and signal 4 a token in, 4 out; and at the least one float64 copy of the signal was held
    assert last["input_bytes"] == 5 * last["tokens"] + last["rollouts"] * (8 + 4) + 8 * (last["rollouts"] + 1)
    assert last["output_bytes"] == 4 * last["tokens"]
    assert 8 * last["tokens"] < last["added_bytes"] < last["peak_bytes"] < available_memory()
    (ranks,) = found["ranks"]
    assert ranks["greatest_difference"] < 1e-6
    # docs/scale.md: every group is on both ranks, so m = n; rewards alone beside the signal
    n, p = ranks["groups"], ranks["positions"]
    assert ranks["collective_bytes"] == 32 + 8 * n + (152 - 48) * n + 8 * p
    share = found["shares"]["pass-tokens"]
    stage = share["seconds_a_token"] * 1e6
    assert share["share"] == pytest.approx(stage / (stage + 10))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--schemes", "ppo"], "`schemes` must be of grpo, pass-steps, pass-tokens, spro; got 'ppo'"),
        (["--largest", "40"], "`largest` must be a power of two from 10 to 34; got 40"),
        (["--smallest", "20", "--largest", "18"], "`smallest` must be at most `largest`, 18; got 20"),
        (["--ranks", "0"], "`ranks[0]` must be at least 1; got 0"),
        (["--step-seconds", "3"], "`--step-seconds` must go with --step-tokens; got --step-seconds alone"),
        (["--step-seconds", "nan", "--step-tokens", "5"], "`--step-seconds` must be greater than 0; got nan"),
    ],
)
def test_refusals_are_one_line(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert main(["bench", "scale", *words]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_table_says_what_is_extrapolated(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "scale", "--schemes", "grpo", "--smallest", "14", "--largest", "16", "--ranks"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("extrapolated, not measured" in line for line in lines) == 3
    assert sum(line.startswith("grpo ") for line in lines) == 2
