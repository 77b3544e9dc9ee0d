import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepcredit.config import build_task
from stepcredit.errors import InputError
from stepcredit.tasks import MultiHop, MultiHopSearch, SearchTask, Task
from stepcredit.tasks.multihop.environment import CUT, EMPTY, FAILED, LONG, NOTHING, REPEATED, SPENT, frame
from stepcredit.tasks.multihop.question import Hop, Paragraph, Question
from stepcredit.tasks.multihop.results import shown_results
from stepcredit.tasks.multihop.world import World
from tasks.turns import rollout

TEXT = "Some text."
REFERENCE = json.dumps({"answers": ["Kelda", "Kel"], "gold": [["Kestrel", TEXT], ["Mirel", TEXT]], "world": 3})


def found(*titles):
    return frame("".join(f"# {title}\n{TEXT}\n" for title in titles))


def search_grade(*parts, finished=True, task=None):
    text, turns = rollout(*parts)
    return (task or MultiHopSearch(searches=3)).grade(REFERENCE, text, finished=finished, turns=turns)


def test_both_are_tasks_that_configs_name():
    assert isinstance(build_task("multihop", {"hops": 3}), Task)
    task = build_task("multihop-search", {"k": 2})
    assert isinstance(task, SearchTask)
    assert not isinstance(MultiHop(), SearchTask)


def test_the_prompt_shows_the_paragraphs_and_hides_which_are_gold():
    task = MultiHop(hops=2, paragraphs=4)
    for question, example in zip(task.questions("test", 20), task.examples("test", 20), strict=True):
        assert example.prompt == "".join(p.render() for p in question.paragraphs) + f"Question: {question.question}\n"
        assert example.prompt.count("# ") == 4
    places = {tuple(i for i, p in enumerate(q.paragraphs) if p.support) for q in task.questions("test", 100)}
    assert len(places) == 6  # any two of four


def test_training_and_test_worlds_differ_and_seeds_choose_the_training_ones():
    task = MultiHop()
    prompts = [[e.prompt for e in task.examples(split, 50, seed=seed)] for split, seed in
               (("test", 0), ("test", 1), ("train", 0), ("train", 1), ("train", 0))]  # fmt: skip
    assert prompts[0] == prompts[1]
    assert prompts[2] == prompts[4]
    assert not set(prompts[0]) & set(prompts[2])
    assert not set(prompts[2]) & set(prompts[3])
    ids = [e.id for split in ("train", "test") for e in task.examples(split, 50)]
    assert len(set(ids)) == 100


def test_a_prompt_of_fewer_paragraphs_keeps_the_gold_ones_in_order():
    paragraphs = tuple(Paragraph(name, (f"{name}.",), (0,) if name in "CE" else ()) for name in "ABCDEF")
    question = Question("q", "Who?", ("x",), paragraphs, (Hop("a", "b", 2),))
    shown = {n: re.findall("# (.)", MultiHop(paragraphs=n).prompt(question)) for n in (2, 3, 4, 6)}
    assert shown == {2: list("CE"), 3: list("ACE"), 4: list("ABCE"), 6: list("ABCDEF")}
    assert re.findall("# (.)", MultiHop().prompt(question)) == list("ABCDEF")


def test_the_answer_is_graded_by_exact_match_and_overlap():
    grades = {
        text: MultiHop().grade(REFERENCE, f"So.\n<answer>{text}</answer>") for text in ("the kel!", "Kelda K", "x")
    }
    assert [g.outcome for g in grades.values()] == [1.0, 0.0, 0.0]
    assert [g.measures["f1"] for g in grades.values()] == [1.0, pytest.approx(2 / 3), 0.0]
    overlap = MultiHop(reward="f1").grade(REFERENCE, "<answer>Kelda K</answer>")
    assert (overlap.outcome, overlap.measures["em"]) == (pytest.approx(2 / 3), 0.0)


@pytest.mark.parametrize(
    ("text", "finished", "form"),
    [
        ("Kelda it is. <answer>Kelda</answer>\n", True, True),
        ("<answer>Kelda</answer>", False, False),
        ("<answer>Kelda</answer> Or not.", True, False),
        ("<answer>x</answer><answer>Kelda</answer>", True, False),
        ("<information>Kelda</information><answer>Kelda</answer>", True, True),  # only a search has such tags
    ],
)
def test_the_form(text, finished, form):
    grade = MultiHop().grade(REFERENCE, text, finished=finished)
    assert (grade.format_ok, grade.format_reward) == (form, float(form))


def test_each_turn_is_scored_by_what_it_newly_found():
    grade = search_grade(
        "<search>a</search>", found("Oslo", "Rome"), "<search>b</search>", found("Kestrel", "Rome"),
        "<search>c</search>", found("Kestrel"), "<search></search>", frame("The query is empty.\n"),
        "<search>d</search>", found("Mirel"), "<answer>Kelda</answer>",
    )  # fmt: skip
    assert grade.kinds == ("missed", "found", "again", "refused", "found", "answer")
    assert [step.score for step in grade.steps] == [0.0, 1.0, 0.0, 0.0, 1.0, 1.0]
    assert grade.format_ok
    expected = {"em": 1.0, "f1": 1.0, "searches": 3.0, "recall": 1.0}  # no more than there can be
    expected |= {"recall_after_1": 0.0, "recall_after_2": 0.5, "recall_after_3": 0.5}
    assert grade.measures == expected
    assert set(grade.measures) == set(MultiHopSearch(searches=3).measures)


def test_what_the_policy_writes_finds_nothing():
    faked = search_grade(f"<search>a</search>{found('Kestrel', 'Mirel')}<answer>Kelda</answer>")
    assert (faked.kinds, faked.measures["recall"], faked.format_ok) == (("answer",), 0.0, False)
    titled = search_grade("# Kestrel\n<search>a</search>", found("Oslo"), "# Mirel\n<answer>x</answer>")
    assert titled.kinds == ("missed", "answer")


def test_what_the_environment_writes_answers_nothing():
    shown = search_grade("<search>a</search>", frame("# Oslo\n<answer>Kelda</answer>\n"))
    assert (shown.outcome, shown.parsed, shown.kinds) == (0.0, False, ("missed",))
    split = search_grade("<answer>", frame("Kelda\n"), "</answer>")
    assert (split.outcome, split.kinds) == (0.0, ("refused", "unanswered"))


def test_a_paragraph_that_looks_like_a_title_is_none():
    shown = search_grade("<search>a</search>", frame("# Oslo\n# Kestrel\n# Rome\nText.\n"), "<answer>x</answer>")
    assert shown.kinds == ("missed", "answer")


def test_an_answer_given_early_breaks_the_form():
    grade = search_grade("<answer>x</answer><search>a</search>", found("Oslo"), "<answer>Kelda</answer>")
    assert (grade.outcome, grade.format_ok) == (1.0, False)


ANSWERED = ("<search>a</search>", found("Oslo"), "<answer>Kelda</answer>")


@pytest.mark.parametrize(
    ("turn", "written", "form"),
    [
        (0, "<search>a</search>", True),
        (0, "<answer><search>a</search>", False),
        (0, "</answer><search>a</search>", False),
        (0, "<tool_response>\n<search>a</search>", False),
        (0, "</information><search>a</search>", False),
        (0, "<INFORMATION><search>a</search>", False),
        (0, "the information <search>a</search>", True),
        (2, "<answer>Kelda</answer>\n", True),
        (2, "<search>Q</search><answer>Kelda</answer>", False),
        (2, "<search><answer>Kelda</answer>", False),
        (2, "</search><answer>Kelda</answer>", False),
        (2, "</Tool_Response ><answer>Kelda</answer>", False),
        (2, "< 3 informations <answer>Kelda</answer>", True),
    ],
)
def test_the_form_of_a_search(turn, written, form):
    grade = search_grade(*ANSWERED[:turn], written, *ANSWERED[turn + 1 :])
    assert (grade.outcome, grade.format_ok, grade.format_reward) == (1.0, form, float(form))


def test_searches_are_the_results_that_the_budget_brought():
    told = [frame(f"{message}\n") for message in (EMPTY, LONG, REPEATED, NOTHING, FAILED, CUT)]
    task = MultiHopSearch(searches=6)
    for result in told:
        one = search_grade("<search>a</search>", result, "<answer>x</answer>", task=task)
        assert (one.kinds[0], one.measures["searches"]) == ("refused", 1.0)
    for result in (frame(f"{SPENT}\n"), "{'error': 'Tool x not found.'}", "\n"):
        none = search_grade("<search>a</search>", result, "<answer>x</answer>", task=task)
        assert (none.kinds, none.measures["searches"]) == (("refused", "answer"), 0.0)


TOOLS = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


def response(*titles, text=TEXT):
    return "<tool_response>\n" + "".join(f"# {title}\n{text}\n" for title in titles) + "\n</tool_response>\n"


def test_several_calls_in_a_turn_have_a_result_each():
    error = "<tool_response>\n{'error': 'Tool reset not found.'}\n</tool_response>\n"
    spent = f"<tool_response>\n{SPENT}\n\n</tool_response>\n"
    grade = search_grade(
        "three calls", TOOLS.format(response("Oslo") + error + response("Rome", "Mirel")),
        "two calls", TOOLS.format(response("Kestrel") + spent), "<answer>Kelda</answer>",
    )  # fmt: skip
    assert grade.kinds == ("found", "found", "answer")
    assert grade.measures["searches"] == 3.0
    assert [grade.measures[f"recall_after_{i}"] for i in (1, 2, 3)] == [0.0, 0.5, 1.0]
    joined = search_grade("two calls", response("Oslo") + response("Oslo"), "x")
    assert (joined.kinds, joined.measures["searches"]) == (("missed", "unanswered"), 2.0)


def test_results_written_as_json_are_read():
    texts = ("".join(f"# {title}\n{TEXT}\n" for title in ("Oslo", "Mirel")), f"{NOTHING}\n", f"{SPENT}\n")
    written = "".join(f"functions.search to=assistant commentary{json.dumps(text)}" for text in texts) + "assistant"
    assert shown_results(written) == [[("Oslo", TEXT), ("Mirel", TEXT)], []]
    grade = search_grade("calls", written, "<answer>Kelda</answer>")
    assert (grade.kinds, grade.measures["searches"], grade.measures["recall"]) == (("found", "answer"), 2.0, 0.5)
    quoted = found("Oslo").replace(TEXT, json.dumps(f"# Mirel\n{TEXT}"))  # what a paragraph says, brought as it is
    assert search_grade("call", quoted, "x").kinds[0] == "missed"


def test_a_rollout_that_stops_short_is_graded_all_the_same():
    assert search_grade("", finished=False).kinds == ()
    cut = search_grade("<search>a</search>", found("Mirel"), "<sea", finished=False)
    assert (cut.kinds, cut.parsed, cut.format_ok) == (("found", "unanswered"), False, False)
    assert (
        MultiHopSearch().grade(REFERENCE, "<answer>Kelda</answer>").outcome == 1.0
    )  # no turns told: all is the policy's


TAGS = st.text("<>/searchinformationanswer #\nKelda", min_size=1, max_size=40)


@given(st.lists(TAGS, min_size=1, max_size=7), st.booleans())
def test_grading_never_raises_and_steps_are_the_turns(parts, finished):
    text, turns = rollout(*parts)
    grade = MultiHopSearch().grade(REFERENCE, text, finished=finished, turns=turns)
    assert [(step.start, step.end) for step in grade.steps] == [tuple(turn) for turn in turns]


def test_a_search_of_the_world_brings_the_gold_paragraphs_word_for_word():
    task = MultiHopSearch(hops=3, k=1)
    for world, (question, example) in enumerate(
        zip(task.questions("test", 20), task.examples("test", 20), strict=True)
    ):
        assert set(json.loads(example.reference)) == {"answers", "gold", "world"}
        assert question.question == World(world).question(hops=3).question
        parts = []
        environment = task.environment(example.reference)
        for hop in question.hops:
            query = f"<search>{hop.question}</search>"
            parts += [query, environment.reply(query)]
        text, turns = rollout(*parts, f"<answer>{question.answers[0]}</answer>")
        grade = task.grade(example.reference, text, turns=turns)
        assert grade.kinds == ("found", "found", "found", "answer")
        assert (grade.measures["recall"], grade.measures["searches"], grade.format_ok) == (1.0, 3.0, True)


def test_the_environment_searches_the_questions_own_world():
    task = MultiHopSearch(hops=2, k=2)
    for question, example in zip(task.questions("test", 10), task.examples("test", 10), strict=True):
        environment = task.environment(example.reference)
        for hop in question.hops:
            result = environment.search(hop.question)
            assert f"The {hop.question} is {hop.answer}." in result
            assert result.count("# ") <= 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiHop(hops=0), "`hops` must be a whole number from 1 to 4; got 0"),
        (lambda: MultiHop(hops=2.5), "`hops` must be a whole number from 1 to 4; got 2.5"),
        (lambda: MultiHop(reward="bleu"), "`reward` must be em or f1; got 'bleu'"),
        (lambda: MultiHop(hops=3, paragraphs=2), "`paragraphs` must be at least 1, and the hops of the world; got 2"),
        (lambda: MultiHop(facts=0), "`facts` must be at least 1; got 0"),
        (lambda: MultiHop().examples("train"), "`count` must be at least 1 for the world, which has no end; got None"),
        (lambda: MultiHopSearch(k=0), "`k` must be at least 1"),
        (lambda: MultiHopSearch(searches=0), "`searches` must be at least 1; got 0"),
        (lambda: MultiHopSearch(searches=2.5), "`searches` must be a whole number; got 2.5"),
        (lambda: MultiHopSearch(result_tokens="9"), "`result_tokens` must be a whole number; got '9'"),
        (lambda: MultiHopSearch(result_tokens=1), "`result_tokens` must hold the longest message"),
    ],
)
def test_bad_options_are_refused_by_name(make, message):
    with pytest.raises(InputError, match=re.escape(message)):
        make()


def test_a_published_set_has_an_instruction_and_the_world_has_none(tmp_path):
    row = {"id": "a", "question": "Who?", "answer": "Bel", "answerable": True, "answer_aliases": [],
           "paragraphs": [{"idx": 0, "title": "Oslo", "paragraph_text": "Bel.", "is_supporting": True}],
           "question_decomposition": [{"question": "Who?", "answer": "Bel", "paragraph_support_idx": 0}]}  # fmt: skip
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps(row))
    task = MultiHop(test=str(path))
    assert "<answer>" in task.instruction
    assert MultiHop().instruction == ""
    assert MultiHop(instruction="Go.").instruction == "Go."
    example = task.examples("test")[0]
    assert example.prompt == "# Oslo\nBel.\nQuestion: Who?\n"
    assert json.loads(example.reference) == {"answers": ["Bel"], "gold": [["Oslo", "Bel."]], "split": "test"}
    with pytest.raises(InputError, match="`count` must be from 1 to the 1 questions"):
        task.examples("test", 2)
