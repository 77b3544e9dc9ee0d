"""A GRPO trainer of a tiny random model over a made-up language: digits, and a line end that closes a step.

A character is a token, so that what the adapter does with text can be checked by counting characters.
"""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # rollout_func warns that it is experimental

from trl import GRPOConfig, GRPOTrainer

WORDS = ["<pad>", "<eos>", *"0123456789", "\n"]
PAD, EOS = 0, 1
RENAMED = "activation_checkpointing" in {f.name for f in fields(GRPOConfig)}
NO_CHECKPOINTING = {"activation_checkpointing" if RENAMED else "gradient_checkpointing": False}
"""Under the name that this version of Transformers has for it; where that is the newer one, the older one warns."""


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"[0-9]|\n"), "isolated")
    words.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


def make_model(seed: int = 0, scale: float = 0.3, **config: Any) -> Qwen2ForCausalLM:
    defaults: dict[str, Any] = {
        "vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "intermediate_size": 32, "max_position_embeddings": 64, "tie_word_embeddings": True,
        "initializer_range": scale, "bos_token_id": None, "eos_token_id": EOS, "pad_token_id": PAD,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(Qwen2Config(**(defaults | config)))


def share_of_even(completions: list[str], **_: Any) -> list[float]:
    """Outcome: the share of even digits, so that groups have spread."""
    return [sum(c in "02468" for c in text) / max(len(text), 1) for text in completions]


def has_line_end(completions: list[str], **_: Any) -> list[float]:
    """Format: at least one line end."""
    return [float("\n" in text) for text in completions]


def make_data(rows: int = 10) -> Dataset:
    return Dataset.from_list([{"prompt": f"{i}{(7 * i) % 10}\n", "reference": str(i)} for i in range(rows)])


def make_trainer(
    out: Path,
    *,
    trainer: type = GRPOTrainer,
    model: Any = None,
    reward_funcs: Any = None,
    extra: Any = None,
    config: type = GRPOConfig,
    **settings: Any,
) -> Any:
    """A trainer; ``extra`` are further arguments of its constructor, ``settings`` those of its config."""
    defaults: dict[str, Any] = {
        "use_cpu": True, "bf16": False, **NO_CHECKPOINTING, "report_to": "none", "save_strategy": "no",
        "dataloader_pin_memory": False, "disable_tqdm": True, "per_device_train_batch_size": 8, "num_generations": 4,
        "max_completion_length": 12, "max_steps": 2, "learning_rate": 1e-2, "logging_steps": 1, "seed": 3,
        "generation_kwargs": {"suppress_tokens": [PAD]},  # so that a row without its padding is the completion
    }  # fmt: skip
    return trainer(
        model=model or make_model(),
        reward_funcs=reward_funcs or [share_of_even, has_line_end],
        args=config(output_dir=str(out), **(defaults | settings)),
        train_dataset=make_data(),
        processing_class=make_tokenizer(),
        **(extra or {}),
    )


def generation_batch(trainer: Any, n_prompts: int = 2, num_generations: int | None = None) -> list[dict[str, Any]]:
    """What the trainer's data loader would hand out: each prompt's rows one after the other."""
    times = num_generations or trainer.num_generations
    return [dict(trainer.train_dataset[i]) for i in range(n_prompts) for _ in range(times)]


def generate(trainer: Any, seed: int = 0, **batch: Any) -> dict[str, Any]:
    """One generation batch, scored: what is about to be cut into micro-batches."""
    trainer.model.train()
    torch.manual_seed(seed)
    return trainer._generate_and_score_completions(generation_batch(trainer, **batch))


class Witness(GRPOTrainer):
    """Writes down what TRL's loss is given, micro-batch by micro-batch."""

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        seen = {name: x.clone() if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}
        vars(self).setdefault("seen", []).append(seen)
        return super()._compute_loss(model, inputs)


@dataclass
class Generation:
    """What the reward functions saw of one generation batch, and gave."""

    prompts: list[str]
    completions: list[str]
    ids: list[list[int]]
    rewards: dict[str, list[float | None]] = field(default_factory=dict)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)


class Ledger:
    """Reward functions that keep a record, beside the adapter and independent of it."""

    def __init__(self, policy: torch.nn.Module | None = None) -> None:
        self.policy, self.generations = policy, list[Generation]()

    def watch(self, *functions: Callable[..., list[float | None]]) -> list[Callable[..., Any]]:
        return [self._watched(function) for function in functions]

    def _watched(self, function: Callable[..., list[float | None]]) -> Callable[..., Any]:
        @wraps(function)
        def watched(prompts: Any, completions: Any, completion_ids: Any, **more: Any) -> list[float | None]:
            name = function.__name__
            if not self.generations or name in self.generations[-1].rewards:
                self.generations.append(Generation(list(prompts), list(completions), [list(x) for x in completion_ids]))
                if self.policy is not None:
                    self.generations[-1].weights = {k: v.clone() for k, v in self.policy.state_dict().items()}
            given = function(prompts=prompts, completions=completions, completion_ids=completion_ids, **more)
            self.generations[-1].rewards[name] = list(given)
            return given

        return watched


def scripted(longest: int = 10, *, holes: bool = False, logprob: float | None = None) -> Callable[..., dict[str, Any]]:
    """A `rollout_func` whose completions depend on the prompt and on the rollout's place in its group alone.

    Args:
        longest: The most tokens of a completion.
        holes: Whether some tokens come from an environment: `env_mask` 0.
        logprob: What the sampler claims about every token.
    """

    def rollouts(prompts: Sequence[str], trainer: Any) -> dict[str, Any]:
        tokenizer, first = trainer.processing_class, trainer.accelerator.process_index * len(prompts)
        ids, masks = [], []
        for i, prompt in enumerate(prompts):
            place = (first + i) % trainer.num_generations
            rng = random.Random(zlib.crc32(f"{prompt}|{place}".encode()))
            body = [WORDS.index(rng.choice("0123456789\n")) for _ in range(rng.randint(2, longest - 1))]
            ids.append([*body, EOS] if rng.random() < 0.8 else body)
            masks.append([int(not holes or t == 0 or rng.random() < 0.6) for t in range(len(ids[-1]))])
        return {
            "prompt_ids": [tokenizer(prompt)["input_ids"] for prompt in prompts],
            "completion_ids": ids,
            "logprobs": None if logprob is None else [[logprob] * len(row) for row in ids],
            **({"env_mask": masks} if holes else {}),
        }

    return rollouts


def plain_logprobs(model: Any, prompt: str, ids: Sequence[int], temperature: float = 1.0) -> list[float]:
    """Log-probabilities of a completion's tokens by a plain forward of one row, without padding or TRL."""
    before = make_tokenizer()(prompt)["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*before, *ids]])).logits[0].double()
    steps = (logits / temperature).log_softmax(-1)
    return [float(steps[len(before) - 1 + t, token]) for t, token in enumerate(ids)]
