"""What is wrong with a row beside its question and its answer is mended and counted."""

from collections import Counter

import pytest

from stepcredit.tasks.multihop.forms import question_of

NEGATIVE = "supporting fact with an index below 0: left out"
NOWHERE = "hop of a paragraph that is not there: kept without one"
UNTOLD = "hop without a question or an answer: all hops of its question left out"
PARTIAL = "evidence without all of its texts: left out"

MUSIQUE = {
    "question": "Who leads Oslo's twin?",
    "answer": "Bel",
    "paragraphs": [
        {"idx": 7, "title": "Rio", "paragraph_text": "Bel leads it.", "is_supporting": True},
        {"idx": 5, "title": "Oslo", "paragraph_text": "Its twin is Rio.", "is_supporting": True},
    ],
}
OWN = {
    "question": "Who leads Oslo's twin?",
    "answer": "Bel",
    "paragraphs": [{"title": "Oslo", "sentences": ["A city.", "Its twin is Rio."], "support": [1]}],
}
HOTPOT = {
    "question": "Who leads Oslo's twin?",
    "answer": "Bel",
    "context": [["Oslo", ["A city.", "Its twin is Rio."]], ["Oslo", ["Another."]], ["Rio", ["Bel leads it."]]],
    "supporting_facts": [["Oslo", 1], ["Rio", 0]],
}


def read(row):
    repairs = Counter()
    return question_of(row, "row 1", "x", repairs), dict(+repairs)


@pytest.mark.parametrize("pointer", [6, -1, "5", True, [5]])
def test_a_hop_of_a_paragraph_that_is_not_there_is_kept_without_one(pointer):
    steps = [
        {"question": "Oslo >> twin", "answer": "Rio", "paragraph_support_idx": pointer},
        {"question": "Who leads #1?", "answer": " Bel ", "paragraph_support_idx": 7},
        {"question": "Is it #2?", "answer": "Bel", "paragraph_support_idx": None},
    ]
    question, repairs = read({**MUSIQUE, "question_decomposition": steps})
    assert [hop.paragraph for hop in question.hops] == [None, 0, None]
    assert [hop.answer for hop in question.hops] == ["Rio", "Bel", "Bel"]
    assert repairs == {NOWHERE: 1}


def test_a_hop_of_ones_own_that_points_nowhere_is_kept_without_a_paragraph():
    steps = [{"question": "Twin?", "answer": "Rio", "paragraph": place} for place in (0, 1, -1)]
    question, repairs = read({**OWN, "decomposition": steps})
    assert [hop.paragraph for hop in question.hops] == [0, None, None]
    assert repairs == {NOWHERE: 2}


@pytest.mark.parametrize("bad", [{"answer": " "}, {"answer": None}, {"question": ""}, {"question": 3}])
def test_a_decomposition_with_a_gap_is_left_out_whole(bad):
    steps = [
        {"question": "Twin?", "answer": "Rio", "paragraph_support_idx": 5},
        {"question": "Who leads #1?", "answer": "Bel", "paragraph_support_idx": 7, **bad},
    ]
    question, repairs = read({**MUSIQUE, "question_decomposition": steps})
    assert question.hops == ()
    assert repairs == {UNTOLD: 1}
    assert len(question.gold) == 2


@pytest.mark.parametrize("bad", [["Rio", "leader", ""], ["Rio", None, "Bel"], {"subject": "Rio", "relation": "leader"}])
def test_an_evidence_triple_that_lacks_a_text_is_left_out(bad):
    question, repairs = read({**HOTPOT, "evidences": [bad, ["Rio", " leader", "Bel"]]})
    assert [(hop.question, hop.answer, hop.paragraph) for hop in question.hops] == [("Rio >> leader", "Bel", 2)]
    assert repairs == {PARTIAL: 1}


def test_a_supporting_fact_below_0_is_left_out():
    question, repairs = read({**HOTPOT, "supporting_facts": [["Oslo", 1], ["Oslo", -1], ["Rio", -2]]})
    # The fact that is kept is of a title that two paragraphs have, of which the first has the sentence alone.
    assert [paragraph.support for paragraph in question.paragraphs] == [(1,), (), ()]
    assert repairs == {NEGATIVE: 2}
    own = {**OWN, "paragraphs": [{**OWN["paragraphs"][0], "support": [-1, 1]}]}
    question, repairs = read(own)
    assert question.paragraphs[0].support == (1,)
    assert repairs == {NEGATIVE: 1}
