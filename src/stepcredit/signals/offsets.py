"""Character offsets of sampled tokens: ids in, character ranges of the exact completion text out."""

from collections.abc import Sequence
from itertools import groupby
from typing import Protocol

from stepcredit.batch import Span
from stepcredit.errors import InputError
from stepcredit.signals.pieces import AUDIT, REPLACEMENT, Decode, Pieces

_WINDOW = 32  # tokens between two anchors, and the least context before a window
_AUDIT = AUDIT // _WINDOW  # every so many anchors, the whole prefix is decoded and compared


class Tokenizer(Protocol):
    """What `token_offsets` asks of a tokenizer; those of transformers have it."""

    def decode(self, token_ids: list[int], /, *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str:
        """The text of some token ids."""
        ...


def token_offsets(
    tokenizer: Tokenizer, token_ids: Sequence[int], text: str, *, skip_special_tokens: bool = True
) -> list[tuple[int, int]]:
    """The characters of ``text`` that each sampled token wrote.

    Sampled ids need not be the ids that encoding their text gives, so nothing is encoded here: prefixes of the ids
    are decoded, and the boundary after k ids is the furthest that any prefix of at most k ids agrees with the text

        boundary[k] = max over j <= k of len(common prefix of decode(ids[:j]) and text)

    Token k wrote ``[boundary[k], boundary[k + 1])``. When its prefix ends inside a character (decoding it shows other
    characters than the text has there), that character is its own as well, and every token that holds a part of a
    character has all of it. Decoding every prefix is quadratic, so a window is decoded instead: it starts at an
    anchor, a place at least 32 tokens back where a token and a character ended. This is exact when what a decoder
    writes for a token depends on those 32 tokens and on whether something was written before them: true of
    byte-level BPE, WordPiece and Unigram, and of byte fallback where its bytes are text. Every eighth anchor is
    compared with its whole decoded prefix; if one differs, or the windows do not end where the text does, the row is
    done again in the quadratic form.

    Most rows need none of that: where each token's own text, as decoded behind another token, joins to the text and
    no character is cut, those are the ranges (on the way, whole prefixes are compared now and then). The texts of
    single tokens are remembered with the tokenizer.

    Args:
        tokenizer: Decodes ids, as the tokenizers of transformers do.
        token_ids: The ids of one completion, as sampled. Shape: [tokens].
        text: The completion; must be exactly what ``token_ids`` decode to under ``skip_special_tokens`` without
            clean-up of spaces.
        skip_special_tokens: Whether ``text`` was decoded without special tokens.

    Returns:
        For each token ``(start, end)`` in characters. Both bounds never decrease, and together the ranges cover
        ``text``. Only tokens that hold parts of one character overlap.

    Raises:
        InputError: ``text`` is not what the ids decode to; the message names the first differing character.

    Degenerate cases:
        - No ids: an empty list (``text`` must be empty).
        - A token that writes nothing (a skipped special token, the leading space that a decoder drops): ``(s, s)``.
          Between two tokens that share a character it gets that character's range, since bounds never decrease.
        - Bytes that are not UTF-8: the U+FFFD in the text belongs to each token that holds bytes of it.
        - Byte fallback rewrites a whole run of byte tokens when it becomes valid or invalid. Where U+FFFD itself is
          in such a run, a token's range may reach over a neighboring token's; coverage and order still hold.

    Example:
        >>> class Bytes:
        ...     def decode(self, ids, *, skip_special_tokens, clean_up_tokenization_spaces):
        ...         return bytes(i for i in ids if i or not skip_special_tokens).decode(errors="replace")
        >>> token_offsets(Bytes(), [*"né".encode(), 0], "né")
        [(0, 1), (1, 2), (1, 2), (2, 2)]
    """
    ids = [int(token) for token in token_ids]

    def decode(some: list[int]) -> str:
        return tokenizer.decode(some, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)

    decoded = decode(ids)
    if decoded != text:
        at = _agreed(decoded, text)
        raise InputError(
            f"`text` must be exactly what `token_ids` decode to; got {text[at : at + 20]!r} where they decode to "
            f"{decoded[at : at + 20]!r}, from character {at} on. Keep the text that was decoded from these ids "
            f"(skip_special_tokens={skip_special_tokens}, clean_up_tokenization_spaces=False)."
        )
    return list(_offsets([ids], [text], decode, Pieces.of(tokenizer, skip_special_tokens=skip_special_tokens))[0])


def decoded_offsets(
    tokenizer: Tokenizer, token_ids: Sequence[list[int]], texts: Sequence[str]
) -> list[Sequence[tuple[int, int]]]:
    """`token_offsets` of many completions, whose texts are known to be what the ids decode to without special tokens.

    Args:
        tokenizer: Decodes ids.
        token_ids: The ids, ragged. Shape: [batch][tokens].
        texts: What it decoded them to, as `stepcredit.signals.decoding.decoded` does.

    Raises:
        InputError: A text is another.
    """

    def decode(some: list[int]) -> str:
        return tokenizer.decode(some, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    return _offsets(token_ids, texts, decode, Pieces.of(tokenizer, skip_special_tokens=True))


def _offsets(
    token_ids: Sequence[list[int]], texts: Sequence[str], decode: Decode, pieces: Pieces
) -> list[Sequence[tuple[int, int]]]:
    """`token_offsets` of texts that are said to be what the ids decode to; where the tokens join to them, they are."""
    rows = zip(token_ids, texts, pieces.joined(token_ids, texts, decode), strict=True)
    return [_windowed(ids, text, decode) if ranges is None else ranges for ids, text, ranges in rows]


def _windowed(ids: list[int], text: str, decode: Decode) -> list[tuple[int, int]]:
    """The ranges by decoded prefixes."""
    whole = decode(ids)
    if whole != text:
        raise InputError(f"`texts` must be what the ids decode to; got {text[:40]!r} for ids of {whole[:40]!r}.")
    ranges = _ranges(ids, text, decode, _WINDOW)
    if ranges is None:
        ranges = _ranges(ids, text, decode, len(ids) + 1)
    assert ranges is not None  # without a second anchor the last prefix is the whole, which equals the text
    return ranges


def policy_turns(offsets: Sequence[tuple[int, int]], policy_mask: Sequence[bool | int]) -> list[Span]:
    """The turns of a completion that an environment writes parts of: what the policy wrote, run by run.

    Args:
        offsets: The characters of each token, as `token_offsets` gives them. Shape: [tokens].
        policy_mask: True (or 1) where the policy wrote the token. Shape: [tokens].

    Returns:
        For each maximal run of policy tokens its characters, in order. A character that a run shares with a token of
        the environment is the environment's.

    Raises:
        InputError: The lengths differ.

    Degenerate cases:
        A run without characters (an end of sequence alone) is a turn without characters. No policy token: no turn.

    Example:
        >>> policy_turns([(0, 2), (2, 3), (3, 6), (6, 9), (9, 9)], [1, 1, 0, 1, 1])
        [Span(start=0, end=3), Span(start=6, end=9)]
    """
    if len(offsets) != len(policy_mask):
        raise InputError(
            f"`policy_mask` must have one entry a token; got {len(policy_mask)} for {len(offsets)} tokens."
        )
    turns: list[Span] = []
    taken = 0  # where the environment's characters end so far
    runs = groupby(zip(offsets, policy_mask, strict=True), key=lambda pair: bool(pair[1]))
    for mine, pairs in runs:
        ranges = [offset for offset, _ in pairs]
        start, end = ranges[0][0], ranges[-1][1]
        if mine:
            turns.append(Span(max(start, taken), max(end, taken)))
            continue
        taken = end
        if turns and turns[-1].end > start:
            turns[-1] = Span(min(turns[-1].start, start), start)
    return turns


def _ranges(ids: list[int], text: str, decode: Decode, window: int) -> list[tuple[int, int]] | None:
    """The ranges by windowed prefixes; None where a window contradicts the decoded whole."""
    ranges: list[tuple[int, int]] = []
    anchors = [0]  # places between tokens that are places between characters, too
    first, before, base = 0, "", 0  # windows start at token `first`, whose text up to the last anchor is `before`
    boundary, length, open_character = 0, 0, False
    low = high = 0
    for index, token in enumerate(ids):
        shown = decode(ids[first : index + 1])
        start, settled = boundary, before + text[base:boundary]
        was_open, open_character = open_character, True
        if shown.startswith(settled):
            rest = shown[len(settled) :]
            agreed = _agreed(rest, text[boundary : boundary + len(rest)])
            boundary += agreed
            open_character = agreed < len(rest)
        # An incomplete character that never completes agrees with the text at once (both are U+FFFD); a token that
        # adds to it shows less here than it does alone.
        if not was_open and text[start - 1 : start] == REPLACEMENT:
            alone = decode([token])
            start -= alone.startswith(REPLACEMENT) and len(alone) > len(shown) - length
        length = len(shown)
        low = max(low, start)
        high = max(high, min(boundary + open_character, len(text)))
        ranges.append((low, high))

        if not open_character and index + 1 - anchors[-1] >= window:
            if len(anchors) % _AUDIT == 0 and decode(ids[: index + 1]) != text[:boundary]:
                return None
            # The context must write something, or its window's first token would pass for the first of all.
            base = boundary
            for first in reversed(anchors):
                before = decode(ids[first : index + 1])
                if before:
                    break
            length = len(before)
            anchors.append(index + 1)
    return ranges if boundary == len(text) else None


def _agreed(left: str, right: str) -> int:
    """The number of characters that two texts share from the start."""
    shorter = min(len(left), len(right))
    if left[:shorter] == right[:shorter]:
        return shorter
    return next(index for index in range(shorter) if left[index] != right[index])
