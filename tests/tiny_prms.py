"""Tiny process reward models: tokenizers trained here like the published ones, and random weights under their heads."""

import json
import shutil
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers")

PROBLEM, STEPS = "What is 2+3?", ["Add 2 and 3.", "The answer is 5."]
CHATML = """\
{%- if messages[0]['role'] != 'system' %}{{- '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
LLAMA = """\
{{- bos_token }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""
LLAMA_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ROWS = [
    (PROBLEM, STEPS),
    (
        "\n\n How many + or - ки?\n",
        ["16 - 3 = 13", "So  it's\t-7 ?\n\nno: é e\u0301", "第一步、先算三加四", "🦆" * 30, "x"],
    ),
    ("A", ["A"]),
    ("A longer one. " * 9, ["Janet sells 16 - 3 - 4 = <<16-3-4=9>>9 duck eggs.\nThat is 9 * 2 = $18.", "So 18 < 19."]),
]
_TEXT = [
    *(text for problem, steps in ROWS for text in (problem, *steps)),
    "system\nuser\nassistant\n", "\n\n \n\n\n", "Step 1: Add 2 and 3.\n\nStep 2: The answer is 5.\n\n",
    "?\n\nAdd. \n\n\n\nThe", "+\n-\n + - + -", "a ки b ки c ки",
]  # fmt: skip


def qwen(special=("<|im_start|>", "<|im_end|>", "<extra_0>"), template=CHATML, **tokens):
    """Byte-level BPE under Qwen's rules for words, ChatML, and no BOS unless one is given."""
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    trained = json.loads(_byte_level(PRETOKENIZE_REGEX).to_str())["model"]
    merges = [tuple(pair) for pair in trained["merges"]]
    made = transformers.Qwen2Tokenizer(trained["vocab"], merges, extra_special_tokens=list(special), **tokens)
    made.chat_template = template
    return made


def llama(template=LLAMA, texts=()):
    """Byte-level BPE under Llama 3's rules for words, which puts its BOS ahead of every text."""
    from tokenizers import decoders, processors

    special = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    backend = _byte_level(LLAMA_WORDS, texts)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(special)
    bos = (special[0], backend.token_to_id(special[0]))
    backend.post_processor = processors.TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=special[0], eos_token="<|eot_id|>", extra_special_tokens=special[1:3]
    )
    made.chat_template = template
    return made


def mistral(tag=" ки"):
    """SentencePiece-like BPE: a word has its space in front, what is unknown is spelled in bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    named = ["<s>", "</s>", "<unk>"]
    pieces = [*named, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=480, special_tokens=pieces, show_progress=False)
    texts = [text for text in _TEXT if text.isascii() and "\n" not in text]
    backend.train_from_iterator([*texts, "What is Add Step 1: 2: 3: The So + - ", tag * 3] * 3, trainer)
    state = json.loads(backend.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in named]
    state["pre_tokenizer"] = None
    backend = Tokenizer.from_str(json.dumps(state))
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def _byte_level(words, texts=()):
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(words), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([*_TEXT, *texts] * 3, trainer)
    return backend


def config(family, tokens, **changes):
    kind = getattr(transformers, f"{family}Config")
    return kind(
        **{
            "vocab_size": tokens, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
            "initializer_range": 0.5, "dtype": "float32", "tie_word_embeddings": False,
        }
        | changes
    )  # fmt: skip


def save(folder, architecture, words, seed=1, **changes):
    """A checkpoint of a class of Transformers with random weights."""
    torch.manual_seed(seed)
    family = architecture.partition("For")[0]
    getattr(transformers, architecture)(config(family, len(words), **changes)).save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


def save_value_head(folder, words, seed=1):
    """A checkpoint as TRL's wrapper writes it: a causal language model's weights, and a head of its own beside them."""
    from safetensors.torch import load_file, save_file

    save(folder, "Qwen2ForCausalLM", words, seed)
    path = Path(folder) / "model.safetensors"
    weights = load_file(path)
    weights["v_head.summary.weight"], weights["v_head.summary.bias"] = torch.randn(1, 32) / 4, torch.tensor([0.5])
    save_file(weights, path, metadata={"format": "pt"})
    edit(folder, architectures=["Qwen2ForPrmModel"])
    return str(folder)


def edit(folder, **changes):
    """Changes a checkpoint's configuration."""
    path = Path(folder) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def spoil(folder, to, change):
    """A copy of a checkpoint with other weights."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, to)
    path = Path(to) / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})
    return str(to)


def save_labels(folder, architecture="Qwen2ForTokenClassification", words=None, **changes):
    """A checkpoint with two labels for each token, under Qwen's tokenizer."""
    return save(folder, architecture, words or qwen(), **({"num_labels": 2} | changes))


def own_class(folder):
    """The class that a checkpoint ships, as it is."""
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    return get_class_from_dynamic_module("modeling_prm.Qwen2ForProcessRewardModel", str(folder))
