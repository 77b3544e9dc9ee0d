"""What a process reward model starts from: a model's body under a fresh head, or random weights and a new tokenizer."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from stepcredit.errors import InputError, MissingExtraError
from stepcredit.options import Options, option
from stepcredit.runs.policies import BUILT_IN, no_progress_bars, reading, source_of

PAD, EOS = "<pad>", "<eos>"


@dataclass(frozen=True)
class Scratch(Options):
    """A small token classifier with random weights.

    Attributes:
        kind: "encoder", a ModernBERT, where a step's score may depend on later steps; or "decoder", a Llama, where not.
        hidden_size: Width, a multiple of twice the number of heads.
        layers: Blocks.
        heads: Of attention.
        vocabulary: Tokens of its byte-level BPE, at most; a digit is a token.
        positions: The longest input, in tokens.
        dropout: In attention and under the head; in the encoder's embeddings and feed-forward layers too.
        seed: Chooses the weights.

    Raises:
        InputError: A value out of its range.
    """

    kind: Literal["encoder", "decoder"] = "encoder"
    hidden_size: int = option(128, at_least=4)
    layers: int = option(4, at_least=1)
    heads: int = option(4, at_least=1)
    vocabulary: int = option(4096, at_least=260)
    positions: int = option(2048, at_least=16)
    dropout: float = option(0.1, at_least=0, at_most=0.9)
    seed: int = option(0, at_least=0)

    def __post_init__(self) -> None:
        """Checks the ranges, and that the heads part the width."""
        super().__post_init__()
        if self.kind == "encoder" and self.layers < 2:  # Transformers' ModernBERT needs a layer of either kind
            raise InputError(
                f"`layers` must be at least 2 for an encoder, one global and one local; got {self.layers}."
            )
        if self.hidden_size % (2 * self.heads):
            raise InputError(
                f"`hidden_size` must be a multiple of twice the {self.heads} heads; got {self.hidden_size}."
            )


def from_scratch(scratch: Scratch, texts: Iterable[str]) -> tuple[Any, Any]:
    """A model with random weights in float32, and a tokenizer trained on texts.

    Args:
        scratch: Their sizes.
        texts: What the tokenizer's merges are learned from.

    Returns:
        The model, with 2 labels, and the tokenizer. Torch's random state is left as it was.

    Raises:
        MissingExtraError: Transformers is not installed.

    Degenerate cases:
        Few texts: a vocabulary smaller than asked for; the 256 bytes and the two special tokens are always there.
    """
    transformers = _transformers("make a model")
    tokenizer = _bpe(scratch, texts)
    shared = {
        "vocab_size": len(tokenizer),
        "hidden_size": scratch.hidden_size,
        "num_hidden_layers": scratch.layers,
        "num_attention_heads": scratch.heads,
        "max_position_embeddings": scratch.positions,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        "num_labels": 2,
        "attention_dropout": scratch.dropout,
        "classifier_dropout": scratch.dropout,
        "dtype": "float32",
    }
    if scratch.kind == "encoder":
        config = transformers.ModernBertConfig(
            intermediate_size=2 * scratch.hidden_size,
            embedding_dropout=scratch.dropout,
            mlp_dropout=scratch.dropout,
            cls_token_id=None,
            sep_token_id=None,
            **shared,
        )
    else:
        config = transformers.LlamaConfig(intermediate_size=3 * scratch.hidden_size, **shared)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(scratch.seed)
        model = transformers.AutoModelForTokenClassification.from_config(config, attn_implementation="sdpa")
    return model.float(), tokenizer


def load_backbone(
    name_or_path: str | Path,
    *,
    seed: int = 0,
    dtype: str | None = "float32",
    device: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[Any, Any]:
    """A model's body under a token classifier's head with 2 labels; the head is fresh unless the model has one.

    Args:
        name_or_path: A built-in policy's name, a local folder or a hub name; of a causal language model, an encoder,
            or a token classifier with 2 labels, which then trains on.
        seed: Chooses the weights of a fresh head.
        dtype: Of the weights, by torch's name; None: the checkpoint's own.
        device: Where to put the model; the CPU by default.
        trust_remote_code: Run the checkpoint's own modeling code.

    Returns:
        The model and its fast tokenizer. Torch's random state is left as it was.

    Raises:
        InputError: There is no such model, Transformers has no token classifier of its type, weights of its body are
            missing, or it has no fast tokenizer.
        MissingExtraError: Transformers is not installed.
    """
    transformers, name = _transformers("load a model"), str(name_or_path)
    folder = Path(source_of(name))
    local = folder.is_dir()
    if local and not (folder / "config.json").is_file():
        raise InputError(f"`backbone` must be a folder with a whole model; {name!r} has no config.json.")
    if not local and (not name or folder.exists() or name.startswith((".", "~", "/"))):
        raise InputError(f"`backbone` must be {', '.join(BUILT_IN)}, a local folder or a hub name; got {name!r}.")
    source = str(folder) if local else name
    options = {"local_files_only": local, "trust_remote_code": trust_remote_code}
    with (
        no_progress_bars(),
        reading("backbone", name, "loadable as a token classifier"),
        torch.random.fork_rng(devices=[]),
        _silent(transformers),
    ):
        torch.manual_seed(seed)
        model, info = transformers.AutoModelForTokenClassification.from_pretrained(
            source, num_labels=2, dtype=dtype or "auto", output_loading_info=True, **options
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
    body = f"{model.base_model_prefix}."
    missing = sorted(key for key in info["missing_keys"] if key.startswith(body))
    if missing:
        raise InputError(
            f"`backbone` must have all weights of its body; {name!r} lacks {len(missing)}, {missing[0]} first."
        )
    if not tokenizer.is_fast:
        raise InputError(f"`backbone` must have a fast tokenizer; {name!r} has a {type(tokenizer).__name__}.")
    return (model if device is None else model.to(device)), tokenizer


def _bpe(scratch: Scratch, texts: Iterable[str]) -> Any:
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError:
        raise MissingExtraError("tokenizers", "trl", "train a tokenizer") from None
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    words.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=scratch.vocabulary,
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words.train_from_iterator((text.encode(errors="replace").decode() for text in texts), trainer)
    tokenizer: Any = _transformers("make a tokenizer").PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=PAD,
        eos_token=EOS,
        model_max_length=scratch.positions,
        clean_up_tokenization_spaces=False,
    )
    return tokenizer


@contextmanager
def _silent(transformers: Any) -> Iterator[None]:
    """Without Transformers' warning that a head is new: it is meant to be."""
    logging = transformers.utils.logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _transformers(purpose: str) -> Any:
    try:
        import transformers
    except ImportError:
        raise MissingExtraError("transformers", "trl", purpose) from None
    return transformers
