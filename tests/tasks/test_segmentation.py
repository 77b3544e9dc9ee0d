import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepcredit.errors import InputError
from stepcredit.tasks import SCHEMES, segment

texts = st.text() | st.text(alphabet=" \n\r\t.!?ab1<>$e.gDr。\u2028#", max_size=80)


def pieces(text, by, **options):
    return [text[start:end] for start, end in segment(text, by, **options)]


def options(by):
    return {"marker": "#"} if by == "marker" else {}


@settings(deadline=None)
@given(texts, st.sampled_from(SCHEMES))
def test_spans_cover_the_text_in_order_without_blank_steps(text, by):
    spans = segment(text, by, **options(by))
    position = 0
    for start, end in spans:
        assert start == position < end
        position = end
    assert position == len(text)
    if text.strip():
        assert all(text[start:end].strip() for start, end in spans)
    else:
        assert len(spans) == bool(text)


@settings(deadline=None)
@given(texts, st.sampled_from(["lines", "paragraphs", "marker"]))
def test_a_step_is_not_cut_again(text, by):
    for piece in pieces(text, by, **options(by)):
        assert pieces(piece, by, **options(by)) == [piece]


@settings(deadline=None)
@given(
    st.lists(st.text(alphabet="ab 1.", min_size=1).filter(str.strip), min_size=1), st.sampled_from(["\n", "\r\n", "\r"])
)
def test_lines_are_what_was_joined(lines, end):
    assert pieces(end.join(lines), "lines") == [line + end for line in lines[:-1]] + [lines[-1]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n\n ", [" \n\n "]),
        ("one", ["one"]),
        ("a\nb\n", ["a\n", "b\n"]),
        ("\n\na\n\n\nb", ["\n\na\n\n\n", "b"]),  # blank lines join the step before, leading ones the first
        ("a\r\nb\rc\nd", ["a\r\n", "b\r", "c\n", "d"]),
        ("a\u2028b\x0bc", ["a\u2028b\x0bc"]),  # no line ends of this scheme
        ("é\n数学\n", ["é\n", "数学\n"]),
    ],
)
def test_lines(text, expected):
    assert pieces(text, "lines") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("a\nb\n\nc", ["a\nb\n\n", "c"]),
        ("a\n \t\n\n\nb\n\n", ["a\n \t\n\n\n", "b\n\n"]),
        ("\n\na", ["\n\na"]),
        ("a\r\n\r\nb", ["a\r\n\r\n", "b"]),
        ("a\nb\nc", ["a\nb\nc"]),
    ],
)
def test_paragraphs(text, expected):
    assert pieces(text, "paragraphs") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("He has 3.5 kg. She pays $1.24. Done", ["He has 3.5 kg. ", "She pays $1.24. ", "Done"]),
        ("Use e.g. Dr. Who vs. Mr. Spock. Yes!", ["Use e.g. Dr. Who vs. Mr. Spock. ", "Yes!"]),
        ("At 5 p.m. in the U.S. it is so. Ok?", ["At 5 p.m. in the U.S. it is so. ", "Ok?"]),
        ("So <<3. 4 = 5>>5. Then", ["So <<3. 4 = 5>>5. ", "Then"]),
        ("So <<3. Then 4. End", ["So <<3. ", "Then 4. ", "End"]),  # an unclosed mark shields nothing
        ("A >> b. C << d. E >> f. G", ["A >> b. ", "C << d. E >> f. ", "G"]),
        ('He said "no." Then (yes.) Left', ['He said "no." ', "Then (yes.) ", "Left"]),
        ("Thus $x = 3.$ Next", ["Thus $x = 3.$ ", "Next"]),
        ("Wait... what?! Ok", ["Wait... ", "what?! ", "Ok"]),
        ("1. Add two. \n2. Stop", ["1. Add two. \n", "2. Stop"]),
        ("The answer is 2. Then", ["The answer is 2. ", "Then"]),
        ("Take the point A. Then B.", ["Take the point A. ", "Then B."]),
        ("no period\nbut lines", ["no period\n", "but lines"]),
        ("一加一等于二。对吗\uff1f是", ["一加一等于二。", "对吗\uff1f", "是"]),
        ("a.  \n\n b.", ["a.  \n\n", " b."]),
    ],
)
def test_sentences(text, expected):
    assert pieces(text, "sentences") == expected


@pytest.mark.parametrize(
    ("text", "marker", "expected"),
    [
        ("a<s>b<s>", "<s>", ["a<s>", "b<s>"]),
        ("<s>a<s><s> b", "<s>", ["<s>a<s><s>", " b"]),  # a step of markers alone joins its neighbor
        ("a.b", ".", ["a.", "b"]),  # literal, no pattern
        ("ab", "x", ["ab"]),
        ("<s> <s>", "<s>", ["<s> <s>"]),
        ("aaaa b", "aa", ["aaaa b"]),
    ],
)
def test_marker(text, marker, expected):
    assert pieces(text, "marker", marker=marker) == expected


@pytest.mark.parametrize("by", SCHEMES)
@pytest.mark.parametrize("unit", [".", "\n", " ", "<<", "<<.", ".)", "<< . >> ", "\n ", "#", "。", "e.g. ", "1. "])
def test_time_is_linear_in_hostile_text(by, unit):
    start = time.thread_time()
    segment(unit * (200_000 // len(unit)), by, **options(by))
    assert time.thread_time() - start < 3.0  # milliseconds if linear; a quadratic scan takes minutes


def test_schemes_and_markers_are_checked():
    with pytest.raises(InputError, match="`by` must be one of lines, paragraphs, sentences, marker; got 'words'"):
        segment("a", "words")
    for by, marker in (("marker", None), ("marker", ""), ("lines", "x")):
        with pytest.raises(InputError, match="`marker` must be a non-empty text"):
            segment("a", by, marker=marker)
