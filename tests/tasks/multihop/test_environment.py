"""The environment: an answer for whatever a model writes, within its budgets, in a frame that nothing breaks."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepcredit.errors import InputError, StepCreditWarning
from stepcredit.tasks.multihop.environment import (
    CUT,
    EMPTY,
    FAILED,
    INFORMATION,
    INFORMATION_END,
    LONG,
    LONGEST_QUERY,
    MESSAGES,
    NOTHING,
    REPEATED,
    SPENT,
    SearchEnvironment,
    frame,
    words,
)
from stepcredit.tasks.multihop.question import Paragraph
from tasks.searched import COUNTS, OSLO, PARAGRAPHS, RIO, environment


class Down:
    """Fails as often as it is told, then finds Oslo."""

    def __init__(self, times: int) -> None:
        self.times = times

    def search(self, query: str, k: int) -> list[Paragraph]:  # noqa: ARG002
        self.times -= 1
        if self.times >= 0:
            raise ConnectionError("refused")
        return [OSLO]


def test_a_result_is_the_paragraphs_one_under_another() -> None:
    here = environment(OSLO, RIO)
    result = "# Oslo\nThe mayor of Oslo is Bel. Its twin is Rio.\n# Rio\nA city in Brazil.\n"
    assert here.search("mayor") == result
    assert here.reply("Hm. <search>twin</search>") == f"\n<information>\n{result}</information>\n"
    assert here.searches_used == 2
    assert environment(OSLO, RIO, k=1).search("mayor") == OSLO.render()  # a retriever may bring too many


@pytest.mark.parametrize(
    ("query", "want"),
    [
        ("", EMPTY),
        (" \t\r\n\u2003", EMPTY),
        ("\x00\x1b\u200b\ufeff \ud800", EMPTY),
        ("x" * (LONGEST_QUERY + 1), LONG),
        ("y " * LONGEST_QUERY, LONG),
        (None, EMPTY),  # a tool call may carry what its schema forbids
    ],
)
def test_what_cannot_be_searched(query: str, want: str) -> None:
    here = environment(OSLO)
    assert here.search(query) == f"{want}\n"
    assert here.searches_used == 1
    assert here._retriever.queries == []


class Contrary:
    """Has neither a truth nor a text."""

    def __init__(self, method: str) -> None:
        self.method = method

    def __bool__(self) -> bool:
        if self.method == "bool":
            raise ValueError("neither")
        return True

    def __str__(self) -> str:
        return 7 if self.method == "no text" else str(1 / 0)


def nested(depth: int) -> list:
    found: list = []
    for _ in range(depth):
        found = [found]
    return found


@pytest.mark.parametrize(
    "make",
    [
        lambda: 10**5000,  # more digits than Python writes
        lambda: nested(100_000),
        lambda: Contrary("bool"),
        lambda: Contrary("str"),
        lambda: Contrary("no text"),
    ],
    ids=["digits", "nested", "no truth", "raises", "no text"],
)
def test_what_cannot_be_written_is_too_long(make: Callable[[], Any]) -> None:
    here = environment(OSLO)
    assert here.search(make()) == f"{LONG}\n"
    assert (here.searches_used, here.failures, here._retriever.queries) == (1, 0, [])
    assert here.search("mayor") == OSLO.render()


@pytest.mark.parametrize(
    ("query", "searched"),
    [
        ("  mayor \n of\tOslo ", "mayor of Oslo"),
        ("a\x00b\x1b[31mc", "a b [31mc"),
        ("Tromsø 東京 🎉", "Tromsø 東京 🎉"),
        ("<answer>Oslo</answer>", "<answer>Oslo</answer>"),
        ("x" * LONGEST_QUERY, "x" * LONGEST_QUERY),
        (7, "7"),
        (["Oslo"], "['Oslo']"),
    ],
)
def test_what_the_retriever_is_asked(query: str, searched: str) -> None:
    here = environment(OSLO)
    assert here.search(query) == OSLO.render()
    assert here._retriever.queries == [searched]


def test_ten_megabytes_are_answered_at_once() -> None:
    here = environment(Paragraph("Long", ("word " * 2_000_000,)), tokens=40)
    begun = time.perf_counter()
    for query in ("a" * 10_000_000, "<search>" * 1_250_000, " " * 10_000_000, "\x00" * 10_000_000):
        assert here.search(query).strip() in (LONG, EMPTY)
        assert here.reply(f"<search>{query}</search>") in (frame(f"{LONG}\n"), frame(f"{EMPTY}\n"))
    assert time.perf_counter() - begun < 20  # a matter of milliseconds; quadratic would be hours


def test_a_huge_result_is_measured_a_few_times() -> None:
    measured: list[int] = []

    def count(text: str) -> int:
        measured.append(len(text))
        return words(text)

    here = environment(Paragraph("Long", ("word " * 200_000,)), tokens=500, count=count)
    measured.clear()
    assert words(here.search("long")) == 500
    assert sum(measured) < 1_000_000 + 40 * 5_000  # the whole once, then lengths near the limit


def test_the_same_query_again() -> None:
    here = environment(OSLO)
    assert here.search("Mayor of OSLO") == OSLO.render()
    assert here.search("  mayor\nof oslo") == f"{REPEATED}\n"
    assert here.search("mayor of oslo?") == OSLO.render()
    assert here.search("STRASSE") == OSLO.render()
    assert here.search("straße") == f"{REPEATED}\n"
    assert here.searches_used == 5
    assert environment().search("mayor") == f"{NOTHING}\n"


def test_the_budget() -> None:
    here = environment(OSLO, searches=2)
    assert [here.search(query) for query in ("a", "a")] == [OSLO.render(), f"{REPEATED}\n"]
    assert here.reply("<search>b</search>") == frame(f"{SPENT}\n")
    assert here.reply("<search>b</search>") is None
    assert here.search("b") == f"{SPENT}\n"  # a tool always has an answer
    assert here.searches_used == 2
    assert here._retriever.queries == ["a"]
    none = environment(OSLO, searches=0)
    assert (none.search("a"), none.reply("<search>a</search>"), none.searches_used) == (f"{SPENT}\n", None, 0)


def test_a_retriever_that_fails_is_told_counted_and_may_be_asked_again() -> None:
    here = SearchEnvironment(Down(2), k=1, searches=3, result_tokens=50)
    for failures in (1, 2):
        with pytest.warns(StepCreditWarning, match="ConnectionError: refused"):
            assert here.search("mayor") == f"{FAILED}\n"
        assert here.failures == failures
    assert here.search("mayor") == OSLO.render()
    assert here.searches_used == 3
    junk = environment(*["no paragraph"])
    with pytest.warns(StepCreditWarning, match="AttributeError"):
        assert junk.search("mayor") == f"{FAILED}\n"


@pytest.mark.parametrize(
    ("turn", "searched"),
    [
        ("<search>mayor</search>", "mayor"),
        ("I think.\n<search> mayor </search>\n", "mayor"),
        ("<search>mayor</search>.\n", "mayor"),
        ("<search>mayor</search><", "mayor"),
        ("<search>one</search> then <search>two</search>", "two"),
        ("<search>one <search>two</search>", "two"),
        ("<search>one <search>two</search></search>", "two"),
        ("<search>one</search> then </search>", "one"),
        ("mayor</search>", ""),
        ("</search><search>", None),
        ("<search>mayor", None),
        ("<search>mayor</search> I know: <answer>Bel</answer>", None),
        ("<search>mayor</search> 東", None),
        ("<SEARCH>mayor</SEARCH>", None),
        ("mayor", None),
        ("", None),
    ],
)
def test_the_turn_that_is_a_search(turn: str, searched: str | None) -> None:
    here = environment(OSLO)
    reply = here.reply(turn)
    if searched is None:
        assert reply is None
        assert here.searches_used == 0
    else:
        assert reply == frame(OSLO.render() if searched else f"{EMPTY}\n")
        assert here._retriever.queries == [searched] * bool(searched)


WRITTEN = st.text(max_size=30) | st.lists(
    st.sampled_from(["<search>", "</search>", "<answer>", INFORMATION, INFORMATION_END, "Oslo", " ", "\n"]), max_size=8
).map("".join)  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.tuples(WRITTEN, st.booleans(), st.none() | st.integers(-5, 80)), max_size=8),
    PARAGRAPHS, st.sampled_from(COUNTS), st.integers(0, 4),
)  # fmt: skip
def test_whatever_is_written_is_answered_within_the_budgets(
    turns: list[tuple[str, bool, int | None]], found: list[Paragraph], count, searches: int
) -> None:
    tokens = max(count(f"{text}\n") for text in (*MESSAGES, CUT)) + 9
    here = environment(*found, searches=searches, tokens=tokens, count=count)
    for written, by_tool, room in turns:
        before = here.searches_used
        if by_tool:
            answer = here.search(written)
            assert count(answer) <= tokens
        else:
            observation = here.reply(written, room)
            if observation is None:
                assert here.searches_used == before
                continue
            assert room is None or count(observation) <= room
            assert observation.startswith(f"\n{INFORMATION}\n")
            assert observation.endswith(f"{INFORMATION_END}\n")
            answer = observation[len(INFORMATION) + 2 : -len(INFORMATION_END) - 1]
        assert "<" not in answer
        assert ">" not in answer
        assert answer.endswith("\n")
        answer.encode()  # a tokenizer can read it
        assert before <= here.searches_used <= min(searches, before + 1)
        lines = answer.split("\n")[:-1]
        assert lines[0].startswith("# ") or lines[0] in (*MESSAGES, CUT)
        if lines[0].startswith("# "):  # titles and texts alternate, whatever a text begins with
            assert all(line.startswith("#") or line == CUT for line in lines[::2])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"k": 0}, "`k`"),
        ({"searches": -1}, "`searches`"),
        ({"tokens": 4}, "`result_tokens` must hold the longest message, 5 tokens; got 4"),
    ],
)
def test_options_out_of_range(options: dict[str, int], named: str) -> None:
    with pytest.raises(InputError, match=named):
        environment(OSLO, **options)
