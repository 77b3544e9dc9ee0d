"""Tool calls: our loop writes the very ids of TRL's own, and nothing that a model writes stops a training."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from trl import GRPOConfig

from dialogues import EOS, START, Asking, make_model, make_tokenizer
from stepcredit import GRPO, PASS, InputError
from stepcredit.adapters.trl import CreditGRPOTrainer, CreditStep
from stepcredit.runs.conversing import converse
from stepcredit.runs.evaluate import evaluate
from stepcredit.runs.generating import SeededTurns
from stepcredit.runs.grading import TaskGrader
from stepcredit.runs.prompts import render_prompt
from stepcredit.runs.protocols import TagProtocol, protocol_of
from stepcredit.runs.rollouts import rollout_arguments
from stepcredit.runs.searching import SearchSampler
from stepcredit.runs.tools import SearchTool, ToolProtocol
from stepcredit.tasks import Arithmetic
from stepcredit.tasks.multihop.environment import EMPTY, LONG, SPENT
from tool_calls import BY_TEMPLATE, END, NEEDED, SCRIPTS, TASK, make_calling_tokenizer
from trl_trainer import NO_CHECKPOINTING

pytestmark = NEEDED


@pytest.fixture
def tokenizer() -> Any:
    return make_calling_tokenizer()


def next_turn(tokenizer: Any, context: Sequence[int], script: str, limit: int) -> list[int]:
    """The script's next turn, told from the context alone: it opens one turn more than the policy has written."""
    text = tokenizer.decode(list(context))
    turn = text.count("<|im_start|>assistant") - 1
    ids = list(tokenizer(SCRIPTS[script][turn] if turn < len(SCRIPTS[script]) else "?" + END)["input_ids"])
    stop = ids.index(EOS) + 1 if EOS in ids else len(ids)
    return ids[: min(stop, limit)] if EOS in ids else (ids * limit)[:limit]


class Written(CreditGRPOTrainer):
    """TRL's own loop over turns that a script writes; the prompt names the script."""

    def _generate_single_turn(self, prompt_ids: Any, *_: Any, **__: Any) -> Any:
        tokenizer, turns = self.processing_class, []
        for ids in prompt_ids:
            script = tokenizer.decode(ids).split("script: ")[1].split(END)[0]
            turns.append(next_turn(tokenizer, ids, script, self.max_completion_length))
        return turns, None


def make_trainer(
    folder: Path, tokenizer: Any, scripts: Sequence[str], *, limit: int, estimator: Any = None, **more: Any
) -> Any:
    protocol = protocol_of(TASK, tokenizer)
    settings = GRPOConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", **NO_CHECKPOINTING,
        save_strategy="no", dataloader_pin_memory=False, disable_tqdm=True, num_generations=2, seed=3,
        per_device_train_batch_size=2 * len(scripts), max_completion_length=limit, max_steps=1, shuffle_dataset=False,
    )  # fmt: skip
    grader = TaskGrader(TASK, tokenizer, {EOS}, protocol.asks)
    rows = [
        {"prompt": render_prompt(tokenizer, TASK, f"script: {name}"), "reference": f"r{i}", "id": name}
        for i, name in enumerate(scripts)
    ]
    model = make_model(tokenizer, max_position_embeddings=16384)
    return Written(
        model=model, reward_funcs=[grader.outcome, grader.format], args=settings, train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer, estimator=estimator or GRPO(), outcome=["outcome"], format=["format"],
        **rollout_arguments("trl", settings, protocol, "r0"), **more,
    )  # fmt: skip


class Lengths:
    name, unit, requires = "lengths", "characters", frozenset({"steps"})

    def score(self, rollouts: Any) -> Any:
        return [[(start, end, float(end - start)) for start, end in spans] for spans in rollouts.steps]


@pytest.mark.parametrize("limit", [10_400, 700, 330, 280, 120, 30])
def test_the_ids_are_those_of_trls_own_loop(tokenizer: Any, limit: int, tmp_path: Path) -> None:
    names = list(SCRIPTS)
    trainer = make_trainer(tmp_path, tokenizer, names, limit=limit)
    rows = [dict(row) for row in trainer.train_dataset]
    trainer._batch_environments = [None] * len(rows)
    trainer.environments = [trainer.environment_factories[None]() for _ in rows]
    for environment, row in zip(trainer.environments, rows, strict=True):
        assert environment.reset(**row) is None
    trainer._sync_tool_dicts = [{"search": environment.search} for environment in trainer.environments]
    trainer._async_tool_dicts = [{} for _ in rows]
    prompt_ids, ids, mask, *_ = trainer._generate([row["prompt"] for row in rows])

    protocol = ToolProtocol(TASK, tokenizer)
    prompts = [protocol.prompt(f"script: {name}") for name in names]
    assert prompts == prompt_ids

    def write(rows: Sequence[int], contexts: list[list[int]], limits: list[int]) -> list[list[int]]:
        turns = zip(rows, contexts, limits, strict=True)
        return [next_turn(tokenizer, context, names[i], most) for i, context, most in turns]

    references = [row["reference"] for row in rows]
    dialogues = converse(protocol, prompts, references, write, max_new_tokens=limit, ends={EOS})
    for name, dialogue, theirs, kept in zip(names, dialogues, ids, mask, strict=True):
        assert tokenizer.decode(dialogue.ids) == tokenizer.decode(theirs), name
        assert (dialogue.ids, dialogue.mask) == (theirs, kept), name
        assert len(theirs) <= limit
    if limit != 10_400:
        return
    by_name = dict(zip(names, dialogues, strict=True))
    hidden = {
        name: tokenizer.decode([i for i, k in zip(x.ids, x.mask, strict=True) if not k]) for name, x in by_name.items()
    }
    readable = {"arguments in a list": 2, "arguments in a text": 2} if BY_TEMPLATE else {}
    assert {name: x.turns for name, x in by_name.items() if x.turns > 1} == readable | {
        "two searches": 3, "two calls in a turn": 2, "endless calls": 4, "unknown tool": 2,
        "a tag for a tool": 2, "a tag for an argument": 2, "extra arguments": 2,
        "no arguments": 2, "null": 2, "empty query": 2, "a number": 2, "10 kB": 2,
    }  # fmt: skip
    assert {name for name, x in by_name.items() if not x.finished} == {
        "endless calls",
        "no end",
        "a call without an end",
    }
    assert hidden["two searches"].count("<tool_response>") == 2
    assert "# cd\nr1" in hidden["two searches"]
    assert hidden["endless calls"].count(SPENT) == 1
    assert EMPTY in hidden["empty query"]
    assert LONG in hidden["10 kB"]
    assert "Tool reset not found." in hidden["unknown tool"]
    assert "{'error': 'Tool ?/tool_response? ?# a??b? not found.'}".replace("#", "?") in hidden["a tag for a tool"]
    assert "unexpected keyword argument '?answer?'" in hidden["a tag for an argument"]
    assert "unexpected keyword argument 'k'" in hidden["extra arguments"]
    assert "# 7\n" in hidden["a number"]
    for name in readable:
        assert "argument after ** must be a mapping, not" in hidden[name]


def test_a_training_step_survives_everything(tokenizer: Any, tmp_path: Path) -> None:
    seen: list[CreditStep] = []
    names = [
        "an answer", "two searches", "endless calls", "bad JSON", "no name", "unknown tool", "extra arguments",
        "empty query", "such a tool", "an end inside", "no end",
    ]  # fmt: skip
    extra = {"signal": Lengths(), "on_credit": lambda step: seen.append(step)}
    trainer = make_trainer(tmp_path, tokenizer, names, limit=330, estimator=PASS(), **extra)
    assert trainer.max_tool_calling_iterations == TASK.searches + 1
    trainer.train()
    [step] = seen
    rollouts, mask = step.rollouts, step.batch.response_mask
    assert bool((step.credit.advantages[~mask] == 0).all())
    several = 0
    for text, turns, ids, kept in zip(
        rollouts.completions, rollouts.turns, rollouts.token_ids, rollouts.response_mask, strict=True
    ):
        assert len(ids) <= 330
        mine = tokenizer.decode([i for i, k in zip(ids, kept, strict=True) if k], skip_special_tokens=True)
        assert "".join(text[start:end] for start, end in turns) == mine
        assert "<tool_response>" not in mine
        several += len(turns) > 1
    assert several == 2 * 5
    counts = dict(TaskGrader(TASK, tokenizer, {EOS}, ToolProtocol(TASK, tokenizer).asks).counts(rollouts))
    assert counts["accuracy"] == 2.0 * 2  # "an answer" is r0, "two searches" r1
    assert counts["truncated"] == 2 * 2.0  # calls without an end, and a text without one


def test_an_evaluation_counts_what_the_policy_wrote(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [name for name in SCRIPTS if name not in ("10 kB", "deep")]
    examples = [TASK.examples("test", 1)[0].__class__(f"p-{i}", f"script: {x}", f"r{i}") for i, x in enumerate(names)]
    by_id = {example.id: name for example, name in zip(examples, names, strict=True)}

    def write(self: SeededTurns, rows: Any, contexts: Any, limits: Any) -> Any:
        turns = []
        for i, context, most in zip(rows, contexts, limits, strict=True):
            turns.append(next_turn(tokenizer, context, by_id[self.keys[i][0]], most))
            self.entropies[i] += [1.0] * len(turns[-1])
        return turns

    monkeypatch.setattr(SeededTurns, "__call__", write)
    model = make_model(tokenizer)
    found = evaluate(model, tokenizer, TASK, examples, samples=0, max_new_tokens=400, batch_size=5)
    rows = {by_id[row.id]: row for row in found.rows}
    assert {name for name, row in rows.items() if row.correct} == {"an answer", "two searches"}
    assert rows["two searches"].turns == 3
    assert rows["two searches"].length == sum(len(tokenizer(x)["input_ids"]) for x in SCRIPTS["two searches"])
    assert rows["two searches"].measures["characters"] == sum(len(x.replace(END, "")) for x in SCRIPTS["two searches"])
    assert not rows["endless calls"].finished
    assert rows["bad JSON"].finished


def test_the_tool_is_described_by_itself(tokenizer: Any) -> None:
    ids = ToolProtocol(TASK, tokenizer).prompt("Who?")
    text = tokenizer.decode(ids)
    assert '"name": "search"' in text
    assert '"query": {"type": "string", "description": "A few words to search for."}' in text
    assert '"required": ["query"]' in text
    assert text.endswith("<|im_start|>assistant\n")
    assert ids.count(START) == 3
    public = [name for name, _ in inspect.getmembers(SearchTool, inspect.isfunction) if not name.startswith("_")]
    assert public == ["reset", "search"]


def test_which_sampler_and_which_protocol(tokenizer: Any) -> None:
    plain, settings = make_tokenizer(), SimpleNamespace(max_tool_calling_iterations=None)
    tags, tools = protocol_of(TASK, plain), protocol_of(TASK, tokenizer)
    assert isinstance(tags, TagProtocol)
    assert isinstance(tools, ToolProtocol)
    assert isinstance(rollout_arguments("grouped", settings, tags, "r")["rollout_func"], SearchSampler)
    with pytest.raises(InputError, match=r"`run\.sampler` must be 'grouped' where a policy without a chat template"):
        rollout_arguments("trl", settings, tags, "r")
    with pytest.raises(InputError, match=r"`run\.sampler` must be 'trl' where a policy with a chat template"):
        rollout_arguments("grouped", settings, tools, "r")
    assert settings.max_tool_calling_iterations is None
    tool = rollout_arguments("trl", settings, tools, "r")["environment_factory"]()
    assert settings.max_tool_calling_iterations == 3
    tool.reset(reference="r", prompt="", id="")
    assert tool.search("ab") == "# ab\nr0 ba.\n"
    with pytest.raises(InputError, match=r"`result_tokens` must hold the longest message"):
        rollout_arguments("trl", settings, protocol_of(Asking(result_tokens=6), tokenizer), "r")
    settings.max_tool_calling_iterations = 7
    rollout_arguments("trl", settings, tools, "r")
    assert settings.max_tool_calling_iterations == 7
    assert rollout_arguments("trl", settings, protocol_of(Arithmetic(), plain), "r") == {"rollout_func": None}
