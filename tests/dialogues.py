"""A made-up task of several turns, character-level tokenizers with and without its tags, and tiny models for them."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from stepcredit.batch import Span
from stepcredit.tasks import Example, Grade
from stepcredit.tasks.multihop.environment import SearchEnvironment, words
from stepcredit.tasks.multihop.question import Paragraph

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # rollout_func and environment_factory say so of themselves

TAGS = ["<search>", "</search>", "<information>", "</information>", "<answer>", "</answer>"]
SPECIAL = ["<pad>", "<|im_start|>", "<|im_end|>", "<unk>"]
PAD, START, EOS, UNK = range(4)
CHARACTERS = [*map(chr, range(32, 127)), "\n"]


def make_tokenizer(*, tags: bool = True) -> PreTrainedTokenizerFast:
    """A token a character; with ``tags`` each tag is a token, too."""
    vocabulary = [*SPECIAL, *(TAGS if tags else []), *CHARACTERS]
    words_ = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    whole = "|".join(map(re.escape, TAGS)) + "|" if tags else ""
    words_.pre_tokenizer = pre_tokenizers.Split(Regex(whole + r"[\s\S]"), "isolated")
    words_.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=words_, pad_token="<pad>", eos_token="<|im_end|>", unk_token="<unk>",
        additional_special_tokens=["<|im_start|>"], clean_up_tokenization_spaces=False,
    )  # fmt: skip


def make_model(tokenizer: Any, *likely: str, seed: int = 0, **config: Any) -> LlamaForCausalLM:
    """Nearly a table of which token follows which: those of the ``likely`` texts, an end now and then, or any.

    Each token's embedding is an axis of its own, so that the output layer is the table; a weak attention lets the rest
    of the context have a say. Of the Llama type, since `AutoTokenizer` replaces the tokenizer beside a Qwen2 model.
    """
    size = -(-len(tokenizer) // 4) * 4
    defaults: dict[str, Any] = {
        "vocab_size": len(tokenizer), "hidden_size": size, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "intermediate_size": 8, "max_position_embeddings": 4096,
        "tie_word_embeddings": False, "initializer_range": 0.03, "bos_token_id": None, "eos_token_id": EOS,
        "pad_token_id": PAD,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**(defaults | config)))
        table = 0.7 * torch.randn(len(tokenizer), size)
    table[: len(SPECIAL)] = -10.0
    table[EOS] = 2.0
    for text in likely:
        ids = tokenizer(text)["input_ids"]
        for before, after in itertools.pairwise(ids):
            table[after, before] = 6.5
    model.model.embed_tokens.weight.data = torch.eye(len(tokenizer), size)
    model.lm_head.weight.data = table / size**0.5  # the norm before it has this length
    return model


def make_asking(tokenizer: Any) -> LlamaForCausalLM:
    """A policy in float64 that asks often: of some texts, each token but the first is likely after the one before."""
    asks = ("\n<search>Q</search>", "Qb<answer>r1</answer>", "b</search>")
    if tokenizer.convert_tokens_to_ids("</search>") == tokenizer.unk_token_id:
        asks = ("\n</search>", "\nQ</search>", "b</search>")
    return make_model(tokenizer, *asks).double().eval()


class Echo:
    """Finds a paragraph about every query; what it says depends on the query and the reference."""

    def __init__(self, reference: str) -> None:
        self.reference = reference

    def search(self, query: str, k: int) -> list[Paragraph]:
        return [Paragraph(query[:4], (f"{self.reference}{i} {query[::-1][:9]}.",)) for i in range(k)]


@dataclass(frozen=True)
class Asking:
    """The answer is the reference; counts searches and what the policy wrote between them."""

    name: ClassVar[str] = "asking"
    endless: ClassVar[bool] = False
    kinds: ClassVar[tuple[str, ...]] = ()
    measures: ClassVar[tuple[str, ...]] = ("asked", "characters")
    instruction: ClassVar[str] = ""
    searches: int = 2
    result_tokens: int = 40
    k: int = 1

    def examples(self, _split: str, count: int | None = None, **_: int) -> list[Example]:
        return [Example(f"q-{i}", "Q" + "ab"[i % 2] * (i % 5) + "?\n", f"r{i}") for i in range(count or 6)]

    def environment(self, reference: str, count: Callable[[str], int] | None = None) -> SearchEnvironment:
        limits: dict[str, Any] = {"k": self.k, "searches": self.searches, "result_tokens": self.result_tokens}
        return SearchEnvironment(Echo(reference), **limits, count=count or words)

    def grade(
        self, reference: str, completion: str, *, finished: bool = True, turns: Sequence[Span] | None = None
    ) -> Grade:
        mine = [completion] if turns is None else [completion[start:end] for start, end in turns]
        right = any(f"<answer>{reference}</answer>" in part for part in mine)
        measures = {"asked": float("".join(mine).count("</search>")), "characters": float(len("".join(mine)))}
        return Grade(float(right), format_ok=finished, parsed=right, reason=f"{len(mine)} turns", measures=measures)
