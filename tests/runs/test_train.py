import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from stepcredit.batch import Rollouts
from stepcredit.config import build_task, load_config
from stepcredit.errors import InputError
from stepcredit.runs.grading import TaskGrader
from stepcredit.runs.policies import load_policy
from stepcredit.runs.store import RunStore
from stepcredit.runs.train import disk_errors, resume, start
from stepcredit.runs.trainer import grpo_config
from train_worker import SETTINGS

CLOCK = ("seconds", "time", "per_second")


def metrics(store: RunStore) -> list[dict[str, str]]:
    """What a run logged, without what the clock decides; as text, since nan is no number's equal."""
    return [
        {name: repr(x) for name, x in row.items() if not any(word in name for word in CLOCK)} for row in store.metrics()
    ]


def weights(store: RunStore) -> str:
    return hashlib.sha256((store.path / "policy" / "model.safetensors").read_bytes()).hexdigest()


REFRESHED = "math-prm-grpo-process,signal.type=refreshed_prm,signal.model=tiny-arithmetic-prm,signal.every=3"


@pytest.mark.parametrize(
    "recipe",
    ["demo-spro", "demo-pass", "math-prime,signal.learning_rate=1e-3", REFRESHED],
    ids=["demo-spro", "demo-pass", "math-prime", "refreshed-prm"],
)
def test_a_killed_run_ends_as_one_that_lived(tmp_path: Path, recipe: str) -> None:
    worker = Path(__file__).parents[1] / "train_worker.py"
    words = [sys.executable, str(worker), str(tmp_path), "3", "7", recipe]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    whole, killed = (RunStore.open(tmp_path / name) for name in ("whole", "killed"))
    assert "killed 0 times" not in done.stdout
    assert metrics(whole) == metrics(killed)
    assert [row["step"] for row in killed.metrics()] == list(range(1, SETTINGS["run.steps"] + 1))
    assert list(whole.rollouts()) == list(killed.rollouts())
    assert whole.evals() == killed.evals()
    assert weights(whole) == weights(killed)


def test_what_a_run_leaves(tmp_path: Path) -> None:
    config = load_config("demo-pass", {**SETTINGS, "run.steps": 3, "run.checkpoint_every": 2, "run.seed": 4})
    said: list[str] = []
    result = start(config, tmp_path / "run", say=said.append)
    store = RunStore.open(tmp_path / "run")
    assert result["status"] == "finished"
    assert set(store.evals()) == {"start", "end"}
    row = store.metrics()[0]
    shares = [row[f"credit/{term}/share"] for term in ("outcome", "format", "process")]
    assert sum(shares) == pytest.approx(1)
    expected = (
        "loss credit/process/raw_mean credit/outcome/silent_groups credit/length_wrong credit/kl_to_reference entropy "
        "task/accuracy task/steps_repeated task/truncated credit/format/std"
    )
    for name in expected.split():
        assert row[name] is not None, name
    assert row["credit/kl_to_reference"] == pytest.approx(0, abs=1e-9)  # before the first step
    assert [line.split(",")[0] for line in said if line.startswith("step")] == ["step 1/3", "step 2/3", "step 3/3"]
    kept = list(store.rollouts(1))
    text = kept[0]["completion"]
    assert "".join(text[a:b] for a, b in kept[0]["offsets"]) == text
    assert load_policy(tmp_path / "run" / "policy").model.num_parameters() > 0
    with pytest.raises(InputError, match="must be new"):
        start(config, tmp_path / "run")
    with pytest.raises(InputError, match="is finished"):
        resume(tmp_path / "run")


def test_a_lora_run_trains_its_adapter_alone(tmp_path: Path) -> None:
    config = load_config("demo-spro", {**SETTINGS, "run.steps": 2, "policy.lora.r": 4, "evaluation.problems": 0})
    start(config, tmp_path / "run")
    names = [path.name for path in (tmp_path / "run" / "policy").iterdir()]
    assert "adapter_model.safetensors" in names
    assert "model.safetensors" not in names


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"trainer.learning_rat": 1}, "did you mean learning_rate"),
        ({"trainer.max_steps": 1}, "`trainer.max_steps` must not be given: the run decides it, by run.steps"),
        ({"run.checkpoint_every": 3, "trainer.steps_per_generation": 8}, "must be a multiple of 4"),
        ({"run.report_to": "paper"}, "`run.report_to` must name trackio, wandb or tensorboard"),
        ({"trainer.learning_rate": "abc"}, "`trainer.learning_rate` must be float; got 'abc'"),
        ({"trainer.bf16": 1}, "`trainer.bf16` must be bool; got 1"),
        ({"trainer.num_generations": 3}, "`trainer` must be settings that TRL's GRPOConfig takes; it says"),
        ({"policy.name": "./nowhere"}, "nowhere"),
        (
            {"signal.type": "task_steps", "task.type": "math", "task.train": "x.jsonl", "evaluation.problems": 0},
            r"x\.jsonl",
        ),
    ],
)
def test_what_cannot_be_had_is_refused_first(tmp_path: Path, overrides: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        start(load_config("demo-grpo", {**SETTINGS, "run.steps": 2, **overrides}), tmp_path / "run")


@pytest.mark.parametrize("checkpointing", [True, False])
def test_gradient_checkpointing_is_one_setting_whatever_transformers_calls_it(
    checkpointing: bool, tmp_path: Path
) -> None:
    """Newer versions warn of this name, which is an error here."""
    config = load_config("demo-pass", {"trainer.gradient_checkpointing": checkpointing})
    settings = grpo_config(config, tmp_path)
    assert settings.gradient_checkpointing is checkpointing
    if hasattr(settings, "activation_checkpointing"):
        assert settings.activation_checkpointing is checkpointing
        both = load_config("demo-pass", {"trainer.activation_checkpointing": checkpointing})
        assert grpo_config(both, tmp_path).gradient_checkpointing is checkpointing


def test_the_grader_says_the_same_to_all_who_ask() -> None:
    task, tokenizer = build_task("arithmetic", {"operations": 2}), load_policy("tiny-arithmetic").tokenizer
    eos = tokenizer.eos_token_id
    reference = "a:3b:+5c:*2"
    texts = ["b:3+5=8\nc:8*2=6\nanswer: 6\n", "b:3+5=8\nb:3+5=8\nc:8*2=7\nanswer: 7\n", "b:3+5"]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] + [eos] * (i < 2) for i, text in enumerate(texts)]
    grader = TaskGrader(task, tokenizer, {eos})
    assert grader.outcome(completion_ids=ids, reference=[reference] * 3, prompts=[]) == [1.0, 0.0, 0.0]
    assert grader.format(completion_ids=ids, reference=[reference] * 3) == [1.0, 1.0, 0.0]
    rollouts = Rollouts(["p"] * 3, texts, [0] * 3, token_ids=ids, references=[reference] * 3)
    assert [[span.score for span in spans] for spans in grader.score(rollouts)] == [[1, 1, 1], [1, 1, 0, 0], [0]]
    counts = grader.counts(rollouts)
    assert {name: x for name, x in counts.items() if x} == {
        "accuracy": 1, "format_ok": 2, "truncated": 1, "unparsed": 1, "repeated_lines": 1,
        "steps_one": 4, "steps_repeated": 1, "steps_malformed": 1, "steps_answer": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    "said",
    [
        "[enforce fail at inline_container.cc:672] . unexpected pos 227584 vs 227476",
        "PytorchStreamWriter failed writing file data/4: file write failed",
        "Error while serializing: I/O error: No space left on device (os error 28)",
    ],
)
def test_a_full_disk_is_an_os_error_however_it_is_said(said: str, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"), disk_errors(tmp_path):
        raise RuntimeError(said)
    with pytest.raises(RuntimeError, match="shapes"), disk_errors(tmp_path):
        raise RuntimeError("shapes differ")
