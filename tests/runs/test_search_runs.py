"""A run of a policy that searches, from its config to what it leaves, by tags and by tool calls."""

from __future__ import annotations

import importlib.util
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken

from dialogues import make_model, make_tokenizer
from stepcredit.config import parse_config
from stepcredit.errors import InputError
from stepcredit.runs.policies import load_policy
from stepcredit.runs.store import RunStore
from stepcredit.runs.train import start

CONFIG = """
[run]
steps = 2
checkpoint_every = 1
rollouts_every = 1
rollouts_kept = 16
sampler = "{sampler}"
[policy]
name = "{policy}"
[task]
type = "dialogues:Asking"
[estimator]
type = "grpo"
[trainer]
per_device_train_batch_size = 8
num_generations = 4
max_completion_length = {limit}
learning_rate = 1e-3
[evaluation]
problems = 3
samples = 1
batch_size = 4
"""


def save(folder: Path, *likely: str, template: str | None = None, tokenizer: Any = None) -> Path:
    tokenizer = tokenizer or make_tokenizer()
    tokenizer.chat_template = template
    make_model(tokenizer, *likely).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def check(store: RunStore, steps: int = 2) -> list[dict[str, Any]]:
    rows = store.metrics()
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    assert all("task/asked" in row and "task/characters" in row for row in rows)
    for name in ("start", "end"):
        assert {"asked", "characters", "pass@1", "greedy"} <= set(store.evals()[name]["metrics"])
    kept = list(store.rollouts())
    assert len(kept) == 8 * steps
    return kept


def test_by_tags(tmp_path: Path) -> None:
    policy = save(tmp_path / "policy", "\n<search>Q</search>", "Qb<answer>r1</answer>", "b</search>")
    config = parse_config(CONFIG.format(sampler="grouped", policy=policy, limit=110))
    start(config, tmp_path / "run")
    kept = check(store := RunStore.open(tmp_path / "run"))
    assert sum(row["task/asked"] for row in store.metrics()) > 0
    shown = 0
    for row in kept:
        text, inside = row["completion"], False
        for (a, b), credit in zip(row["offsets"], row["advantages"], strict=True):
            piece = text[a:b]
            before = text[:b]
            inside = before.count("\n<information>\n") > before.count("</information>\n")
            if inside and piece not in ("<search>", "</search>"):
                assert credit == 0
                shown += 1
    assert shown > 50
    with pytest.raises(InputError, match=r"`run\.sampler` must be 'grouped'"):
        start(parse_config(CONFIG.format(sampler="trl", policy=policy, limit=110)), tmp_path / "refused")


@pytest.mark.skipif(
    tuple(map(int, version("trl").split(".")[:2])) < (1, 10) or importlib.util.find_spec("jmespath") is None,
    reason="tool calls need TRL 1.10, and jmespath before transformers 5.13",
)
def test_by_tool_calls(tmp_path: Path) -> None:
    templates = pytest.importorskip("trl.chat_template_utils")
    call = '<tool_call>\n{"name": "search", "arguments": {"query": "Q</search>"}}\n</tool_call>'
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken(call, normalized=False)])  # one token, so that the tiny policy likes to write it
    likely = (f"\n{call}<|im_end|>", "\nQb<|im_end|>")
    policy = save(tmp_path / "policy", *likely, template=templates.qwen3_chat_template, tokenizer=tokenizer)
    config = parse_config(CONFIG.format(sampler="trl", policy=policy, limit=250))
    start(config, tmp_path / "run")
    kept = check(store := RunStore.open(tmp_path / "run"))
    assert sum(row["task/asked"] for row in store.metrics()) > 0
    assert store.evals()["start"]["metrics"]["asked"]["mean"] > 0
    shown = 0
    for row in kept:
        text = row["completion"]
        results = [match.span() for match in re.finditer(r"<tool_response>.*?</tool_response>", text, re.DOTALL)]
        for (a, b), credit in zip(row["offsets"], row["advantages"], strict=True):
            if any(start <= a < b <= end for start, end in results):
                assert credit == 0
                shown += 1
    assert shown > 50
    assert load_policy(tmp_path / "run" / "policy").tokenizer.chat_template == templates.qwen3_chat_template
    with pytest.raises(InputError, match=r"`run\.sampler` must be 'trl'"):
        start(parse_config(CONFIG.format(sampler="grouped", policy=policy, limit=250)), tmp_path / "refused")
