"""Checkpoints that do not fit, are damaged, need code of their own, or are loaded beside a trainer that shards."""

import os
import shutil
import sys
from functools import partial

import pytest
import torch

import tiny_prms as tiny
from stepcredit.batch import Rollouts, Span
from stepcredit.errors import InputError, MissingExtraError
from stepcredit.signals import PRM

prm = partial(PRM, preset="qwen2.5-math-prm")
SPECIAL = ("<|im_start|>", "<|im_end|>", "<extra_0>")


def rollouts(rows):
    spans = [[Span(3 * k, 3 * k + 2) for k in range(len(steps))] for _, steps in rows]
    texts = ["\n".join(step[:2].ljust(2, ".") for step in steps) for _, steps in rows]
    return Rollouts([problem for problem, _ in rows], texts, group_ids=range(len(rows)), steps=spans)


def values(found):
    return [[span.score for span in row] for row in found]


def close(found, expected, tolerance=1e-5):
    assert [len(row) for row in found] == [len(row) for row in expected]
    for row, other in zip(found, expected, strict=True):
        assert row == pytest.approx(other, abs=tolerance)


def refusal(model, **options):
    with pytest.raises(InputError) as caught:
        prm(model, **options).score(rollouts(tiny.ROWS[:1]))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_models_that_do_not_fit(standard, published, tmp_path):
    assert "`max_length` must be <= the 4096 positions" in refusal(standard, max_length=4097)
    rest = [name for name in SPECIAL if name != "<extra_0>"]
    told = refusal(tiny.save_labels(tmp_path / "separator", words=tiny.qwen(rest)))
    assert "`model` must have one token for the separator '<extra_0>' for the preset 'qwen2.5-math-prm'; got " in told
    told = refusal(tiny.save_labels(tmp_path / "labels", num_labels=3))
    assert "must have 2 labels for each token for the preset 'qwen2.5-math-prm'; got an output (1, " in told
    assert "got the architecture Qwen2ForCausalLM" in refusal(tiny.save_labels(tmp_path / "lm", "Qwen2ForCausalLM"))
    assert "chat template" in refusal(tiny.save_labels(tmp_path / "bare", words=tiny.qwen(template=None)))
    once = "{% for message in messages %}{{ message.content if message.role != 'user' }}{% endfor %}"
    assert "once each" in refusal(tiny.save_labels(tmp_path / "once", words=tiny.qwen(template=once)))
    raises = "{{ raise_exception('no system message') }}"
    assert "no system message" in refusal(tiny.save_labels(tmp_path / "raises", words=tiny.qwen(template=raises)))
    assert "an embedding for every token for the preset 'qwen2.5-math-prm'; got 8 for" in refusal(
        tiny.save_labels(tmp_path / "rows", vocab_size=8)
    )


def test_broken_checkpoints(standard, published, tmp_path):
    def spoil(folder, name, change):
        return tiny.spoil(folder, tmp_path / name, change)

    assert "all weights" in refusal(spoil(standard, "missing", lambda weights: weights.pop("score.weight")))
    assert "score.2.bias" in refusal(spoil(published, "headless", lambda weights: weights.pop("score.2.bias")))
    assert "finite" in refusal(spoil(standard, "nan", lambda weights: weights["score.bias"].fill_(float("nan"))))
    kept = spoil(published, "lm_head", lambda weights: weights.update({"lm_head.weight": torch.zeros(3, 32)}))
    assert prm(kept).score(rollouts(tiny.ROWS)) == prm(published).score(rollouts(tiny.ROWS))
    for path in (tmp_path / "nothing", tmp_path / "nan" / "config.json"):
        assert "which is no folder" in refusal(str(path))
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in refusal(str(tmp_path / "empty"))
    (tmp_path / "empty" / "config.json").write_text("{")
    assert "`model` must be loadable for PRM" in refusal(str(tmp_path / "empty"))
    assert "`model` must be loadable for PRM" in refusal(standard, device="cuda:99")


def test_code_of_a_checkpoint_runs_only_when_trusted(published, tmp_path):
    folder = tmp_path / "own"
    shutil.copytree(published, folder)
    tiny.edit(folder, architectures=["OwnModel"])
    told = refusal(str(folder))
    assert "`trust_remote_code` must be True" in told
    assert "modeling code that it ships (OwnModel); got False" in told
    trusted = prm(str(folder), trust_remote_code=True).score(rollouts(tiny.ROWS))
    close(values(trusted), values(prm(published).score(rollouts(tiny.ROWS))))


def test_a_trainer_that_shards_does_not_shard_the_signal(standard, monkeypatch, tmp_path):
    from transformers.integrations import deepspeed, fsdp

    class ZeRO3:
        def is_zero3(self):
            return True

    expected = prm(standard).score(rollouts(tiny.ROWS))
    trainer = ZeRO3()
    deepspeed.set_hf_deepspeed_config(trainer)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    monkeypatch.setenv("LOCAL_RANK", "1")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        assert deepspeed.is_deepspeed_zero3_enabled()
        assert fsdp.is_fsdp_enabled()
        assert prm(standard).score(rollouts(tiny.ROWS)) == expected
        assert deepspeed.is_deepspeed_zero3_enabled()
        assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "true"
    finally:
        torch.distributed.destroy_process_group()
        deepspeed.unset_hf_deepspeed_config()


def test_extras_that_are_missing(standard, published, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingExtraError, match=r"stepcredit\[trl\]"):
        prm(published, trust_remote_code=True).score(rollouts(tiny.ROWS))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"stepcredit\[data\]"):
        prm(standard).score(rollouts(tiny.ROWS))
