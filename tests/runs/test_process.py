"""From a run's config to its signal and the models beside the policy."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoTokenizer

from stepcredit import Guard, InputError, Rollouts, Span
from stepcredit.config import build_task, load_config
from stepcredit.config.run import typed
from stepcredit.runs.grading import TaskGrader
from stepcredit.runs.policies import load_policy, source_of
from stepcredit.runs.process import SCORES, model_arguments, signal_arguments
from stepcredit.runs.store import RunStore
from stepcredit.runs.tiny import tiny_model
from stepcredit.runs.train import start
from stepcredit.signals import ImplicitPRM, RefreshedPRM, RemotePRM, RemoteTeacher
from stepcredit.signals.causal_lm import CausalLM
from train_worker import SETTINGS

POLICY = load_policy("tiny-arithmetic")


def arguments(recipe: str, folder: Path, **overrides: Any) -> dict[str, Any]:
    config = load_config(recipe, {name.replace("__", "."): x for name, x in overrides.items()})
    grader = TaskGrader(build_task(*typed("task", config.task)), POLICY.tokenizer, {2})
    beside = model_arguments(config, POLICY, 1.0, folder)
    return {**beside, **signal_arguments(config, POLICY, grader, folder)}


def test_roles_with_the_same_settings_are_one_model(tmp_path: Path) -> None:
    teacher = "tiny-arithmetic-teacher"
    made = arguments("math-gopd-pass", tmp_path, base__name=teacher, reference__name=teacher)
    assert made["teacher_model"] is made["base_model"] is made["ref_model"]
    assert isinstance(made["teacher_model"], nn.Module)
    assert "steps" not in made  # tokens
    other = arguments("math-gopd-pass", tmp_path, base__name="tiny-arithmetic")
    assert other["teacher_model"] is not other["base_model"]


def test_a_teacher_of_another_vocabulary_scores_text(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(source_of("tiny-arithmetic"))
    tokenizer.add_tokens(["+5"])
    model = tiny_model(1)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "grown")
    same = arguments("math-opd-pass", tmp_path, teacher__name=str(tmp_path / "grown"))
    assert isinstance(same["teacher_model"], nn.Module)  # all that the policy writes means the same
    path = tmp_path / "grown" / "tokenizer.json"
    words = json.loads(path.read_text())
    vocabulary = words["model"]["vocab"]
    vocabulary["1"], vocabulary["2"] = vocabulary["2"], vocabulary["1"]
    path.write_text(json.dumps(words))
    found = arguments("math-opd-pass", tmp_path, teacher__name=str(tmp_path / "grown"))["teacher_model"]
    assert isinstance(found, CausalLM)
    assert found.difference == "id 5 for '2', which the policy has for '1'"


def test_what_is_served_keeps_its_scores_in_the_runs_folder(tmp_path: Path) -> None:
    served = {"teacher__name": "big", "teacher__url": "http://127.0.0.1:9", "teacher__token_env": "TOKEN"}
    teacher = arguments("math-opd-pass", tmp_path, **served)["teacher_model"]
    assert isinstance(teacher, RemoteTeacher)
    assert (teacher.url, teacher.model, teacher.token_env) == ("http://127.0.0.1:9", "big", "TOKEN")
    assert teacher.cache == str(tmp_path / SCORES)
    assert Path(teacher.tokenizer).is_dir()
    name = "tiny-arithmetic-prm"
    options = {"url": "http://127.0.0.1:9", "model": name, "tokenizer": name, "preset": "trl"}
    signal = {f"signal__{name}": x for name, x in {"type": "remote_prm", **options}.items()}
    judge = arguments("math-prm-pass", tmp_path, **signal)["signal"]
    assert isinstance(judge, RemotePRM)
    assert (judge.model, judge.tokenizer) == (name, source_of(name))  # what a server calls it is its own affair
    assert judge.cache == str(tmp_path / SCORES)
    kept = arguments("math-prm-pass", tmp_path, **signal, signal__cache="mine.sqlite")["signal"]
    assert kept.cache == "mine.sqlite"


def test_the_implicit_prm_starts_as_the_policy_and_is_not_it(tmp_path: Path) -> None:
    signal = arguments("math-prime", tmp_path)["signal"]
    assert isinstance(signal, ImplicitPRM)
    rollouts = Rollouts(["p"], ["b:3"], [0], prompt_ids=[[1, 19]], token_ids=[[20, 7, 18]], response_mask=[[True] * 3])
    assert signal.score(rollouts) == [[0.0] * 3]
    before = [p.clone() for p in POLICY.model.parameters()]
    signal.update(rollouts, [1.0])
    assert all(torch.equal(a, b) for a, b in zip(before, POLICY.model.parameters(), strict=True))


def test_a_refreshed_prm_learns_what_the_task_says_of_each_step(tmp_path: Path) -> None:
    refreshed = {"signal__type": "refreshed_prm", "signal__model": "tiny-arithmetic-prm", "signal__every": 2}
    signal = arguments("math-prm-pass", tmp_path, **refreshed, signal__labels="task")["signal"]
    assert isinstance(signal, RefreshedPRM)
    text = "b:3+5=8\nc:8*2=7\n\nanswer: 7\n"
    ids = POLICY.tokenizer(text, add_special_tokens=False)["input_ids"] + [2]
    steps = [Span(0, 8), Span(8, 16), Span(16, 17), Span(17, len(text))]
    rollouts = Rollouts(
        ["a:3b:+5c:*2\n"], [text], [0], token_ids=[ids], references=["a:3b:+5c:*2"], steps=[steps]
    )  # fmt: skip
    before = [[span.score for span in row] for row in signal.score(rollouts)]
    assert signal.update(rollouts, [0.0]) == {"kept": 1.0}
    assert signal._memory.labels == [[1.0, 0.0, 0.0]]  # the empty line is no step
    assert [[span.score for span in row] for row in signal.score(rollouts)] == before
    numbers = signal.update(rollouts, [0.0])
    assert numbers["steps"] == 6
    assert [[span.score for span in row] for row in signal.score(rollouts)] != before
    outcome = arguments("math-prm-pass", tmp_path, **refreshed)["signal"]
    outcome.update(rollouts, [1.0])
    assert outcome._memory.labels == [[1.0, 1.0, 1.0]]
    bare = RefreshedPRM(source_of("tiny-arithmetic-prm"), labels="task")
    with pytest.raises(InputError, match="`labels` must be 'outcome' outside of a run with a task"):
        bare.update(rollouts, [1.0])
    with pytest.raises(InputError, match="`labels` must be 'outcome' for a task that grades no steps"):
        bare.bind(step_labels=None)


def test_a_guard_comes_with_the_signal(tmp_path: Path) -> None:
    made = arguments("math-prm-pass", tmp_path, guard__differences="gain")
    assert made["guard"] == Guard(differences="gain")
    assert "guard" not in arguments("math-prm-grpo-process", tmp_path)


@pytest.mark.parametrize(
    "recipe",
    ["math-prm-pass", "math-prm-grpo-process", "math-opd-pass", "math-opd-grpo", "math-gopd-pass", "math-spro"],
)
def test_recipes_train(recipe: str, tmp_path: Path) -> None:
    settings = {**SETTINGS, "run.steps": 2, "evaluation.problems": 0}
    start(load_config(recipe, settings), tmp_path / "run")
    rows = RunStore.open(tmp_path / "run").metrics()
    assert [row["step"] for row in rows] == [1, 2]
    if recipe != "math-spro":
        assert rows[0]["credit/process/raw_std"] > 0
        assert rows[0]["credit/process/steps"] > 1
        assert rows[0]["credit/process/correct_mean"] is not None
    assert rows[0]["task/repeated_lines"] is not None


@pytest.mark.parametrize("name", ["tiny-arithmetic", "tiny-arithmetic-teacher", "tiny-arithmetic-prm"])
def test_built_in_weights_are_those_that_their_provenance_tells_of(name: str) -> None:
    folder = Path(source_of(name))
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert digest in (folder / "PROVENANCE.md").read_text()
