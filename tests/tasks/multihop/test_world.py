import hashlib
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepcredit.errors import InputError
from stepcredit.tasks import MultiHop
from stepcredit.tasks.multihop.tutor import CLEAN, Tutor
from stepcredit.tasks.multihop.world import KIND, NAMES, RELATIONS, World

FACT = re.compile(r"The (\w+) of (\w+) is (\w+)\.")
seeds = st.integers(0, 2**70)


def stated(text):
    """The facts in a text, read by a pattern of the test's own."""
    return {(relation, entity): value for relation, entity, value in FACT.findall(text)}


@settings(deadline=None, max_examples=50)
@given(seeds, st.integers(4, 16))
def test_a_world_is_consistent(seed, size):
    world = World(seed, size)
    facts = stated(" ".join(paragraph.text for paragraph in world.paragraphs))
    assert sum(len(table) for table in world.facts.values()) == len(facts)
    for (relation, entity), value in facts.items():
        assert RELATIONS[KIND[entity]][relation] == KIND[value]
        assert value != entity
        if relation == "spouse":
            assert facts["spouse", value] == entity
        if relation in ("teacher", "region"):
            at, steps = value, 0
            while (relation, at) in facts:  # the way up ends before it can come round
                at, steps = facts[relation, at], steps + 1
                assert steps <= size
                assert at != entity
    missing = 2 * 1 + size % 2  # the first teacher, the largest region, and one without a spouse
    assert len(facts) == size * sum(map(len, RELATIONS.values())) - missing


@settings(deadline=None, max_examples=100)
@given(seeds, st.integers(1, 4), st.integers(4, 8), st.integers(1, 4), st.integers(0, 9))
def test_a_question_is_answered_by_its_own_paragraphs_and_by_nothing_shorter(seed, hops, paragraphs, facts, number):
    question = World(seed).question(hops=hops, paragraphs=paragraphs, facts=facts, number=number)
    *relations, start = re.fullmatch(r"Wh(?:o|at) is the (.*)\?", question.question)[1].split(" of ")
    relations = [relation.removeprefix("the ") for relation in relations]
    shown = stated(" ".join(paragraph.text for paragraph in question.paragraphs))
    way = [start]
    for relation in reversed(relations):
        way.append(shown[relation, way[-1]])
    assert (way[-1],) == question.answers
    assert len(set(way)) == len(way) == hops + 1
    assert question.question.startswith("Who") == (KIND[way[-1]] == "person")
    assert [hop.answer for hop in question.hops] == way[1:]
    assert [question.paragraphs[hop.paragraph].title for hop in question.hops] == way[:-1]
    assert {paragraph.title for paragraph in question.gold} == set(way[:-1])
    assert len({paragraph.title for paragraph in question.paragraphs}) == paragraphs
    for paragraph in question.paragraphs:
        assert 1 <= len(paragraph.sentences) <= facts
        assert all(f" of {paragraph.title} is " in sentence for sentence in paragraph.sentences)
        for index in paragraph.support:
            relation, entity = FACT.fullmatch(paragraph.sentences[index]).group(1, 2)
            assert relation == relations[::-1][way.index(entity)]


def test_a_world_is_the_same_everywhere_and_another_with_every_seed():
    text = "".join(paragraph.render() for paragraph in World(7).paragraphs)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "84258b2f0ec614c0"
    numbered = [World(7).question(hops=hops, number=number) for hops in (1, 2, 3, 4) for number in range(20)]
    text = "".join(f"{q.question}\n{q.answers[0]}\n" + "".join(p.render() for p in q.paragraphs) for q in numbered)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "f170a35fca2a4b14"
    assert World(7).question(hops=3) == World(7).question(hops=3)
    assert len({World(seed).question(hops=3).question for seed in range(200)}) > 170
    assert World(7).question(hops=3, number=1) != World(7).question(hops=3)


@settings(deadline=None, max_examples=50)
@given(seeds, st.integers(1, 4), st.integers(1, 4), st.integers(0, 9))
def test_whole_paragraphs_are_the_worlds_and_change_no_question(seed, hops, facts, number):
    world = World(seed)
    part, whole = (world.question(hops=hops, facts=some, number=number) for some in (facts, None))
    assert (whole.id, whole.question, whole.answers, whole.hops) == (part.id, part.question, part.answers, part.hops)
    assert [p.title for p in whole.paragraphs] == [p.title for p in part.paragraphs]
    known = {paragraph.title: paragraph.sentences for paragraph in world.paragraphs}
    for ours, theirs in zip(whole.paragraphs, part.paragraphs, strict=True):
        assert ours.sentences == known[ours.title]
        assert set(theirs.sentences) <= set(ours.sentences)
        assert [ours.sentences[i] for i in ours.support] == [theirs.sentences[i] for i in theirs.support]


def test_names_are_single_words_of_one_kind():
    assert sum(map(len, NAMES.values())) == len(KIND) == 64
    assert all(re.fullmatch("[A-Z][a-z]+", name) for name in KIND)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: World(0, 3), "`size` must be a whole number from 4 to 16; got 3"),
        (lambda: World(0).question(hops=5), "`hops` must be from 1 to 4; got 5"),
        (lambda: World(0).question(hops=3, paragraphs=2), "`paragraphs` must be from 3, the hops, to 64; got 2"),
        (lambda: World(0).question(hops=1, facts=0), "`facts` must be at least 1; got 0"),
        (lambda: Tutor(repeat=1.0), "`repeat` must be a probability"),
        (lambda: Tutor(early=float("nan")), "`early` must be a probability"),
    ],
)
def test_what_cannot_be_made_is_refused(make, message):
    with pytest.raises(InputError, match=re.escape(message)):
        make()


@settings(deadline=None, max_examples=60)
@given(seeds, st.integers(1, 4))
def test_a_clean_tutor_is_always_right(seed, hops):
    task = MultiHop(hops=hops)
    question = task.of_world(World(seed))
    text = CLEAN.read(question, seed)
    grade = task.grade(question.reference(world=seed), text)
    assert (grade.outcome, grade.format_ok) == (1.0, True)
    assert text.count("\n") == hops


def test_a_noisy_tutor_errs_in_each_of_its_ways_and_keeps_the_form():
    task, questions = MultiHop(hops=3), [MultiHop(hops=3).of_world(World(seed)) for seed in range(400)]
    grades = [task.grade(q.reference(), Tutor().read(q, 0)) for q in questions]
    assert all(grade.format_ok for grade in grades)
    assert 0.3 < sum(grade.outcome for grade in grades) / len(grades) < 0.6
    none = {"early": 0.0, "swap": 0.0, "stray": 0.0, "repeat": 0.0}
    for way, lines in (("early", 1), ("swap", None), ("stray", None), ("repeat", None)):
        texts = [Tutor(**{**none, way: 0.99}).read(question, 0) for question in questions]
        truths = [stated(" ".join(p.text for p in question.paragraphs)) for question in questions]
        true = [set(stated(text).items()) <= set(truth.items()) for text, truth in zip(texts, truths, strict=True)]
        right = sum(task.grade(q.reference(), t).outcome for q, t in zip(questions, texts, strict=True)) / 400
        if way == "early":
            assert all(text.count("\n") == lines for text in texts if text.count("\n") < 2)
            assert right < 0.1
        assert all(true) == (way != "stray")
        if way == "repeat":
            assert right == 1.0
            assert sum(text.count("\n") for text in texts) > 20 * 400
        if way == "swap":
            assert 0.0 < right < 0.7
