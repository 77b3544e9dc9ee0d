"""Published questions all the way: loading, prompting, grading of gold and spoilt answers, training on real text."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from dialogues import SPECIAL, TAGS, make_model
from stepcredit.config import parse_config
from stepcredit.runs.prompts import encode_prompt
from stepcredit.runs.store import RunStore
from stepcredit.runs.train import start
from stepcredit.tasks import MultiHop, MultiHopSearch
from tasks.published import published

SETS = {
    "hotpotqa": "hotpotqa/dev_sample.jsonl.gz",
    "2wiki": "2wikimultihopqa/eval_sample.jsonl.gz",
    "musique": "musique/eval_sample.jsonl.gz",
}
CONFIG = """
[run]
steps = 2
checkpoint_every = 1
rollouts_every = 1
rollouts_kept = 8
train_examples = 16
sampler = "grouped"
[policy]
name = "{policy}"
[task]
{task}
[estimator]
type = "grpo_process"
norm = "abs_max"
[signal]
{signal}
[trainer]
per_device_train_batch_size = 8
num_generations = 4
max_completion_length = {limit}
learning_rate = 1e-3
[evaluation]
problems = 3
samples = 1
"""


@pytest.mark.parametrize("name", SETS)
def test_gold_answers_are_right_however_they_are_dressed_and_others_wrong(name):
    path = str(published(SETS[name]))
    task = MultiHop(test=path)
    examples, questions = task.examples("test"), task.questions("test")
    assert all(p.render() in e.prompt for e, q in zip(examples, questions, strict=True) for p in q.paragraphs)
    assert all(e.prompt.endswith(f"Question: {q.question}\n") for e, q in zip(examples, questions, strict=True))
    dresses = ("{}", " {} ", "The {}.", "“{}”"[1:-1], "{}!", "an {},", "{}\n")
    other = {"yes": "no", "no": "yes"}
    for i, (example, question) in enumerate(zip(examples, questions, strict=True)):
        gold = question.answers[0]
        for dress in dresses:
            for text in (gold, gold.upper(), gold.lower()) if gold.isascii() else (gold,):
                grade = task.grade(example.reference, f"Because.\n<answer>{dress.format(text)}</answer>")
                assert (grade.outcome, grade.measures["f1"], grade.format_ok) == (1.0, 1.0, True), (gold, dress)
        spoilt = other.get(gold.lower(), f"{gold} {i} elsewhere")
        assert task.grade(example.reference, f"<answer>{spoilt}</answer>").outcome == 0.0
        assert task.grade(example.reference, gold).outcome == 0.0  # not where an answer belongs


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A byte-level tokenizer made of real paragraphs, and two random models for it."""
    task = MultiHop(test=str(published(SETS["musique"])))
    texts = [paragraph.text for question in task.questions("test", 40) for paragraph in question.paragraphs]
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words.train_from_iterator(texts, trainer)
    words.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<|im_end|>", unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    made = tmp_path_factory.mktemp("real")
    for name, seed in (("policy", 0), ("teacher", 1)):
        model: LlamaForCausalLM = make_model(tokenizer, "\n<search> river</search>", seed=seed)
        model.lm_head.weight.data *= 1.5
        model.model.layers[0].self_attn.o_proj.weight.data.zero_()  # long prompts have no say in what is likely
        model.save_pretrained(made / name)
        tokenizer.save_pretrained(made / name)
    assert tokenizer.decode(encode_prompt(tokenizer, task, texts[0])) == f"{task.instruction}\n\n{texts[0]}"
    return made


def trained(config: str, folder: Path) -> tuple[RunStore, list[dict[str, Any]]]:
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    start(parse_config(config), folder)
    store = RunStore.open(folder)
    assert [row["step"] for row in store.metrics()] == [1, 2]
    assert all(math.isfinite(row["loss"]) for row in store.metrics())
    assert any(row["grad_norm"] > 0 for row in store.metrics())
    return store, list(store.rollouts())


def test_distillation_on_real_paragraphs(folder, tmp_path):
    path = published(SETS["hotpotqa"])
    task = f'type = "multihop"\ntrain = "{path}"\ntest = "{path}"\nparagraphs = 3'
    signal = f'type = "gopd"\n[teacher]\nname = "{folder / "teacher"}"'
    config = CONFIG.format(policy=folder / "policy", task=task, signal=signal, limit=24)
    store, rows = trained(config, tmp_path / "run")
    assert all(len(set(row["advantages"])) > 1 for row in rows if len(row["advantages"]) > 2)
    assert {"em", "f1"} <= set(store.evals()["end"]["metrics"])
    assert all(row["prompt"].count("# ") >= 3 for row in rows)


def test_search_in_a_real_pool(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = published(SETS["musique"])
    task = f'type = "multihop-search"\ntrain = "{path}"\ntest = "{path}"\nk = 1\nsearches = 2\nresult_tokens = 80'
    signal = f'type = "opd"\n[teacher]\nname = "{folder / "teacher"}"'
    config = CONFIG.format(policy=folder / "policy", task=task, signal=signal, limit=320)
    store, rows = trained(config, tmp_path / "run")
    assert sum(row["task/searches"] for row in store.metrics()) > 0
    shown = 0
    for row in rows:
        parts = row["completion"].split("\n<information>\n")
        position = len(parts[0])
        for part in parts[1:]:
            result, closed, rest = part.partition("</information>\n")
            end = position + len(f"\n<information>\n{result}{closed}")
            inside = [
                x for (a, b), x in zip(row["offsets"], row["advantages"], strict=True) if position <= a < b <= end
            ]
            assert inside
            assert set(inside) == {0.0}
            shown += "# " in result
            position = end + len(rest)
    assert shown > 0
    assert len(list((tmp_path / "cache" / "stepcredit" / "retrieval").iterdir())) == 1  # built once, then reused
    assert json.dumps(store.evals()["end"]["metrics"]["recall"])


def test_what_a_search_finds_in_the_real_pool_is_what_is_graded(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    task = MultiHopSearch(test=str(published(SETS["2wiki"])), k=5, result_tokens=10_000)
    from stepcredit.batch import Span
    from stepcredit.tasks.multihop.environment import frame

    for example, question in list(zip(task.examples("test"), task.questions("test"), strict=True))[:40]:
        query = f"<search>{question.question}</search>"
        result = frame(task.environment(example.reference).search(question.question))
        text = query + result + "<answer>x</answer>"
        turns = [Span(0, len(query)), Span(len(query + result), len(text))]
        recall = task.grade(example.reference, text, turns=turns).measures["recall"]
        lines = result.split("\n")
        found = sum(gold.title in [line[2:] for line in lines[2::2]] for gold in question.gold)
        assert recall == pytest.approx(found / len(question.gold))
