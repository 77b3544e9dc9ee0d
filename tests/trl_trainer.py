"""A GRPO trainer of a tiny random model over a made-up language: digits, and a line end that closes a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer

WORDS = ["<pad>", "<eos>", *"0123456789", "\n"]


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"[0-9]|\n"), "isolated")
    words.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


def make_model(seed: int = 0, scale: float = 0.3) -> Qwen2ForCausalLM:
    config = Qwen2Config(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=32, max_position_embeddings=64, tie_word_embeddings=True, initializer_range=scale,
        bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(config)


def share_of_even(completions: list[str], **_: Any) -> list[float]:
    """Outcome: the share of even digits, so that groups have spread."""
    return [sum(c in "02468" for c in text) / max(len(text), 1) for text in completions]


def has_line_end(completions: list[str], **_: Any) -> list[float]:
    """Format: at least one line end."""
    return [float("\n" in text) for text in completions]


def make_trainer(
    out: Path,
    *,
    trainer: type = GRPOTrainer,
    model: Any = None,
    reward_funcs: Any = None,
    extra: Any = None,
    **config: Any,
) -> Any:
    defaults: dict[str, Any] = {
        "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none", "save_strategy": "no",
        "dataloader_pin_memory": False, "disable_tqdm": True, "per_device_train_batch_size": 8, "num_generations": 4,
        "max_completion_length": 12, "max_steps": 2, "learning_rate": 1e-2, "logging_steps": 1, "seed": 3,
    }  # fmt: skip
    data = Dataset.from_list([{"prompt": f"{i}{(7 * i) % 10}\n", "reference": str(i)} for i in range(10)])
    return trainer(
        model=model or make_model(),
        reward_funcs=reward_funcs or [share_of_even, has_line_end],
        args=GRPOConfig(output_dir=str(out), **(defaults | config)),
        train_dataset=data,
        processing_class=make_tokenizer(),
        **(extra or {}),
    )
