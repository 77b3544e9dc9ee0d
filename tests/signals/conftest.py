"""Real tokenizers, trained here on real text, behind the interface that policies have."""

import gzip
import json
import os
from pathlib import Path

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

DATA = Path(__file__).parents[2] / "../shared/data"
EOS, TOOL = "<eos>", "<tool>"
EMBEDDED = [
    "Janet sells 16 - 3 - 4 = <<16-3-4=9>>9 duck eggs a day.\nShe makes 9 * 2 = $<<9*2=18>>18 every day.\nA: 18",
    "Step 1: isolate x.\r\n\r\nStep 2: x = 7, don't forget the sign!\r\n\tSo  it's -7 ?\n\n\n",
    "Zuerst gilt: größer als ½. Ça va? Où est l'été… Zażółć gęślą jaźń; Приве́т, мир.",
    "第一步、先算三加四等于七。\n第二步、七乘以二得十四。答案是十四。",
    "まず、りんごは三つあります。それから二つ食べました。残りは一つです。",
    "e\u0301 a\u0308 n\u0303 o\u0302\u0323 and \u1100\u1161\u11a8 next to \u0939\u093f\u0928\u094d\u0926\u0940",
    "\u200b\u00a0 no width and no break\u3000wide \u2028 line",
    "🦆🦆 plus 🥚 is 👩‍👩‍👧‍👦, flag 🇩🇪, hand 👍🏽, \U0001d538\U0001d553\U0001d554 𒀀 \U0001f9ee done \ufffd.",
    "",
]


def gsm8k(name: str, rows: int) -> list[dict[str, object]]:
    path = DATA / "gsm8k" / name
    if not path.exists():
        pytest.skip("the data folder is absent: no gsm8k")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for _, line in zip(range(rows), lines, strict=False)]


class Shelf(dict[str, object]):
    """Tokenizers by kind, whose vocabulary a failing test does not print."""

    def __repr__(self) -> str:
        return f"Shelf({', '.join(self)})"


class Corpus(list[str]):
    """Texts that a failing test does not print in full."""

    def __repr__(self) -> str:
        return f"Corpus of {len(self)} texts"


@pytest.fixture(scope="session", params=["embedded", "gsm8k"])
def corpus(request) -> Corpus:
    """Completions to train tokenizers on and to project: embedded ones everywhere, GSM8K's where it is."""
    if request.param == "embedded":
        return Corpus(EMBEDDED)
    return Corpus(EMBEDDED + [row["answer"] for row in gsm8k("train.jsonl.gz", 300)])


def _byte_level(corpus):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return backend, trainers.BpeTrainer(
        vocab_size=360, initial_alphabet=alphabet, special_tokens=[EOS, TOOL], show_progress=False
    )


def _word_piece(corpus, cleanup=False):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=cleanup)
    return backend, trainers.WordPieceTrainer(vocab_size=600, special_tokens=[EOS, TOOL, "[UNK]"], show_progress=False)


def _word_piece_cleanup(corpus):
    return _word_piece(corpus, cleanup=True)


def _unigram(corpus):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return backend, trainers.UnigramTrainer(
        vocab_size=400, special_tokens=[EOS, TOOL, "<unk>"], unk_token="<unk>", show_progress=False
    )


def _byte_fallback(corpus):
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    plain = "".join(sorted({c for text in corpus for c in text if c.isascii()}))
    return backend, trainers.BpeTrainer(
        vocab_size=450,
        limit_alphabet=len(plain) + 1,
        special_tokens=[EOS, TOOL, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )


KINDS = {
    "byte_level": _byte_level,
    "word_piece": _word_piece,
    "word_piece_cleanup": _word_piece_cleanup,
    "unigram": _unigram,
    "byte_fallback": _byte_fallback,
}


@pytest.fixture(scope="session")
def tokenizers(corpus):
    """Each kind of tokenizer, with ``<eos>`` and ``<tool>`` as special tokens."""
    transformers = pytest.importorskip("transformers")
    made = Shelf()
    for kind, make in KINDS.items():
        backend, trainer = make(corpus)
        backend.train_from_iterator(corpus, trainer)
        if kind == "byte_fallback":
            # Byte tokens are ordinary tokens: only the ends of turns are special.
            state = json.loads(backend.to_str())
            state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in (EOS, TOOL)]
            backend = type(backend).from_str(json.dumps(state))
        made[kind] = transformers.PreTrainedTokenizerFast(
            tokenizer_object=backend, eos_token=EOS, extra_special_tokens=[TOOL]
        )
    return made
