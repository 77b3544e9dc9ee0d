"""Policies that search by tags, in sampling and in training: what the environment wrote has no part in anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig

from dialogues import EOS, PAD, Asking, make_asking, make_model, make_tokenizer
from stepcredit import GRPO, PASS, GRPOProcess, InputError, Rollouts
from stepcredit.adapters.trl import CreditGRPOTrainer, CreditStep
from stepcredit.runs.evaluate import evaluate
from stepcredit.runs.grading import TaskGrader
from stepcredit.runs.grouped import sample_groups
from stepcredit.runs.protocols import TagProtocol
from stepcredit.runs.sampling import SeededSampler
from stepcredit.runs.searching import SearchSampler
from trl_trainer import NO_CHECKPOINTING

TASK = Asking(searches=2, result_tokens=40)
LIMIT = 110


END = "<|im_end|>"


@pytest.fixture(scope="module", params=["one token", "characters"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return make_tokenizer(tags=request.param == "one token")


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    return make_asking(tokenizer)


def test_random_numbers_go_on_where_the_last_turn_ended() -> None:
    scores = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    keys = [("a", 0), ("b", 1)]
    whole = SeededSampler(keys, seed=3, max_new_tokens=6)
    tokens = [whole(torch.zeros(2, 1), scores).argmax(-1).tolist() for _ in range(6)]
    later = SeededSampler(keys, seed=3, max_new_tokens=6, starts=[2, 4])
    for step in range(2):
        row = later(torch.zeros(2, 1), scores).argmax(-1).tolist()
        assert row == [tokens[2 + step][0], tokens[4 + step][1]]
    later(torch.zeros(2, 1), scores)  # the second row has none left; the first has
    later(torch.zeros(2, 1), scores)
    with pytest.raises(InputError, match="`max_new_tokens` must cover every call"):
        later(torch.zeros(2, 1), scores)
    for starts in ([0], [0, 6], [-1, 0]):
        with pytest.raises(InputError, match="`starts` must have a number from 0 to 5 for every row"):
            SeededSampler(keys, seed=3, max_new_tokens=6, starts=starts)


def test_rows_have_limits_and_stops_of_their_own(model: Any, tokenizer: Any) -> None:
    prompts = [list(tokenizer("Q" + "ab"[i % 2] * (i % 4) + "?\n")["input_ids"]) for i in range(12)]
    limits = [1, 30, 2, 25, 7, 30, 3, 1, 12, 30, 30, 4]
    protocol = TagProtocol(TASK, tokenizer)
    found = sample_groups(
        model, prompts, eos_ids=[EOS, *protocol.stop_ids], max_new_tokens=limits, temperature=1e-6, pad_id=PAD,
        stops=protocol.stops,
    )  # fmt: skip
    for prompt, limit, ids in zip(prompts, limits, found, strict=True):
        text, new = list(prompt), []
        while len(new) < limit and (not new or new[-1] != EOS) and not tokenizer.decode(new).endswith("</search>"):
            with torch.no_grad():
                new.append(int(model(torch.tensor([text])).logits[0, -1].argmax()))
            text.append(new[-1])
        assert ids == new
    assert any(tokenizer.decode(ids).endswith("</search>") for ids in found)


def make_trainer(
    folder: Path,
    model: Any,
    tokenizer: Any,
    rollouts: Any,
    *,
    estimator: Any = None,
    extra: Any = None,
    **settings: Any,
) -> Any:
    grader = TaskGrader(TASK, tokenizer, {EOS}, TagProtocol(TASK, tokenizer).asks)
    defaults: dict[str, Any] = {
        "use_cpu": True, "bf16": False, **NO_CHECKPOINTING, "report_to": "none", "save_strategy": "no",
        "dataloader_pin_memory": False, "disable_tqdm": True, "per_device_train_batch_size": 8, "num_generations": 4,
        "max_completion_length": LIMIT, "max_steps": 2, "learning_rate": 1e-3, "seed": 3,
    }  # fmt: skip
    data = [{"prompt": x.prompt, "reference": x.reference, "id": x.id} for x in TASK.examples("train", 6)]
    return CreditGRPOTrainer(
        model=model, reward_funcs=[grader.outcome, grader.format],
        args=GRPOConfig(output_dir=str(folder), **(defaults | settings)), train_dataset=Dataset.from_list(data),
        processing_class=tokenizer, rollout_func=rollouts, estimator=estimator or GRPO(), outcome=["outcome"],
        format=["format"], **(extra or {}),
    )  # fmt: skip


def test_cold_samples_are_the_greedy_rows_of_an_evaluation(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    examples = TASK.examples("test", 6)
    want = evaluate(model, tokenizer, TASK, examples, samples=0, max_new_tokens=LIMIT)
    sampler = SearchSampler(TagProtocol(TASK, tokenizer))
    trainer = make_trainer(tmp_path, model, tokenizer, sampler, temperature=1e-6)
    order = [3, 0, 0, 5, 1, 4, 4, 2]
    trainer.credit_inputs = [{"reference": examples[i].reference} for i in order]
    made = sampler([examples[i].prompt for i in order], trainer)
    for i, ids, mask in zip(order, made["completion_ids"], made["env_mask"], strict=True):
        row = want.rows[i]
        assert row.id == f"q-{i}"
        assert tokenizer.decode(ids, skip_special_tokens=True) == row.completion
        assert (sum(mask), ids[-1] == EOS) == (row.length, row.finished)
    assert made["logprobs"] is None
    assert any(row.turns > 1 for row in want.rows)


def test_a_sampler_says_what_it_needs(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    sampler = SearchSampler(TagProtocol(TASK, tokenizer))
    with pytest.raises(InputError, match="`trainer` must be a CreditGRPOTrainer"):
        sampler(["Q?\n"], SimpleNamespace())
    trainer = make_trainer(tmp_path, model, tokenizer, sampler, top_p=0.5)
    with pytest.raises(InputError, match=r"top_p 0\.5"):
        trainer.train()
    assert trainer.credit_inputs is None


# ---------------------------------------------------------------------------------------------- training


class Lengths:
    """A text signal: the characters of each step, over 10."""

    name, unit, requires = "lengths", "characters", frozenset({"steps"})

    def score(self, rollouts: Rollouts) -> Any:
        return [[(start, end, (end - start) / 10) for start, end in steps] for steps in rollouts.steps or []]


def test_what_the_environment_wrote_is_not_trained_and_not_counted(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, "\n<search>Q</search>", "\n<answer>r1</answer>", "Qb</search>")
    seen: list[CreditStep] = []
    masks: list[Any] = []

    def watches(policy_mask: Any, completion_ids: Any, reference: Any, **_: Any) -> list[float]:
        masks.append((policy_mask, completion_ids))
        return [float(sum(mask)) for mask in policy_mask]

    sampler = SearchSampler(TagProtocol(TASK, tokenizer))
    trainer = make_trainer(
        tmp_path, model, tokenizer, sampler, estimator=PASS(),
        extra={"signal": Lengths(), "on_credit": lambda step: seen.append(step)},
    )  # fmt: skip
    trainer.reward_funcs.append(watches)
    trainer.reward_func_names.append("watches")
    trainer.reward_processing_classes.append(None)
    trainer.reward_weights = torch.ones(3)
    trainer.train()
    several = 0
    for step, (mask, ids) in zip(seen, masks, strict=True):
        rollouts = step.rollouts
        assert rollouts.token_ids == ids
        for i, kept in enumerate(mask):
            text = rollouts.completions[i]
            assert step.batch.response_mask[i, : len(kept)].tolist() == [bool(x) for x in kept]
            assert not step.batch.response_mask[i, len(kept) :].any()
            assert bool((step.credit.advantages[i][~step.batch.response_mask[i]] == 0).all())
            hidden = tokenizer.decode([x for x, k in zip(ids[i], kept, strict=True) if not k])
            shown = [x for x, k in zip(ids[i], kept, strict=True) if k]
            assert "".join(text[a:b] for a, b in rollouts.turns[i]) == tokenizer.decode(shown, skip_special_tokens=True)
            assert hidden.count("<information>") == hidden.count("</information>")
            several += len(rollouts.turns[i]) > 1
            for start, end in rollouts.steps[i]:
                assert any(a <= start and end <= b for a, b in rollouts.turns[i])
    assert several > 3
    lengths = [sum(kept) for mask, _ in masks for kept in mask]
    logged = [row["completions/mean_length"] for row in trainer.state.log_history if "completions/mean_length" in row]
    assert sum(logged) / len(logged) == pytest.approx(sum(lengths) / len(lengths))
    assert trainer.credit_inputs is None


def fixed(environment: Sequence[str]) -> Callable[..., dict[str, Any]]:
    """Rollouts whose policy writes the same whatever the environment says; lines begin and end inside turns."""
    tokenizer = make_tokenizer()
    turns = [
        ["ab\ncde", "fg", "h\n\nij" + END], ["<answer>r0</answer>\nx", "yz" + END], ["k" + END], ["lm\nno", "", "p\n"],
    ]  # fmt: skip

    def rollouts(prompts: Sequence[str], trainer: Any) -> dict[str, Any]:
        ids, masks = [], []
        for i in range(len(prompts)):
            row, mask = [], []
            for j, part in enumerate(turns[i % 4]):
                said = tokenizer(environment[(i + j) % len(environment)])["input_ids"] if j else []
                mine = tokenizer(part)["input_ids"]
                row += [*said, *mine]
                mask += [0] * len(said) + [1] * len(mine)
            ids.append(row)
            masks.append(mask)
        prompt_ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
        return {"prompt_ids": prompt_ids, "completion_ids": ids, "logprobs": None, "env_mask": masks}

    return rollouts


@pytest.mark.parametrize("estimator", [PASS(k=0.7), GRPOProcess(fusion="separate"), GRPO()], ids=lambda x: x.type)
@pytest.mark.parametrize("by_steps", [False, True])
def test_another_text_from_the_environment_changes_no_credit(estimator: Any, by_steps: bool, tmp_path: Path) -> None:
    tokenizer, found = make_tokenizer(), []
    process = "process_rewards" in estimator.requires
    texts = (
        ["q"],
        ["\n# a\n\nlong text. And\nmore of\n"],
        ["</search>", "\n", "<answer>r0</answer>\n\n", "ab\ncde\nab\ncde\n"],
    )
    for said in texts:
        seen: list[CreditStep] = []
        extra: dict[str, Any] = {"on_credit": lambda step, seen=seen: seen.append(step)}
        if process:
            extra |= {"signal": Lengths(), **({"steps": "lines"} if by_steps else {})}
        trainer = make_trainer(
            tmp_path, make_model(tokenizer), tokenizer, fixed(said), estimator=estimator, extra=extra
        )
        torch.manual_seed(0)
        rows = [dict(trainer.train_dataset[i]) for i in (0, 0, 0, 0, 1, 1, 1, 1)]
        trainer._generate_and_score_completions(rows)
        [step] = seen
        mask = step.batch.response_mask
        grader = TaskGrader(TASK, tokenizer, {EOS}, TagProtocol(TASK, tokenizer).asks)
        counts = dict(grader.counts(step.rollouts))
        found.append(([row[on].tolist() for row, on in zip(step.credit.advantages, mask, strict=True)], counts))
        assert bool((step.credit.advantages[~mask] == 0).all())
    assert any(x != 0 for row in found[0][0] for x in row)
    for credit, counts in found[1:]:
        assert counts == found[0][1]
        for row, want in zip(credit, found[0][0], strict=True):
            assert row == pytest.approx(want, abs=1e-6)


def test_rewards_are_of_what_the_policy_wrote() -> None:
    tokenizer = make_tokenizer()
    grader = TaskGrader(TASK, tokenizer, {EOS}, TagProtocol(TASK, tokenizer).asks)
    ids = [tokenizer(f"x</search>\n<answer>r0</answer>\ny{END}")["input_ids"]] * 2
    masks = [[1] * len(ids[0]), [1, 1, *[0] * (len(ids[0]) - 4), 1, 1]]
    assert grader.outcome(ids, ["r0", "r0"], policy_mask=masks) == [1.0, 0.0]
    assert grader.outcome(ids, ["r0", "r0"]) == [1.0, 1.0]
    cut = tokenizer("x</search>")["input_ids"]
    assert grader.format([cut, ids[0]], ["r0", "r0"], policy_mask=[[1] * len(cut), masks[1]]) == [0.0, 1.0]


def test_a_column_of_that_name_is_refused(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    trainer = make_trainer(tmp_path, make_model(tokenizer), tokenizer, fixed(["q"]))
    rows = [{**trainer.train_dataset[0], "policy_mask": 1}] * 4
    with pytest.raises(InputError, match="`train_dataset` must have no column 'policy_mask'"):
        trainer._generate_and_score_completions(rows)


@pytest.mark.parametrize("mask", [[[1, 1]] * 8, torch.ones(8, 4), [[]] * 8])
def test_a_mask_of_other_lengths_is_refused(mask: Any, tmp_path: Path) -> None:
    tokenizer = make_tokenizer()

    def rollouts(prompts: Sequence[str], trainer: Any) -> dict[str, Any]:
        return {**fixed(["q"])(prompts, trainer), "env_mask": mask}

    trainer = make_trainer(tmp_path, make_model(tokenizer), tokenizer, rollouts)
    with pytest.raises((InputError, TypeError, ValueError)):
        trainer._generate_and_score_completions([dict(trainer.train_dataset[0])] * 8)
