"""Reward functions become channels: weights inside a channel, formats, extras, and rollouts that cannot be scored."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import references
from adapters.independent import HighDigits, check_seen, plain_batch
from stepcredit import GDPO, GRPO, PASS, DrGRPO, GRPOProcess, InputError
from stepcredit.adapters.trl import attach
from stepcredit.adapters.trl.channels import Channels
from trl_trainer import Ledger, generate, has_line_end, make_trainer, scripted, share_of_even

NAN = float("nan")


def first_digit(completions: list[str], **_: Any) -> list[float | None]:
    """Says nothing about a completion that opens with a low digit."""
    return [int(text[0]) / 10 if text[:1] in "3456789" and text else None for text in completions]


def brevity(completions: list[str], **_: Any) -> list[float | None]:
    """Says nothing about a long completion."""
    return [1 - len(text) / 10 if len(text) < 8 else None for text in completions]


def tidiness(completions: list[str], **_: Any) -> list[float | None]:
    """A graded format, with nothing to say about a completion that closes with a 9."""
    return [None if text.endswith("9") else min(text.count("\n") / 2, 1.0) for text in completions]


FUNCTIONS = [share_of_even, has_line_end, first_digit, brevity, tidiness]
EVERY = [function.__name__ for function in FUNCTIONS]


def case(
    functions: str,
    estimator: Any,
    reference: Callable[..., Any],
    weights: tuple[float, ...] | None = None,
    **roles: Any,
) -> Any:
    chosen = [function for function in FUNCTIONS if function.__name__ in functions.split()]
    return pytest.param(chosen, estimator, reference, weights, roles, id=f"{type(estimator).__name__}: {functions}")


CASES = [
    case("share_of_even has_line_end", GRPO(), references.grpo),
    case("share_of_even has_line_end", GRPO(w_format=0.5), references.grpo, (2.0, -0.5), format=["has_line_end"]),
    case("share_of_even brevity", GRPO(), references.grpo, (1.0, 3.0)),
    case("first_digit", DrGRPO(), references.dr_grpo),
    case("first_digit brevity", GRPO(), references.grpo, (1.0, 0.3)),
    case("share_of_even first_digit brevity", GRPO(), references.grpo, (1.0, 0.2, 2.0), outcome=["share_of_even"]),
    case(
        " ".join(EVERY), GDPO(), references.gdpo, (1.0, 0.5, 2.0, -1.0, 1.5), outcome=["share_of_even", "first_digit"],
        format=["tidiness", "has_line_end"], format_threshold=0.5,
    ),
    case("share_of_even tidiness", PASS(k=0.7), references.pass_, format=["tidiness"], format_threshold=0.5),
    case("share_of_even has_line_end", PASS(k=0.3), references.pass_, (0.5, 2.0), format=["has_line_end"]),
    case("brevity has_line_end", GRPOProcess(fusion="pooled"), references.grpo_process, format=["has_line_end"]),
]  # fmt: skip


@pytest.mark.parametrize(("functions", "estimator", "reference", "weights", "roles"), CASES)
@pytest.mark.parametrize("truncated", [False, True], ids=["", "truncated masked"])
def test_credit_is_the_loops_credit_of_the_rewards(
    functions: Any, estimator: Any, reference: Any, weights: Any, roles: Any, truncated: bool, tmp_path: Path
) -> None:
    ledger = Ledger()
    trainer = make_trainer(
        tmp_path, reward_funcs=ledger.watch(*functions), mask_truncated_completions=truncated, num_generations=6,
        per_device_train_batch_size=12, reward_weights=list(weights) if weights else None,
        extra={"rollout_func": scripted()},
    )  # fmt: skip
    signal = HighDigits() if "process_rewards" in estimator.requires else None
    attach(trainer, estimator, signal=signal, **roles)
    output = generate(trainer, num_generations=6)
    names = [function.__name__ for function in functions]
    form = roles.get("format", [])
    outcome = roles.get("outcome", [name for name in names if name not in form])
    options = {name: x for name, x in vars(estimator).items() if name in inspect.signature(reference).parameters}

    def batch_of(generation: Any) -> dict[str, Any]:
        whole = [[int(not truncated or ids[-1] == 1)] * len(ids) for ids in generation.ids]
        return plain_batch(
            generation, 6, outcome=outcome, format=form, extra=[n for n in names if n not in (*outcome, *form)],
            weights=dict(zip(names, weights, strict=True)) if weights else None,
            threshold=roles.get("format_threshold", 1.0), masks=whole, signal=signal is not None,
        )  # fmt: skip

    checked = check_seen([output], ledger.generations, lambda generation: reference(batch_of(generation), **options))
    assert checked == 12
    assert output["advantages"].any()
    batch = batch_of(ledger.generations[0])
    counted = [any(mask) and scorable for mask, scorable in zip(batch["mask"], batch["row_mask"], strict=True)]
    assert trainer._metrics["train"]["credit/excluded_rows"] == [12 - sum(counted)]
    assert trainer._metrics["train"]["credit/rollouts"] == [sum(counted)]


def test_the_cases_hold_rows_that_cannot_be_scored_and_rows_that_are_truncated() -> None:
    """So that the test above shows something."""

    class Trainer:
        num_generations = 6
        processing_class = staticmethod(lambda _: {"input_ids": [0]})
        accelerator = type("", (), {"process_index": 0})

    rollouts = scripted()(["00\n"] * 6 + ["17\n"] * 6, Trainer)
    texts = ["".join("  0123456789\n"[i] for i in ids).strip(" ") for ids in rollouts["completion_ids"]]
    assert {ids[-1] == 1 for ids in rollouts["completion_ids"]} == {True, False}
    for function in (first_digit, brevity, tidiness):
        assert {x is None for x in function(texts)} == {True, False}, function.__name__
    assert {0.0, 0.5} <= set(tidiness(texts))


def test_a_function_without_a_say_adds_nothing_and_a_channel_without_one_excludes() -> None:
    channels = Channels.of(["a", "b", "form", "extra"], ["a", "b"], ["form"], None)
    rewards = torch.tensor([[1.0, 2.0, 1.0, 5.0], [NAN, 2.0, 0.0, 5.0], [NAN, NAN, 1.0, 5.0], [1.0, 2.0, NAN, 5.0],
                            [1.0, 2.0, 1.0, NAN]])  # fmt: skip
    fields = channels.fields(rewards, torch.tensor([1.0, 10.0, 3.0, 0.5]))
    assert fields["rewards"].tolist() == [21.0, 20.0, 0.0, 21.0, 21.0]
    assert fields["format_rewards"].tolist() == [3.0, 0.0, 3.0, 0.0, 3.0]
    assert fields["format_ok"].tolist() == [True, False, True, True, True]
    assert fields["extra_rewards"]["extra"].tolist() == [2.5, 2.5, 2.5, 2.5, 0.0]
    assert fields["row_mask"].tolist() == [True, True, False, False, False]


def test_every_format_function_has_to_be_kept() -> None:
    channels = Channels.of(["a", "f", "g"], None, ["f", "g"], 0.5)
    rewards = torch.tensor([[1.0, 0.5, 0.7], [1.0, 0.4, 1.0], [1.0, NAN, 0.6], [1.0, 0.0, NAN]])
    assert channels.fields(rewards, torch.ones(3))["format_ok"].tolist() == [True, False, True, False]
    assert channels.outcome == (0,)
    assert "extra_rewards" not in channels.fields(rewards, torch.ones(3))


def test_weights_do_not_move_the_threshold() -> None:
    channels = Channels.of(["a", "f"], None, ["f"], 0.5)
    fields = channels.fields(torch.tensor([[1.0, 0.6], [1.0, 0.4]]), torch.tensor([1.0, 0.1]))
    assert fields["format_ok"].tolist() == [True, False]


def test_a_graded_format_needs_a_threshold(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, reward_funcs=[share_of_even, tidiness], extra={"rollout_func": scripted()})
    attach(trainer, GRPO(), format=["tidiness"])
    with pytest.raises(InputError, match=r"`format_threshold` must be given .* other than 0 and 1; got 0\.5"):
        generate(trainer)


def test_rewards_that_all_say_nothing_train_nothing(tmp_path: Path) -> None:
    def silent(completions: list[str], **_: Any) -> list[None]:
        return [None] * len(completions)

    trainer = attach(make_trainer(tmp_path, reward_funcs=[silent]), GRPO())
    assert not generate(trainer)["advantages"].any()
    assert trainer._metrics["train"]["credit/excluded_rows"] == [8.0]
