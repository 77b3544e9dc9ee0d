"""What a batch's ids decode to, decoded once for all who read it."""

import sys
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

_LAST: WeakKeyDictionary[Any, tuple[list[list[int]], list[str]]] = WeakKeyDictionary()


def decoded(tokenizer: Any, token_ids: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[str]]:
    """The completions of a batch as plain ids and as text, special tokens left out.

    The last batch of each tokenizer is remembered: a trainer's reward functions and its credit read the same one, and
    are given the same lists, which are to be read and not written to.

    Args:
        tokenizer: Decodes ids, as the tokenizers of transformers do.
        token_ids: The ids, ragged, as sampled. Shape: [batch][tokens].
    """
    last = _LAST.get(tokenizer) if can_be_remembered(tokenizer) else None
    if last is not None and all(type(row) is list for row in token_ids) and list(token_ids) == last[0]:
        return last
    ids = [list(map(int, row)) for row in token_ids]
    found = ids, _texts(tokenizer, ids)
    if can_be_remembered(tokenizer):
        _LAST[tokenizer] = found
    return found


def remember_decoded(tokenizer: Any, token_ids: list[list[int]], texts: Sequence[Any]) -> None:
    """Spares `decoded` a batch that somebody else has just decoded, special tokens left out.

    Nothing is remembered of what are no texts, of a tokenizer that cleans them up, or where the first and the last are
    not what the ids decode to.

    Args:
        tokenizer: What decoded them.
        token_ids: The ids, ragged. Shape: [batch][tokens].
        texts: The texts.
    """
    plain = getattr(tokenizer, "clean_up_tokenization_spaces", None) is False and {*map(type, texts)} == {str}
    if not plain or not can_be_remembered(tokenizer) or len(texts) != len(token_ids):
        return
    ends = [token_ids[0], token_ids[-1]]
    if {*map(type, ends[0])} <= {int} and _texts(tokenizer, ends) == [texts[0], texts[-1]]:
        _LAST[tokenizer] = [row[:] for row in token_ids], list(texts)


def _texts(tokenizer: Any, ids: list[list[int]]) -> list[str]:
    """What the ids decode to. Where Transformers would hand each row to its backend unchanged, that takes them at once.

    Transformers first looks through every id for tensors, which takes longer than decoding.
    """
    transformers = sys.modules.get("transformers")
    fast = getattr(transformers, "PreTrainedTokenizerFast", None)
    if fast is not None and isinstance(tokenizer, fast):
        names = ("decode", "_decode", "batch_decode")
        if all(getattr(type(tokenizer), x) is getattr(fast, x) and x not in vars(tokenizer) for x in names):
            return list(tokenizer.backend_tokenizer.decode_batch(ids, skip_special_tokens=True))
    return list(tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def can_be_remembered(tokenizer: Any) -> bool:
    """Whether something can be remembered by a tokenizer: it can be hashed and weakly referred to."""
    try:
        _LAST.get(tokenizer)
    except TypeError:
        return False
    return True
