r"""The built-in tiny policy: a Llama-type model of 0.1 million parameters and the exact tokenizer of `Arithmetic`.

A number is its digits; a label (``b:``) and ``answer: `` are one token each, so a step modulo 10 is seven tokens.
The model is not of the Qwen2 type because `AutoTokenizer` replaces any tokenizer beside a Qwen2 model by its own.
"""

from typing import Any

from stepcredit.errors import MissingExtraError
from stepcredit.tasks.arithmetic import LABELS

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
VOCABULARY = (PAD, BOS, EOS, UNK, *"0123456789+-*=\n", *(f"{label}:" for label in LABELS), "answer: ")
POSITIONS = 512


def tiny_tokenizer() -> Any:
    r"""A fast tokenizer whose vocabulary is `VOCABULARY`, ids in that order.

    Text made of the vocabulary decodes back exactly. ``tokenizer(text)`` starts with ``<bos>``; with
    ``add_special_tokens=False`` it does not.

    Returns:
        The tokenizer, of Transformers' general fast class: `AutoTokenizer` loads it from a saved folder.

    Raises:
        MissingExtraError: Transformers is not installed.

    Degenerate cases:
        A character outside the vocabulary becomes ``<unk>``, one a character, and does not decode back.

    Example:
        >>> tokenizer = tiny_tokenizer()
        >>> tokenizer.convert_ids_to_tokens(tokenizer("a:3b:+5\n")["input_ids"])
        ['<bos>', 'a:', '3', 'b:', '+', '5', '\n']
        >>> tokenizer.decode(tokenizer("answer: 8\n")["input_ids"], skip_special_tokens=True)
        'answer: 8\n'
    """
    try:
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
        from transformers import PreTrainedTokenizerFast
    except ImportError:
        raise MissingExtraError("transformers", "trl", "make a tokenizer") from None
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(VOCABULARY)}, unk_token=UNK))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"answer: |[a-z]:|[\s\S]"), behavior="isolated")
    words.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, VOCABULARY.index(BOS))]
    )
    words.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def tiny_model(seed: int = 0) -> Any:
    """A model with random weights: 2 layers of width 64 with 2 query heads and 1 key-value head, float32.

    Args:
        seed: Chooses the weights; torch's own random state is left alone.

    Returns:
        A `LlamaForCausalLM` with tied embeddings for the tokens of `tiny_tokenizer`.

    Raises:
        MissingExtraError: Transformers is not installed.

    Example:
        >>> tiny_model().num_parameters()
        101568
    """
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError:
        raise MissingExtraError("transformers", "trl", "make a model") from None
    import torch

    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=192,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        attention_dropout=0.0,
        initializer_range=0.05,
        pad_token_id=VOCABULARY.index(PAD),
        bos_token_id=VOCABULARY.index(BOS),
        eos_token_id=VOCABULARY.index(EOS),
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).float()
