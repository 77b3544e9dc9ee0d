r"""The built-in tiny policies: Llama-type models from a config, each with the exact tokenizer of a built-in task.

`ARITHMETIC`: a number is its digits; a label (``b:``) and ``answer: `` are one token each, so a step modulo 10 is
seven tokens. `MULTIHOP`: a word of the world is one token together with the space before it, a tag is one token.
The models are not of the Qwen2 type because `AutoTokenizer` replaces any tokenizer beside a Qwen2 model by its own.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from stepcredit.errors import MissingExtraError
from stepcredit.tasks.arithmetic import LABELS
from stepcredit.tasks.multihop import world
from stepcredit.tasks.multihop.environment import CUT, INFORMATION, INFORMATION_END, MESSAGES, SEARCH, SEARCH_END

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
POSITIONS = 512


@dataclass(frozen=True)
class Form:
    """What a tiny policy is made of.

    Attributes:
        words: The vocabulary after the four special tokens, ids in this order.
        pattern: A regular expression that cuts a text into words, every character in one.
        layers: Transformer layers of width 64.
        theta: Base of the rotary positions; a small one tells near positions apart better.
    """

    words: tuple[str, ...]
    pattern: str
    layers: int
    theta: float

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """All tokens, ids in order."""
        return (PAD, BOS, EOS, UNK, *self.words)


def _words(texts: Iterable[str], pattern: str) -> tuple[str, ...]:
    """The words of some texts, each once, in order."""
    return tuple(dict.fromkeys(word for text in texts for word in re.findall(pattern, text)))


_WORDS = r"</?[a-z]+>|\[cut\]| ?[A-Za-z]+|[\s\S]"
_SAID = (
    SEARCH, SEARCH_END, f"\n{INFORMATION}\n", INFORMATION_END, "<answer>", "</answer>",
    "Question: Who is the", "Question: What is the", "# The of is. The?", f" {CUT}", *MESSAGES,
    *(f" {relation}" for table in world.RELATIONS.values() for relation in table),
    *(f" {name}" for name in world.KIND),
)  # fmt: skip

ARITHMETIC = Form((*"0123456789+-*=\n", *(f"{label}:" for label in LABELS), "answer: "),
                  r"answer: |[a-z]:|[\s\S]", layers=2, theta=10000.0)  # fmt: skip
MULTIHOP = Form(_words(_SAID, _WORDS), _WORDS, layers=4, theta=100.0)
"""Four layers, since a hop is a look-up whose key is found by another; theta at 10000 was learnt more slowly."""


def tiny_tokenizer(form: Form = ARITHMETIC) -> Any:
    r"""A fast tokenizer of a form's words, in that order.

    Text made of the vocabulary decodes back exactly. ``tokenizer(text)`` starts with ``<bos>``; with
    ``add_special_tokens=False`` it does not.

    Args:
        form: Of which task.

    Returns:
        The tokenizer, of Transformers' general fast class: `AutoTokenizer` loads it from a saved folder.

    Raises:
        MissingExtraError: Transformers is not installed.

    Degenerate cases:
        A word outside the vocabulary becomes ``<unk>`` (a character is a word where no longer one begins), and does
        not decode back.

    Example:
        >>> tokenizer = tiny_tokenizer()
        >>> tokenizer.convert_ids_to_tokens(tokenizer("a:3b:+5\n")["input_ids"])
        ['<bos>', 'a:', '3', 'b:', '+', '5', '\n']
        >>> tokenizer.decode(tokenizer("answer: 8\n")["input_ids"], skip_special_tokens=True)
        'answer: 8\n'
        >>> tokenizer = tiny_tokenizer(MULTIHOP)
        >>> tokenizer.convert_ids_to_tokens(tokenizer("<search> seat of Quvex</search>")["input_ids"])
        ['<bos>', '<search>', ' seat', ' of', ' Quvex', '</search>']
    """
    try:
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
        from transformers import PreTrainedTokenizerFast
    except ImportError:
        raise MissingExtraError("transformers", "trl", "make a tokenizer") from None
    ids = {word: index for index, word in enumerate(form.vocabulary)}
    words = Tokenizer(models.WordLevel(ids, unk_token=UNK))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(form.pattern), behavior="isolated")
    words.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, ids[BOS])])
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


def tiny_model(seed: int = 0, form: Form = ARITHMETIC) -> Any:
    """A model with random weights, float32: layers of width 64 with 2 query heads and 1 key-value head.

    Args:
        seed: Chooses the weights; torch's own random state is left alone.
        form: Of which task.

    Returns:
        A `LlamaForCausalLM` with tied embeddings for the tokens of `tiny_tokenizer`.

    Raises:
        MissingExtraError: Transformers is not installed.

    Example:
        >>> tiny_model().num_parameters(), tiny_model(form=MULTIHOP).num_parameters()
        (101568, 204544)
    """
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError:
        raise MissingExtraError("transformers", "trl", "make a model") from None
    import torch

    vocabulary = form.vocabulary
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        num_hidden_layers=form.layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=192,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": form.theta},
        attention_dropout=0.0,
        initializer_range=0.05,
        pad_token_id=vocabulary.index(PAD),
        bos_token_id=vocabulary.index(BOS),
        eos_token_id=vocabulary.index(EOS),
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).float()
