"""Whole runs on Ray, on the CPU: the credit that trained there against the core's on the same rollouts."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("verl.trainer", reason="verl is not installed: nothing can run on it")

from stepcredit import OPD, RolloutBatch
from stepcredit.config import build_estimator
from stepcredit.runs.policies import load_policy
from stepcredit.runs.store import RunStore
from verl_launching import main_ppo

SMALL = {
    "run.steps": 2, "run.checkpoint_every": 2, "evaluation.problems": 0, "trainer.per_device_train_batch_size": 8,
    "trainer.gradient_accumulation_steps": 4,
}  # fmt: skip
SUMS = {"task.operations": 2, "trainer.max_completion_length": 32}


def train(folder: Path, recipe: str, **settings: Any) -> tuple[RunStore, list[dict[str, Any]]]:
    """``stepcredit train RECIPE --engine verl``; the run, and what its estimator saw and gave, step by step."""
    record = folder.parent / "record"
    settings = {**SMALL, **settings, "verl.algorithm.stepcredit.record": str(record)}
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "stepcredit", "train", recipe, "--engine", "verl", "--out", str(folder), *words]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr[-4000:]
    return RunStore.open(folder), [torch.load(path) for path in sorted(record.glob("*.pt"))]


def again(step: dict[str, Any], *, opd: bool = False) -> torch.Tensor:
    """The core's credit for a recorded step, from its columns, row by row; no row here is a part of a rollout."""
    columns, mask = step["columns"], step["response_mask"].bool()
    labels = {uid: i for i, uid in enumerate(step["uid"])}
    packages = [json.loads(package or "{}") for package in step["packages"]]
    fields: dict[str, Any] = {"old_logprobs": columns["old_log_probs"]}
    if "ref_log_prob" in columns:
        fields["ref_logprobs"] = columns["ref_log_prob"]
    if step["teacher_logprobs"] is not None:
        fields["teacher_logprobs"] = step["teacher_logprobs"]
    if any("steps" in package for package in packages):
        scores, ids = torch.zeros(mask.shape), torch.full(mask.shape, -1)
        for row, package in enumerate(packages):
            for number, first, end, score in package["steps"]:
                scores[row, first:end], ids[row, first:end] = score, number
        fields |= {"process_rewards": scores, "step_ids": ids}
    batch = RolloutBatch(
        mask, torch.tensor([labels[uid] for uid in step["uid"]]), columns["token_level_scores"].sum(1),
        format_rewards=torch.tensor([package["format"] for package in packages]),
        correct=torch.tensor([package["correct"] for package in packages]), **fields,
    )  # fmt: skip
    options = dict(step["estimator"])
    estimator = build_estimator(options.pop("type"), options)
    return estimator(OPD()(batch) if opd else batch).advantages


def tokens_with_scores(step: dict[str, Any]) -> Iterator[tuple[str, list[tuple[int, int, float | None]]]]:
    """Of every rollout its text, and the characters and the score of each token that wrote some."""
    tokenizer = load_policy("tiny-arithmetic").tokenizer
    for ids, package, mask in zip(step["responses"], step["packages"], step["response_mask"].tolist(), strict=True):
        ids = ids[: sum(mask)]
        scores = {t: score for _, first, end, score in json.loads(package)["steps"] for t in range(first, end)}
        ends = [len(tokenizer.decode(ids[: t + 1], skip_special_tokens=True)) for t in range(len(ids))]
        text = tokenizer.decode(ids, skip_special_tokens=True)
        placed = zip([0, *ends[:-1]], ends, range(len(ids)), strict=True)
        yield text, [(start, end, scores.get(t)) for start, end, t in placed if end > start]


def assert_credit_arrived(store: RunStore, steps: list[dict[str, Any]], *, varied: bool, opd: bool = False) -> None:
    rows = store.metrics()
    assert [row["step"] for row in rows] == [1, 2]
    assert store.index["status"] == "finished"
    assert (store.path / "policy" / "config.json").is_file()
    for row, step in zip(rows, steps, strict=True):
        mask, advantages = step["response_mask"].bool(), step["advantages"]
        torch.testing.assert_close(advantages, again(step, opd=opd), rtol=1e-6, atol=1e-6)
        assert advantages.any()
        assert not advantages[~mask].any()
        # What verl logs of the batch that its workers train on is what the estimator gave.
        assert row["critic/advantages/max"] == pytest.approx(float(advantages[mask].max()), rel=1e-5)
        assert row["critic/advantages/min"] == pytest.approx(float(advantages[mask].min()), rel=1e-5)
        assert row["credit/rollouts"] == len(mask)
        assert row["training/rollout_probs_diff_max"] < 1e-4
    many = [len(set(row[on].tolist())) > 1 for row, on in zip(advantages, mask, strict=True)]
    assert any(many) == varied  # in the last step: SPRO's policy is its reference in the first


def test_grpo(tmp_path: Path) -> None:
    store, steps = train(tmp_path / "run", "demo-grpo", **SUMS)
    assert_credit_arrived(store, steps, varied=False)


def test_pass_with_a_step_signal_and_its_evaluation(tmp_path: Path) -> None:
    store, steps = train(tmp_path / "run", "demo-pass", **SUMS, **{"evaluation.problems": 8})
    assert_credit_arrived(store, steps, varied=True)
    assert set(store.evals()) == {"start", "end"}
    right = 0
    for step in steps:
        for (text, tokens), package in zip(tokens_with_scores(step), step["packages"], strict=True):
            lines = [{score for start, _, score in tokens if text[:start].count("\n") == line} for line in range(9)]
            assert all(scores <= {0.0} or scores <= {1.0} for scores in lines)  # a line is a step
            if json.loads(package)["correct"] and text.count("\n") == 3:  # two sums and the answer, none repeated
                assert lines[:3] == [{1.0}] * 3
                right += 1
    assert right > 5


def test_spro_with_a_reference_on_two_ranks(tmp_path: Path) -> None:
    """At the first step policy and reference are one: the credit is the outcome's, up to the forward's rounding."""
    settings = {"verl.trainer.n_gpus_per_node": 2, "trainer.gradient_accumulation_steps": 2}
    store, steps = train(tmp_path / "run", "demo-spro", **SUMS, **settings)
    assert_credit_arrived(store, steps, varied=True)
    assert len(steps[0]["uid"]) == 32
    drift = [(step["columns"]["old_log_probs"] - step["columns"]["ref_log_prob"]).abs().max() for step in steps]
    assert drift[0] < 1e-4 < 1e-3 < drift[1]


def test_pass_with_a_teachers_log_probabilities(tmp_path: Path) -> None:
    store, steps = train(tmp_path / "run", "math-opd-pass", **SUMS)
    assert_credit_arrived(store, steps, varied=True, opd=True)
    for row, step in zip(store.metrics(), steps, strict=True):
        mask = step["response_mask"].bool()
        log_ratio = (step["teacher_logprobs"] - step["columns"]["old_log_probs"])[mask].double()
        k3 = (log_ratio.exp() - 1 - log_ratio).clamp(max=10)  # as verl clips it, a token
        assert row["actor/distillation/loss"] == pytest.approx(float(k3.mean()), rel=1e-5)  # its own, its own alignment


def test_search_in_several_turns_with_masked_observations(tmp_path: Path) -> None:
    settings = {"trainer.max_completion_length": 400, "trainer.gradient_accumulation_steps": 2}
    store, steps = train(tmp_path / "run", "multihop-search-pass", **settings)
    assert_credit_arrived(store, steps, varied=True)
    holes = 0
    for step in steps:
        for mask in step["response_mask"].tolist():
            end = max(t for t, on in enumerate(mask) if on)
            holes += mask[: end + 1].count(0)
    assert holes > 100  # what the environment wrote amid the turns


USERS = '''
def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    """Digits are good: the outcome is their share, a step is four characters and scored by its own share."""
    share = lambda text: sum(c.isdigit() for c in text) / max(len(text), 1)
    spans = [(i, min(i + 4, len(solution_str))) for i in range(0, len(solution_str), 4)]
    return {
        "score": share(solution_str),
        "format": 1.0,
        "correct": share(solution_str) > 0.3,
        "process": [(start, end, share(solution_str[start:end])) for start, end in spans],
    }
'''


@pytest.mark.parametrize("v1", [True, False])
def test_an_ordinary_config_with_a_reward_function_of_ones_own(tmp_path: Path, v1: bool) -> None:
    """verl's own agent loop and trainers, v1 and legacy; what changes is the estimator and the reward manager."""
    (tmp_path / "rewards.py").write_text(USERS)
    record = tmp_path / "record"
    metrics = main_ppo(
        tmp_path / "run", "algorithm.adv_estimator=stepcredit_pass", "+algorithm.stepcredit.k=0.7",
        f"+algorithm.stepcredit.record={record}", "reward.reward_manager.name=stepcredit",
        f"reward.custom_reward_function.path={tmp_path}/rewards.py", f"trainer.use_v1={v1}",
    )  # fmt: skip
    steps = [torch.load(path) for path in sorted(record.glob("*.pt"))]
    assert len(steps) == len(metrics) == 2
    for row, step in zip(metrics, steps, strict=True):
        mask = step["response_mask"].bool()
        torch.testing.assert_close(step["advantages"], again(step), rtol=1e-6, atol=1e-6)
        assert row["critic/advantages/max"] == pytest.approx(float(step["advantages"][mask].max()), rel=1e-5)
        outcomes = step["columns"]["token_level_scores"]
        assert ((outcomes != 0).sum(1) <= 1).all()  # the outcome alone
        assert row["critic/score/mean"] == pytest.approx(float(outcomes.sum(1).mean()), rel=1e-5)
        assert any(len(set(a[on].tolist())) > 1 for a, on in zip(step["advantages"], mask, strict=True))
        for text, tokens in tokens_with_scores(step):
            for start, end, score in tokens:
                if start // 4 == (end - 1) // 4:  # the token lies in one of the function's steps
                    chunk = text[start // 4 * 4 : start // 4 * 4 + 4]
                    assert score == pytest.approx(sum(c.isdigit() for c in chunk) / len(chunk))


def test_a_reward_function_that_fails_stops_the_run_and_says_why(tmp_path: Path) -> None:
    """verl by itself drops such rollouts, trains on the others and ends well."""
    failing = "def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n    return 1 / 0\n"
    (tmp_path / "rewards.py").write_text(failing)
    with pytest.raises(RuntimeError, match=r"16 of 16 rollouts could not be graded; the first: ZeroDivisionError"):
        main_ppo(
            tmp_path / "run", "algorithm.adv_estimator=stepcredit_grpo", "reward.reward_manager.name=stepcredit",
            f"reward.custom_reward_function.path={tmp_path}/rewards.py",
        )  # fmt: skip


def test_the_dry_runs_command_says_what_the_run_would_do() -> None:
    command = [sys.executable, "-m", "stepcredit", "train", "demo-pass", "--engine", "verl", "--dry-run"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("STEPCREDIT_VERL_CPU=1 python -m verl.trainer.main_ppo")
    assert "++algorithm.adv_estimator=stepcredit_pass" in ran.stdout
