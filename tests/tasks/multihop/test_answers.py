import re
import string
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stepcredit.errors import InputError
from stepcredit.tasks.multihop.answers import exact_match, f1, keeps_form, normalized_answer, stated_answer
from stepcredit.tasks.multihop.loading import load_questions
from tasks.published import published

SETS = ("hotpotqa/dev_sample", "2wikimultihopqa/eval_sample", "2wikimultihopqa/train_sample", "musique/eval_sample")
PIECES = [
    "the",
    "The",
    "a",
    "an",
    "yes",
    "No",
    "noanswer",
    "Oslo",
    "oslo",
    "1,000",
    "U.S.",
    "é",
    "-",
    "\u2013",
    "\u2019",
    "_",
    " ",
]


def by_hand(text):
    """The four steps as the scripts define them, character by character: lower, punctuation, articles, spaces."""
    kept = [char for char in text.lower() if char not in string.punctuation]
    words, word = [], ""
    for char in [*kept, " "]:
        if char.isalnum() or char == "_":
            word += char
            continue
        words.append(" " if word in ("a", "an", "the") else word)
        words.append(char)
        word = ""
    return " ".join("".join(words).split())


def overlap(prediction, gold, *, verdicts, empty_agree):
    """HotpotQA's and 2WikiMultihopQA's F1 with verdicts, MuSiQue's with empty texts that agree."""
    prediction, gold = by_hand(prediction), by_hand(gold)
    if verdicts and prediction != gold and {prediction, gold} & {"yes", "no", "noanswer"}:
        return 0.0
    words, rest, shared = prediction.split(), gold.split(), 0
    if empty_agree and not (words and rest):
        return float(words == rest)
    for word in words:
        if word in rest:
            rest.remove(word)
            shared += 1
    if not shared:
        return 0.0
    precision, recall = shared / len(words), shared / len(gold.split())
    return 2 * precision * recall / (precision + recall)


texts = st.one_of(
    st.text(), st.lists(st.sampled_from(PIECES)).map(" ".join), st.lists(st.sampled_from(PIECES)).map("".join)
)


@given(texts)
@example("the\u2013a\u2019an")
@example("İ A\u00a0THE\u2003end")
@settings(deadline=None)
def test_normalization_is_the_four_published_steps(text):
    assert normalized_answer(text) == by_hand(text)


@pytest.mark.parametrize(
    ("prediction", "gold", "same"),
    [
        ("the Beatles", "Beatles", True),
        ("A-Team", "ateam", True),  # punctuation goes first, so that no article is left
        ("Team A", "team", True),
        ("Theodore", "odore", False),
        ("1,000", "1000", True),
        ("1.5", "15", True),
        ("U.S.A.", "usa", True),
        ("\u201cOslo\u201d", "Oslo", False),  # curly quotes are not ASCII
        ("1990\u20131995", "19901995", False),
        ("1990-1995", "19901995", True),
        ("Besançon", "Besancon", False),
        ("yes.", "Yes", True),
        ("yes, it is", "yes", False),
        ("", "The The", True),
        ("\n Oslo\t", "Oslo", True),
        ("Oslo", "Rio", False),
    ],
)
def test_exact_match_on_cases_read_off_the_scripts(prediction, gold, same):
    assert exact_match(prediction, (gold,)) is same
    assert (f1(prediction, (gold,)) == 1.0) is same


def test_f1_by_hand():
    assert f1("Barack Obama", ("Barack Hussein Obama II",)) == pytest.approx(2 * 1 * 0.5 / 1.5)
    assert f1("new new york", ("New York New Jersey",)) == pytest.approx(2 * 1 * 0.75 / 1.75)
    assert f1("york york", ("York",)) == pytest.approx(2 * 0.5 * 1 / 1.5)  # a word counts as often as both have it
    assert f1("Rio", ("Oslo",)) == 0.0


def test_the_best_of_the_aliases_counts():
    assert exact_match("NYC", ("New York City", "N.Y.C."))
    assert not exact_match("NYC", ("New York City",))
    assert f1("York", ("New York City", "New York")) == pytest.approx(2 / 3)
    assert f1("York", ("New York", "New York City")) == pytest.approx(2 / 3)


@given(texts, texts)
@example("no", "No Country")
@example("noanswer", "noanswer given")
@example("", "the")
@settings(deadline=None)
def test_f1_is_every_scripts_where_they_agree_and_as_documented_where_not(prediction, gold):
    hotpot = overlap(prediction, gold, verdicts=True, empty_agree=False)
    musique = overlap(prediction, gold, verdicts=False, empty_agree=True)
    ours = f1(prediction, [gold])
    if by_hand(prediction) == by_hand(gold) == "":
        assert (hotpot, musique, ours) == (0.0, 1.0, 1.0)
    else:
        assert ours == pytest.approx(hotpot)
        if not {by_hand(prediction), by_hand(gold)} & {"yes", "no", "noanswer"}:
            assert ours == pytest.approx(musique)
    if exact_match(prediction, [gold]):
        assert ours == 1.0


def test_verdicts_are_all_or_nothing():
    assert f1("No", ("No Country for Old Men",)) == 0.0
    assert overlap("No", "No Country for Old Men", verdicts=False, empty_agree=True) == pytest.approx(1 / 3)
    assert f1("yes it is", ("yes",)) == f1("noanswer", ("noanswer here",)) == 0.0
    assert f1("yes it is", ("yes it was",)) == pytest.approx(2 / 3)  # a longer text is no verdict
    assert f1("no", ("yes", "no")) == 1.0


@pytest.mark.parametrize("answers", [(), [], "Oslo"])
def test_answers_are_several_texts(answers):
    for grade in (exact_match, f1):
        with pytest.raises(InputError, match="`answers` must be a sequence of at least one answer; got"):
            grade("Oslo", answers)


@pytest.mark.parametrize("name", SETS)
def test_gold_answers_of_the_published_sets(name):
    questions = load_questions(published(f"{name}.jsonl.gz"))
    others = questions[1:] + questions[:1]
    wrong = 0
    for question, other in zip(questions, others, strict=True):
        for answer in question.answers:
            for worn in (answer, f"The {answer}.", f" {answer.lower()} ", f'"{answer}",', answer.replace(" ", "  ")):
                assert exact_match(worn, question.answers), (worn, question.answers)
                assert f1(worn, question.answers) == 1.0
        if by_hand(other.answers[0]) not in map(by_hand, question.answers):
            wrong += 1
            assert not exact_match(other.answers[0], question.answers)
            assert f1(other.answers[0], question.answers) < 1.0
        assert not exact_match(f"{question.answers[0]} zzz", question.answers)
    assert wrong > 0.75 * len(questions)  # neighbors share an answer now and then, most often in MuSiQue


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>Oslo</answer>", "Oslo"),
        ("I say <answer>\n Oslo \n</answer> indeed", "Oslo"),
        ("<answer>Rio</answer><answer>Oslo</answer>", "Oslo"),
        ("<answer>Oslo</answer> or <answer>Rio", "Oslo"),
        ("<answer>Rio<answer>Oslo</answer>", "Oslo"),
        ("<answer>Oslo</answer> or Rio</answer>", "Oslo"),
        ("</answer>Oslo<answer>", None),
        ("<answer>Oslo", None),
        ("Oslo</answer>", None),
        ("<Answer>Oslo</Answer>", None),
        ("", None),
        ("<answer></answer>", ""),
    ],
)
def test_the_stated_answer(text, answer):
    assert stated_answer(text) == answer


tagged = st.lists(st.sampled_from(["<answer>", "</answer>", "<answer", "answer>", "x", " ", "\n", "\u3000"])).map(
    "".join
)


@given(tagged)
@example("x<answer>x</answer> \n")
@example("<answer>x</answer><answer>")
@settings(deadline=None, max_examples=400)
def test_blocks_are_those_of_a_grammar(text):
    inside = r"(?:(?!</?answer>).)*"
    blocks = re.findall(rf"<answer>({inside})</answer>", text, re.DOTALL)
    assert stated_answer(text) == (blocks[-1].strip() if blocks else None)
    kept = re.fullmatch(rf"{inside}<answer>{inside}\S{inside}</answer>\s*", text, re.DOTALL)
    # The lookahead stands before each character, so that \S itself could begin a tag; the counts rule that out.
    assert keeps_form(text) is (kept is not None and len(re.findall("</?answer>", text)) == 2)


def test_hostile_text_takes_linear_time():
    begin = time.perf_counter()
    for text in ("<answer>" * 200_000, "</answer>" * 200_000, "<answer></answer>" * 100_000, "<answer" * 200_000):
        stated_answer(text)
        keeps_form(text)
        normalized_answer(text)
    f1("the a " * 100_000 + "x " * 100_000, ["x " * 100_000] * 3)
    assert time.perf_counter() - begin < 5  # a quadratic search of any of these takes minutes
