"""Solutions to time signals on, and tiny models with random weights that can read them."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stepcredit.batch import Rollouts, Span
from stepcredit.errors import InputError, MissingExtraError
from stepcredit.tasks.labeled_files import read_labeled_steps

POSITIONS = 16384
_EOS = "<eos>"
_WORDS = (
    "we",
    "so",
    "then",
    "the",
    "sum",
    "is",
    "equal",
    "to",
    "x",
    "and",
    "by",
    "gives",
    "=",
    "+",
    "-",
    "2",
    "12",
    "(",
    ")",
)


def read_solutions(path: str | Path, limit: int) -> Rollouts:
    """Problems and their stepwise solutions, in the file's order.

    Args:
        path: A file of labeled solutions, in a format of `read_labeled_steps`.
        limit: Read at most this many rows.

    Returns:
        Rollouts with ``steps``; the steps are joined by line breaks.

    Raises:
        InputError: See `read_labeled_steps`.
    """
    data = read_labeled_steps(path, limit=limit)
    return _rollouts([(solution.problem, solution.steps) for solution in data.solutions[:limit]])


def made_solutions(count: int, seed: int = 0) -> Rollouts:
    """Solutions of random words with ragged lengths: as many steps as real ones have, some much longer than others.

    Args:
        count: How many.
        seed: Chooses them.

    Returns:
        Rollouts with ``steps``: 2 to 20 or so of them, of a log-normal number of words each.
    """
    g = random.Random(seed)  # noqa: S311 - nothing secret
    rows = []
    for _ in range(count):
        scale = g.lognormvariate(0, 0.5)
        lengths = [max(2, int(scale * g.lognormvariate(2.8, 0.6))) for _ in range(2 + int(g.expovariate(1 / 5)))]
        rows.append((_sentence(g, 30), tuple(_sentence(g, length) for length in lengths)))
    return _rollouts(rows)


def save_prm(folder: str | Path, rollouts: Rollouts, *, width: int, layers: int, seed: int = 0) -> int:
    """Writes a process reward model with random weights and a tokenizer that is trained on the rollouts.

    Args:
        folder: Where to; it exists.
        rollouts: What the tokenizer is trained on.
        width: The model's hidden size; heads are 32 wide.
        layers: Its layers.
        seed: Chooses the weights.

    Returns:
        The number of its weights. `PRM` reads it with the preset "trl".

    Raises:
        InputError: A width that heads do not divide.
        MissingExtraError: Transformers is not installed.
    """
    try:
        import torch
        from transformers import LlamaForTokenClassification
    except ImportError:
        raise MissingExtraError("transformers", "data", "make a process reward model") from None
    tokenizer = _tokenizer([*rollouts.prompts, *rollouts.completions])
    tokenizer.save_pretrained(folder)
    config = _config(len(tokenizer), width, layers)
    config.num_labels = 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForTokenClassification(config)
    model.save_pretrained(folder)
    return int(model.num_parameters())


def causal_model(vocabulary: int, *, width: int, layers: int, seed: int = 0) -> Any:
    """A causal language model with random weights and a head of its own, in eval mode.

    Raises:
        InputError: A width that heads do not divide.
        MissingExtraError: Transformers is not installed.
    """
    try:
        import torch
        from transformers import LlamaForCausalLM
    except ImportError:
        raise MissingExtraError("transformers", "data", "make a language model") from None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(_config(vocabulary, width, layers)).eval()


def _config(vocabulary: int, width: int, layers: int) -> Any:
    from transformers import LlamaConfig

    if width < 32 or width % 32:
        raise InputError(f"`width` must be a multiple of 32; got {width}.")
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=False,
    )


def _tokenizer(texts: Sequence[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[_EOS],
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=_EOS, pad_token=_EOS)


def _rollouts(rows: Sequence[tuple[str, Sequence[str]]]) -> Rollouts:
    texts, spans = [], []
    for _, steps in rows:
        begins = [0]
        for step in steps:
            begins.append(begins[-1] + len(step) + 1)
        texts.append("\n".join(steps))
        spans.append([Span(begin, begin + len(step)) for begin, step in zip(begins, steps, strict=False)])
    return Rollouts([problem for problem, _ in rows], texts, list(range(len(rows))), steps=spans)


def _sentence(g: random.Random, words: int) -> str:
    return " ".join(g.choices(_WORDS, k=words))
