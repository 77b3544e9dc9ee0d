"""What is left of a result that is too long: as many of its words as fit, and a mark."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepcredit.tasks.multihop.environment import CUT, MESSAGES, NOTHING, frame, neutral, words
from stepcredit.tasks.multihop.question import Paragraph
from tasks.searched import COUNTS, OSLO, PARAGRAPHS, RIO, environment


@pytest.mark.parametrize(
    ("tokens", "want"),
    [  # 2 + 10 words of Oslo, 2 + 4 of Rio, and the mark counts as one
        (18, "# Oslo\nThe mayor of Oslo is Bel. Its twin is Rio.\n# Rio\nA city in Brazil.\n"),
        (17, "# Oslo\nThe mayor of Oslo is Bel. Its twin is Rio.\n# Rio\nA city [cut]\n"),
        (16, "# Oslo\nThe mayor of Oslo is Bel. Its twin is Rio.\n# Rio\nA [cut]\n"),
        (15, "# Oslo\nThe mayor of Oslo is Bel. Its twin is Rio.\n[cut]\n"),  # no title without a text
        (13, "# Oslo\nThe mayor of Oslo is Bel. Its twin is Rio.\n[cut]\n"),
        (12, "# Oslo\nThe mayor of Oslo is Bel. Its twin is [cut]\n"),
        (5, "# Oslo\nThe mayor [cut]\n"),
    ],
)
def test_a_long_result_loses_words_from_its_end(tokens: int, want: str) -> None:
    assert environment(OSLO, RIO, tokens=tokens).search("mayor") == want


def test_a_result_without_room_for_one_word_of_text() -> None:
    here = environment(Paragraph("A title of five words", ("Text.",)), tokens=6)
    assert here.search("title") == f"{CUT}\n"


def test_a_cut_loses_a_word_whatever_counts() -> None:
    here = environment(OSLO, tokens=10, count=lambda text: words(text) - 9 * (CUT in text))
    assert here.search("mayor") == "# Oslo\nThe mayor of Oslo is Bel. Its twin is [cut]\n"


def naive_cut(result: str, fits: Callable[[str], bool]) -> str:
    """Word after word goes, and a last line that is a title goes too, until it fits."""
    if fits(result):
        return result
    left = result
    while left.strip():
        left = left.rstrip()
        while left and not left[-1].isspace():
            left = left[:-1]
        shown = left.rstrip()
        if shown.count("\n") % 2 == 0:  # the last line left is a title
            shown = shown.rpartition("\n")[0]
            shown += "\n" if shown else ""
        else:
            shown += " "
        if fits(f"{shown}{CUT}\n"):
            return f"{shown}{CUT}\n"
    return f"{CUT}\n"


@settings(deadline=None, max_examples=300)
@given(PARAGRAPHS, st.sampled_from(COUNTS), st.integers(0, 60), st.integers(0, 120))
def test_a_cut_keeps_as_much_as_fits(found: list[Paragraph], count, over: int, room: int) -> None:
    tokens = max(count(f"{text}\n") for text in (*MESSAGES, CUT)) + over
    full = "".join(neutral(paragraph.render()) for paragraph in found) or f"{NOTHING}\n"
    want = naive_cut(full, lambda text: count(text) <= tokens)
    make = {"tokens": tokens, "count": count, "k": 4}
    assert environment(*found, **make).search("a") == want
    reply = environment(*found, **make).reply("<search>a</search>", room)
    if count(frame(f"{CUT}\n")) > room:
        assert reply is None
    elif want.strip() in MESSAGES:
        assert reply == frame(want if count(frame(want)) <= room else f"{CUT}\n")
    else:
        assert reply == frame(naive_cut(want, lambda text: count(frame(text)) <= room))
