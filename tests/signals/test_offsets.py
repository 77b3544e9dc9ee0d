"""Offsets against oracles that read the tokens' own strings and bytes, which the library never does."""

import random
import re
import time
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stepcredit.batch.rollouts import check_spans
from stepcredit.errors import InputError
from stepcredit.signals import offsets as module
from stepcredit.signals.decoding import decoded as decoded_batch
from stepcredit.signals.decoding import remember_decoded
from stepcredit.signals.offsets import decoded_offsets, token_offsets
from stepcredit.signals.pieces import Pieces

EOS, TOOL = "<eos>", "<tool>"
KINDS = ["byte_level", "word_piece", "word_piece_cleanup", "unigram", "byte_fallback"]
many = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
seeds = st.integers(0, 2**32 - 1)


def decoded(tokenizer, ids, skip=True):
    return tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)


def prefix_oracle(tokenizer, ids, text):
    """The documented definition, every prefix decoded; no sharing of a U+FFFD."""
    boundaries, opens = [0], []
    for k in range(1, len(ids) + 1):
        shown = decoded(tokenizer, ids[:k])
        agreed = 0
        while agreed < min(len(shown), len(text)) and shown[agreed] == text[agreed]:
            agreed += 1
        boundaries.append(max(boundaries[-1], agreed))
        opens.append(shown != text[: boundaries[-1]])
    return [
        (start, min(end + opened, len(text)))
        for start, end, opened in zip(boundaries, boundaries[1:], opens, strict=False)
    ]


def byte_values():
    """GPT-2's map from the letters of a byte-level vocabulary to bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + rank): b for rank, b in enumerate(others)}


def characters(data: bytes):
    """Byte ranges of the characters of ``data.decode(errors="replace")``."""
    position = 0
    while position < len(data):
        for size in range(1, 5):
            try:
                data[position : position + size].decode()
            except UnicodeDecodeError:
                continue
            break
        else:
            try:
                data[position : position + 4].decode()
            except UnicodeDecodeError as error:
                size = error.end - error.start
        yield position, min(position + size, len(data))
        position += size


def skipped(tokenizer):
    """The ids that decoding leaves out: an unknown token may be one of them without being in `all_special_ids`."""
    return {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}


def byte_oracle(tokenizer, ids):
    """Each token's bytes, then the characters that they touch. Special tokens: no bytes."""
    values, special = byte_values(), skipped(tokenizer)
    pieces = [
        b"" if token in special else bytes(map(values.get, tokenizer.convert_ids_to_tokens(token))) for token in ids
    ]
    ranges = list(characters(b"".join(pieces)))
    found, position = [], 0
    for piece in pieces:
        start, end = position, position + len(piece)
        touched = [i for i, (low, high) in enumerate(ranges) if low < end and start < high]
        # Between two tokens of one character a token without bytes touches it, too; elsewhere it is empty.
        complete = sum(high <= start for _, high in ranges)
        found.append((touched[0], touched[-1] + 1) if touched else (complete, complete))
        position = end
    return found


def string_oracle(tokenizer, ids, kind):
    """WordPiece and Metaspace: each token's own string, by the joining rule of its kind."""
    special = skipped(tokenizer)
    found, position, first = [], 0, True
    for token in ids:
        piece = tokenizer.convert_ids_to_tokens(token)
        if token in special:
            found.append((position, position))
            continue
        if kind == "unigram":
            piece = piece.replace("▁", "" if first and piece.startswith("▁") else " ", 1).replace("▁", " ")
        elif not first:
            piece = piece.removeprefix("##") if piece.startswith("##") else " " + piece
        first = False
        found.append((position, position + len(piece)))
        position += len(piece)
    return found


def check_sound(offsets, text):
    """Ranges are in order, inside the text, and leave no character out."""
    check_spans("offsets", 0, offsets, text)
    assert set(range(len(text))) == {c for start, end in offsets for c in range(start, end)}


def sampled(tokenizer, corpus, seed, kind="mixed"):
    """Ids as a policy might sample them: encoded text, random ids (cut characters), special tokens between."""
    rng = random.Random(seed)
    ids = []
    for _ in range(rng.randrange(1, 6)):
        text = rng.choice(corpus)
        start = rng.randrange(len(text) + 1)
        part = tokenizer.encode(text[start : start + rng.randrange(60)], add_special_tokens=False)
        if kind != "text" and rng.random() < 0.4:
            part = [rng.randrange(2, len(tokenizer)) for _ in range(rng.randrange(25))]
        if kind != "text" and rng.random() < 0.3:
            part = part[rng.randrange(len(part) + 1) :]
        if kind == "special":
            part.insert(rng.randrange(len(part) + 1), rng.choice(tokenizer.all_special_ids))
        ids += part
    return ids


@pytest.fixture(params=[3, 32])
def window(request, monkeypatch):
    """The window in use, and the smallest that is exact: a character of four tokens needs three before its last."""
    monkeypatch.setattr(module, "_WINDOW", request.param)
    return request.param


@many
@given(seed=seeds)
def test_byte_level_is_exact_even_for_bytes_that_are_no_text(tokenizers, corpus, window, seed):
    tokenizer = tokenizers["byte_level"]
    ids = sampled(tokenizer, corpus, seed)
    text = decoded(tokenizer, ids)
    offsets = token_offsets(tokenizer, ids, text)
    check_sound(offsets, text)
    assert offsets == byte_oracle(tokenizer, ids)


@many
@given(seed=seeds)
def test_random_bytes_one_a_token(tokenizers, window, seed):
    tokenizer = tokenizers["byte_level"]
    rng = random.Random(seed)
    # Few lead bytes and many continuation bytes: valid, cut and overlong characters, surrogates, U+FFFD itself.
    some = bytes([0xE4, 0xBD, 0xA0, 0xF0, 0x9F, 0x98, 0x80, 0xC3, 0xED, 0xEF, 0xBF, 0xBD, 0xFF, 0x61, 0x20])
    letters = {byte: letter for letter, byte in byte_values().items()}
    ids = tokenizer.convert_tokens_to_ids([letters[rng.choice(some)] for _ in range(rng.randrange(40))])
    text = decoded(tokenizer, ids)
    assert token_offsets(tokenizer, ids, text) == byte_oracle(tokenizer, ids)


@many
@given(seed=seeds)
def test_special_tokens_are_empty_where_they_stand(tokenizers, corpus, window, seed):
    tokenizer = tokenizers["byte_level"]
    ids = sampled(tokenizer, corpus, seed, "special")
    text = decoded(tokenizer, ids)
    offsets = token_offsets(tokenizer, ids, text)
    check_sound(offsets, text)
    if "\ufffd" not in text:  # inside one, bounds that never decrease leave no exact answer
        assert offsets == byte_oracle(tokenizer, ids)


@pytest.mark.parametrize("kind", ["word_piece", "unigram"])
@many
@given(seed=seeds)
def test_joining_rules(tokenizers, corpus, window, kind, seed):
    tokenizer = tokenizers[kind]
    ids = sampled(tokenizer, corpus, seed, "special")
    text = decoded(tokenizer, ids)
    assert token_offsets(tokenizer, ids, text) == string_oracle(tokenizer, ids, kind)


@pytest.mark.parametrize("kind", ["word_piece_cleanup", "byte_fallback"])
@many
@given(seed=seeds)
def test_windows_equal_the_definition(tokenizers, corpus, window, kind, seed):
    tokenizer = tokenizers[kind]
    ids = sampled(tokenizer, corpus, seed, "text" if kind == "byte_fallback" else "special")
    text = decoded(tokenizer, ids)
    offsets = token_offsets(tokenizer, ids, text)
    check_sound(offsets, text)
    if "\ufffd" not in text:
        assert offsets == prefix_oracle(tokenizer, ids, text)


@pytest.mark.parametrize("kind", KINDS)
@many
@given(seed=seeds, skip=st.booleans())
def test_any_ids_give_sound_offsets(tokenizers, corpus, window, kind, seed, skip):
    tokenizer = tokenizers[kind]
    ids = sampled(tokenizer, corpus, seed, "special")
    text = decoded(tokenizer, ids, skip)
    offsets = token_offsets(tokenizer, ids, text, skip_special_tokens=skip)
    assert len(offsets) == len(ids)
    check_sound(offsets, text)


def test_encoded_text_agrees_with_the_encoder(tokenizers, corpus):
    # Byte-level BPE alone decodes back to the text, so its encoder's own offsets are a third opinion.
    tokenizer = tokenizers["byte_level"]
    for text in corpus:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        assert token_offsets(tokenizer, encoded["input_ids"], text) == [tuple(o) for o in encoded["offset_mapping"]]


def test_by_hand_shared_characters(tokenizers):
    # "é" is C3 A9, the duck F0 9F A6 86: six one-byte tokens, "a" before, "." after, <eos> last.
    tokenizer = tokenizers["byte_level"]
    letters = {byte: letter for letter, byte in byte_values().items()}
    ids = tokenizer.convert_tokens_to_ids([letters[byte] for byte in "aé🦆.".encode()] + [EOS])
    expected = [(0, 1), (1, 2), (1, 2), (2, 3), (2, 3), (2, 3), (2, 3), (3, 4), (4, 4)]
    assert token_offsets(tokenizer, ids, "aé🦆.") == expected
    # With the end of sequence in the text, it has its five characters.
    assert token_offsets(tokenizer, ids, "aé🦆.<eos>", skip_special_tokens=False) == [*expected[:-1], (4, 9)]


def test_by_hand_cut_characters(tokenizers):
    # C3 without A9; then F0 9F (half a duck) and "x": one U+FFFD each, the second held by two tokens.
    tokenizer = tokenizers["byte_level"]
    letters = {byte: letter for letter, byte in byte_values().items()}
    ids = tokenizer.convert_tokens_to_ids([letters[byte] for byte in b"\xc3\xf0\x9fx\x9f"])
    assert token_offsets(tokenizer, ids, "\ufffd\ufffdx\ufffd") == [(0, 1), (1, 2), (1, 2), (2, 3), (3, 4)]


def test_by_hand_special_tokens_in_the_middle(tokenizers):
    tokenizer = tokenizers["byte_level"]
    letters = {byte: letter for letter, byte in byte_values().items()}
    ids = tokenizer.convert_tokens_to_ids([EOS, "a", TOOL, TOOL, "b", letters[0xC3], EOS, letters[0xA9], EOS])
    # The one inside "é" has its range: anything else would run backward for the token after it.
    expected = [(0, 0), (0, 1), (1, 1), (1, 1), (1, 2), (2, 3), (2, 3), (2, 3), (3, 3)]
    assert token_offsets(tokenizer, ids, "abé") == expected


def test_by_hand_leading_spaces(tokenizers):
    unigram, word_piece = tokenizers["unigram"], tokenizers["word_piece"]
    ids = unigram.convert_tokens_to_ids(["▁", "a", "▁", "s", EOS])
    assert token_offsets(unigram, ids, "a s") == [(0, 0), (0, 1), (1, 2), (2, 3), (3, 3)]
    ids = word_piece.convert_tokens_to_ids([EOS, "##a", "##a", "a", "a"])
    assert token_offsets(word_piece, ids, "##aa a a") == [(0, 0), (0, 3), (3, 4), (4, 6), (6, 8)]


class Counted:
    """A tokenizer that counts the tokens it is asked to decode."""

    def __init__(self, tokenizer):
        self.tokenizer, self.tokens = tokenizer, 0

    def decode(self, ids, **options):
        assert options == {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        self.tokens += len(ids)
        return self.tokenizer.decode(ids, **options)


def test_many_special_tokens_before_text(tokenizers):
    # A window whose context writes nothing would drop the space of the first token after it, and the row would be
    # done again: 700 prefixes of 350 tokens on average are 245,000 tokens more.
    counted = Counted(tokenizers["unigram"])
    middle = tokenizers["unigram"].convert_tokens_to_ids(["▁", "a"])
    ids = middle + [0] * 100 + middle * 300
    expected = [(0, 0), (0, 1)] + [(1, 1)] * 100 + [(i, i + 1) for i in range(1, 601)]
    assert token_offsets(counted, ids, "a" + " a" * 300) == expected
    assert counted.tokens < 80_000


def test_windows_start_between_characters(tokenizers):
    # Byte fallback reads a run of bytes as text or not at all: a window from inside a character would read nothing.
    counted = Counted(tokenizers["byte_fallback"])
    ids = tokenizers["byte_fallback"].convert_tokens_to_ids(["▁", "a"])
    ids += tokenizers["byte_fallback"].convert_tokens_to_ids([f"<0x{b:02X}>" for b in "🦆".encode()]) * 250
    expected = [(0, 0), (0, 1)] + [(i, i + 1) for i in range(1, 251) for _ in range(4)]
    assert token_offsets(counted, ids, "a" + "🦆" * 250) == expected
    assert counted.tokens < 100_000  # every prefix: 502,503


class Rewriter:
    """A decoder that no window can predict: once 999 is there, everything before it is in capitals."""

    def decode(self, ids, **_options):
        text = "".join(chr(i) for i in ids if i != 999)
        return text.upper() if 999 in ids else text


def test_a_decoder_that_looks_back_is_still_covered():
    ids = [*b"abcd" * 100, 999, *b"efg" * 100]
    check_sound(token_offsets(Rewriter(), ids, "ABCD" * 100 + "EFG" * 100), "ABCD" * 100 + "EFG" * 100)


class Hinge:
    """A decoder with the memory of its whole prefix: a token reads "b" where 100 tokens or more precede it."""

    def decode(self, ids, **_options):
        return "".join("b" * 2 if i >= 100 else "a" for i in range(len(ids)))


def test_windows_that_contradict_the_whole_are_done_again():
    # A window of 64 tokens reads "a" everywhere; only whole prefixes give two characters to the last 50.
    expected = [(i, i + 1) for i in range(100)] + [(100 + 2 * i, 102 + 2 * i) for i in range(50)]
    assert token_offsets(Hinge(), [0] * 150, "a" * 100 + "b" * 100) == expected


class Drifter:
    """A decoder whose prefixes of 200 to 399 tokens hold back one character, which no window sees or misses."""

    def decode(self, ids, **_options):
        return ("ab" * len(ids))[: 2 * len(ids) - (200 <= len(ids) < 400)]


def test_whole_prefixes_are_compared_on_the_way():
    # The windows end where the text does; only prefixes tell that token 199 wrote one character and 399 three.
    expected = [(2 * i - (200 <= i < 400), 2 * i + 2 - (199 <= i < 399)) for i in range(500)]
    assert token_offsets(Drifter(), [0] * 500, "ab" * 500) == expected


class Pairs:
    """Two characters a token, whatever the token."""

    def decode(self, ids, **_options):
        return "ab" * len(ids)


def test_work_is_about_linear():
    # Every prefix of 4,000 tokens would be 8,000,000 tokens.
    counted = Counted(Pairs())
    assert token_offsets(counted, range(4000), "ab" * 4000) == [(2 * i, 2 * i + 2) for i in range(4000)]
    assert counted.tokens < 300_000


def test_a_long_completion_takes_a_moment(tokenizers, corpus):
    tokenizer = tokenizers["byte_level"]
    ids = (tokenizer.encode("\n".join(corpus), add_special_tokens=False) * 8)[:4000]
    text = decoded(tokenizer, ids)
    start = time.process_time()
    offsets = token_offsets(tokenizer, ids, text)
    assert time.process_time() - start < 5  # about 0.2 s on one idle core
    assert offsets == byte_oracle_fast(tokenizer, ids)


def byte_oracle_fast(tokenizer, ids):
    """`byte_oracle` for long rows without special tokens."""
    values = byte_values()
    lengths = [len(tokenizer.convert_ids_to_tokens(token)) for token in ids]
    data = bytes(values[letter] for token in ids for letter in tokenizer.convert_ids_to_tokens(token))
    holder = [i for i, (low, high) in enumerate(characters(data)) for _ in range(low, high)]
    found, position = [], 0
    for length in lengths:
        found.append((holder[position], holder[position + length - 1] + 1))
        position += length
    return found


@pytest.mark.parametrize(
    ("text", "at"),
    [("abcx", 3), ("ab", 2), ("abcd", 3), ("", 0), (" abc", 0), ("ab\u0063\u0301", 3), ("Abc", 0)],
)
def test_drift_is_refused(tokenizers, text, at):
    tokenizer = tokenizers["byte_level"]
    ids = tokenizer.convert_tokens_to_ids(["a", "b", "c"])
    message = f"got {text[at:]!r} where they decode to {'abc'[at:]!r}, from character {at} on"
    with pytest.raises(InputError, match=re.escape(message)):
        token_offsets(tokenizer, ids, text)


def test_text_with_special_tokens_left_in_is_drift(tokenizers):
    tokenizer = tokenizers["byte_level"]
    ids = tokenizer.convert_tokens_to_ids(["a", EOS])
    with pytest.raises(InputError, match="from character 1 on"):
        token_offsets(tokenizer, ids, "a<eos>")
    with pytest.raises(InputError, match="from character 1 on"):
        token_offsets(tokenizer, ids, "a", skip_special_tokens=False)


def test_no_ids(tokenizers):
    assert token_offsets(tokenizers["unigram"], [], "") == []
    with pytest.raises(InputError):
        token_offsets(tokenizers["unigram"], [], "a")


@pytest.mark.parametrize("kind", ["mixed", "text", "special"])
def test_a_batch_is_decoded_as_row_by_row(tokenizers, corpus, kind):
    for tokenizer in tokenizers.values():
        rows = [sampled(tokenizer, corpus, seed, kind) for seed in range(6)]
        ids, texts = decoded_batch(tokenizer, rows)
        assert ids == rows
        assert texts == [decoded(tokenizer, row) for row in rows]
        for row, text, ranges in zip(ids, texts, decoded_offsets(tokenizer, ids, texts), strict=True):
            assert list(ranges) == token_offsets(tokenizer, row, text)


@settings(many, max_examples=15)
@given(seed=seeds)
def test_the_rows_of_a_batch_do_not_touch_each_other(tokenizers, corpus, seed):
    rng = random.Random(seed)
    for tokenizer in tokenizers.values():
        kinds = ["mixed", "text", "special", "random"]
        rows = [sampled(tokenizer, corpus, rng.random(), rng.choice(kinds)) * rng.choice([1, 1, 0, 9]) for _ in "12345"]
        texts = [decoded(tokenizer, row) for row in rows]
        expected = [token_offsets(Counted(tokenizer), row, text) for row, text in zip(rows, texts, strict=True)]
        for known in (Counted(tokenizer), tokenizer):  # of one nothing is known yet
            assert [list(ranges) for ranges in decoded_offsets(known, rows, texts)] == expected
        for other in (texts[2] + "x", texts[2][:-1], texts[2][:-1] + "~"):
            if other != texts[2]:
                with pytest.raises(InputError, match="`texts` must be what the ids decode to"):
                    decoded_offsets(tokenizer, rows, [*texts[:2], other, *texts[3:]])


def test_tokens_join_behind_a_silent_one(tokenizers):
    for tokenizer in tokenizers.values():
        ids = [tokenizer.eos_token_id, *tokenizer.encode("word for word", add_special_tokens=False)]
        (ranges,) = Pieces().joined([ids], [decoded(tokenizer, ids)], partial(decoded, tokenizer))
        assert ranges == token_offsets(tokenizer, ids, decoded(tokenizer, ids))


@many
@given(rows=st.lists(st.lists(st.integers(0, 7), max_size=12), max_size=4))
def test_tokens_may_write_any_character(rows):
    words = ["", "a", "\0", "b\0c", "\0\0", "\ud800", "\U0001f600x", "two words"]

    def decode(ids):
        return "".join(words[i] for i in ids)

    for row, found in zip(rows, Pieces().joined(rows, [*map(decode, rows)], decode), strict=True):
        expected = [(len(decode(row[:k])), len(decode(row[: k + 1]))) for k in range(len(row))]
        assert found == expected or (found is None and not decode(row))  # of silence alone nothing is known


def test_a_batch_without_tokens(tokenizers):
    tokenizer = next(iter(tokenizers.values()))
    assert decoded_offsets(tokenizer, [], []) == []
    text = decoded(tokenizer, [5])
    found = decoded_offsets(tokenizer, [[], [5], []], ["", text, ""])
    assert list(map(list, found)) == [[], token_offsets(tokenizer, [5], text), []]


def test_a_remembered_batch_is_known_by_its_ids_not_by_its_list(tokenizers):
    tokenizer = next(iter(tokenizers.values()))
    rows = [[5, 6, 7], [8, 9]]
    first = decoded_batch(tokenizer, rows)
    assert decoded_batch(tokenizer, [list(row) for row in rows])[1] is first[1]
    rows[1][0] = 10  # the caller's own list: what is remembered must not change with it
    ids, texts = decoded_batch(tokenizer, rows)
    assert ids == [[5, 6, 7], [10, 9]]
    assert texts[1] == decoded(tokenizer, [10, 9])
    assert first[0] == [[5, 6, 7], [8, 9]]
    assert decoded_batch(tokenizer, torch.tensor([[5, 6], [8, 9]])) == ([[5, 6], [8, 9]], [
        decoded(tokenizer, [5, 6]), decoded(tokenizer, [8, 9])
    ])  # fmt: skip


def test_a_batch_that_was_decoded_elsewhere_is_not_decoded_again(tokenizers):
    tokenizer = next(iter(tokenizers.values()))
    rows = [[5, 6, 7], [8, 9], [6]]
    true = [decoded(tokenizer, row) for row in rows]
    told = [true[0], "told", true[2]]
    remember_decoded(tokenizer, rows, told)
    assert decoded_batch(tokenizer, rows) == (rows, told)
    with pytest.raises(InputError, match="`texts` must be what the ids decode to; got 'told'"):
        decoded_offsets(tokenizer, rows, told)
    rows[1][0] = 10
    assert decoded_batch(tokenizer, rows)[1][1] == decoded(tokenizer, [10, 9])


@pytest.mark.parametrize("wrong", ["first", "last", "no text", "cleaned", "fewer"])
def test_what_was_not_decoded_so_is_decoded(tokenizers, wrong, monkeypatch):
    tokenizer = next(iter(tokenizers.values()))
    rows = [[11, 6, 7], [8, 9], [6]]
    true = [decoded(tokenizer, row) for row in rows]
    monkeypatch.setattr(tokenizer, "clean_up_tokenization_spaces", wrong == "cleaned")
    told = {"first": ["x", *true[1:]], "last": [*true[:2], "x"], "no text": [true[0], [{}], true[2]],
            "cleaned": [true[0], "x", true[2]], "fewer": true[:1]}[wrong]  # fmt: skip
    decoded_batch(tokenizer, [[5]])
    remember_decoded(tokenizer, rows, told)
    assert decoded_batch(tokenizer, rows)[1] == true


def test_a_tokenizer_that_decodes_in_its_own_way_is_asked(tokenizers):
    plain = next(iter(tokenizers.values()))

    class Loud(type(plain)):
        def decode(self, *args, **kwargs):
            found = super().decode(*args, **kwargs)
            return [text.upper() for text in found] if isinstance(found, list) else found.upper()

    loud = Loud(tokenizer_object=plain.backend_tokenizer)
    rows = [list(range(20, 60))]
    assert decoded_batch(loud, rows)[1] == [decoded_batch(plain, rows)[1][0].upper()]
