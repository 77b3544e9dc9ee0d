"""The metrics against plain loops over random batches, and the definitions by hand."""

import math
import random
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings

from schemes import SCHEMES
from stepcredit import ESTIMATORS, GRPO, PASS, SPRO, RolloutBatch
from stepcredit.diagnostics import credit_metrics
from stepcredit.ops import kernels
from strategies import packed, padded, plain_batch, seeds


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def spread(values: list[float]) -> float:
    return math.sqrt(max(math.fsum((x - mean(values)) ** 2 for x in values) / len(values), 0.0)) if values else math.nan


def loops(
    plain: dict[str, Any], advantages: list[list[float]], terms: dict[str, list[list[float]]]
) -> dict[str, float]:
    """The same numbers, a row and a token at a time."""
    everyone = range(len(plain["mask"]))
    tokens = {i: [t for t, on in enumerate(plain["mask"][i]) if on] for i in everyone}
    live = [i for i in everyone if tokens[i] and (plain["row_mask"] is None or plain["row_mask"][i])]
    numbers: dict[str, float] = {
        "rollouts": len(live),
        "excluded_rows": len(everyone) - len(live),
        "tokens": sum(len(tokens[i]) for i in live),
        "length": mean([len(tokens[i]) for i in live]),
    }
    right = {i: plain["rewards"][i] > 0 if plain["correct"] is None else plain["correct"][i] for i in live}
    numbers["length_correct"] = mean([len(tokens[i]) for i in live if right[i]])
    numbers["length_wrong"] = mean([len(tokens[i]) for i in live if not right[i]])

    channels: dict[str, list[tuple[int, float]]] = {
        "outcome": [(i, plain["rewards"][i]) for i in live],
        "format": [(i, plain["format_rewards"][i]) for i in live],
        **{name: [(i, values[i]) for i in live] for name, values in (plain["extra_rewards"] or {}).items()},
        "process": [],
    }
    for i in live:
        last: dict[int, float] = {}  # each step once
        for t in tokens[i]:
            step = t if plain["step_ids"] is None else plain["step_ids"][i][t]
            covered = step >= 0 and (plain["process_mask"] is None or plain["process_mask"][i][t])
            if covered:
                last[step] = plain["process"][i][t]
        channels["process"] += [(i, x) for x in last.values()]
    numbers["process/steps"] = len(channels["process"]) / len(live) if live else math.nan
    numbers["process/correct_mean"] = mean([x for i, x in channels["process"] if right[i]])
    numbers["process/wrong_mean"] = mean([x for i, x in channels["process"] if not right[i]])
    groups = sorted({plain["group"][i] for i in live})
    for name, values in channels.items():
        numbers[f"{name}/raw_mean"] = mean([x for _, x in values])
        numbers[f"{name}/raw_std"] = spread([x for _, x in values])
        kinds = [{x for i, x in values if plain["group"][i] == group} for group in groups]
        numbers[f"{name}/silent_groups"] = mean([float(len(kind) <= 1) for kind in kinds])

    on_tokens = lambda rows: [rows[i][t] for i in live for t in tokens[i]]  # noqa: E731
    numbers["mean_abs"] = mean([abs(x) for x in on_tokens(advantages)])
    whole = math.fsum(abs(x) for term in terms.values() for x in on_tokens(term))
    for name, term in terms.items():
        numbers[f"{name}/mean"] = mean(on_tokens(term))
        numbers[f"{name}/std"] = spread(on_tokens(term))
        numbers[f"{name}/share"] = math.fsum(map(abs, on_tokens(term))) / whole if whole else 0.0
    gaps = [plain["ref"][i][t] - plain["old"][i][t] for i in live for t in tokens[i]]
    numbers["kl_to_reference"] = mean([math.exp(x) - x - 1 for x in gaps])
    return numbers


@pytest.mark.filterwarnings("ignore::stepcredit.StepCreditWarning")  # of signals that look like steps by chance
@pytest.mark.parametrize("road", ["always", "never"])
@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=25, deadline=None)
@given(seed=seeds())
def test_metrics_are_those_of_plain_loops(scheme: str, road: Literal["always", "never"], seed: int) -> None:
    with kernels.using(road):
        check_against_loops(scheme, seed)


def check_against_loops(scheme: str, seed: int) -> None:
    plain = plain_batch(seed)
    estimator = ESTIMATORS[scheme](**SCHEMES[scheme][1](random.Random(seed)))
    batch = padded(plain)
    credit = estimator(batch)
    terms = {name: term.tolist() for name, term in credit.terms().items()}
    expected = loops(plain, credit.advantages.tolist(), terms)
    numbers = credit_metrics(batch, credit)
    assert numbers.keys() == expected.keys()
    for name, value in expected.items():
        assert numbers[name] == pytest.approx(value, nan_ok=True, rel=1e-9, abs=1e-7), name
    flat = packed(plain)
    assert credit_metrics(flat, estimator(flat)) == pytest.approx(numbers, nan_ok=True, rel=1e-9, abs=1e-7)


def test_a_field_that_is_not_there_has_no_numbers() -> None:
    bare = RolloutBatch.from_lists([2, 1], [0, 0], old_logprobs=[[-1.0, -2.0], [-1.0]])
    credit = GRPO()(bare.replace(rewards=torch.tensor([1.0, 0.0])))
    numbers = credit_metrics(bare, credit)
    for name in ("length_correct", "outcome/raw_mean", "format/raw_mean", "process/raw_mean", "kl_to_reference"):
        assert name not in numbers
    assert numbers["tokens"] == 3.0


def test_correct_stands_in_for_rewards() -> None:
    batch = RolloutBatch.from_lists([2, 5], [0, 0], [1.0, 1.0]).replace(correct=torch.tensor([False, True]))
    numbers = credit_metrics(batch, GRPO()(batch))
    assert (numbers["length_correct"], numbers["length_wrong"]) == (5.0, 2.0)


def test_a_batch_of_excluded_rows_has_counts_and_no_means() -> None:
    batch = RolloutBatch.from_lists([2, 1], [0, 0], [1.0, 0.0]).replace(row_mask=torch.tensor([False, False]))
    numbers = credit_metrics(batch, GRPO()(batch))
    assert (numbers["rollouts"], numbers["excluded_rows"], numbers["tokens"]) == (0.0, 2.0, 0.0)
    assert numbers["outcome/share"] == 0.0
    for name in (
        "length",
        "length_correct",
        "mean_abs",
        "outcome/raw_mean",
        "outcome/raw_std",
        "outcome/silent_groups",
    ):
        assert math.isnan(numbers[name]), name


def test_silence_is_one_value_all_over_a_group() -> None:
    rewards = [1.0, 1.0, 0.0, 1.0, -0.0, 0.0, 2.0]
    batch = RolloutBatch.from_lists([1] * 7, [7, 7, 3, 3, 5, 5, 9], rewards)
    numbers = credit_metrics(batch, GRPO()(batch))
    assert numbers["outcome/silent_groups"] == 3 / 4  # all but the group 3; the group of one says nothing
    assert numbers["outcome/share"] == 1.0


def test_a_process_signal_that_reaches_no_group_is_silent() -> None:
    batch = RolloutBatch.from_lists(
        [2, 2, 1], [0, 0, 1], [1.0, 0.0, 1.0], process_rewards=[[0.5, 0.5], [0.1, 0.9], [0.0]],
        step_ids=[[0, 0], [0, 1], [-1]],
    )  # fmt: skip
    numbers = credit_metrics(batch, PASS()(batch))
    assert numbers["process/silent_groups"] == 0.5
    assert numbers["process/raw_mean"] == pytest.approx((0.5 + 0.1 + 0.9) / 3)


def test_shares_are_parts_of_the_summed_absolute_terms() -> None:
    batch = RolloutBatch.from_lists(
        [1, 1], [0, 0], [1.0, 0.0], old_logprobs=[[-1.0], [-2.0]], ref_logprobs=[[-2.0], [-2.0]]
    )  # log-ratios 1 and 0, so MSA +-0.5 beta; outcome +-1/sqrt(2)
    numbers = credit_metrics(batch, SPRO(beta=0.2, std_eps=0.0)(batch))
    outcome, process = 1 / math.sqrt(2), 0.1
    shares = [x for name, x in numbers.items() if name.endswith("/share")]
    assert sorted(shares) == pytest.approx(sorted([outcome / (outcome + process), process / (outcome + process)]))
    assert numbers["kl_to_reference"] == pytest.approx((math.exp(-1.0) + 1.0 - 1.0) / 2)
    assert numbers["mean_abs"] == pytest.approx(outcome + process)


def test_long_batches_keep_their_small_spread() -> None:
    batch = RolloutBatch.from_lists([1] * 4, [0] * 4, [1e4, 1e4 + 1e-3, 1e4, 1e4 + 1e-3])
    batch = batch.replace(rewards=torch.tensor([1e4, 1e4 + 1e-3, 1e4, 1e4 + 1e-3], dtype=torch.float64))
    assert credit_metrics(batch, GRPO()(batch))["outcome/raw_std"] == pytest.approx(5e-4, rel=1e-2)
