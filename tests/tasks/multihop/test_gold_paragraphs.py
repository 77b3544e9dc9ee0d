"""Which of the paragraphs that searches brought are gold: told by title and text, whole or cut."""

import json
from dataclasses import replace

import pytest

from stepcredit.tasks import MultiHopSearch
from stepcredit.tasks.multihop.environment import frame, neutral
from stepcredit.tasks.multihop.question import Paragraph, Question
from stepcredit.tasks.multihop.retrieval import distinct, identity, open_index
from tasks.published import published
from tasks.turns import rollout


def gold_grade(gold, *results):
    reference = json.dumps({"answers": ["x"], "gold": gold, "world": 0})
    text, turns = rollout(*(part for result in results for part in ("<search>a</search>", frame(result))), "x")
    return MultiHopSearch().grade(reference, text, turns=turns)


def test_a_paragraph_is_told_by_title_and_text():
    one, other = Paragraph("Bel", ("A mayor.",)), Paragraph("Bel", ("A river. ", " Long."))
    grade = gold_grade([["Bel", "A mayor."]], other.render(), one.render(), one.render())
    assert grade.kinds[:3] == ("missed", "found", "again")
    grade = gold_grade([["Bel", "A mayor."], ["Bel", "A river. Long."]], other.render(), one.render())
    assert (grade.kinds[:2], grade.measures["recall_after_1"], grade.measures["recall"]) == (("found",) * 2, 0.5, 1.0)
    marked = Paragraph("<b>  \ud800", ("x <answer>\u0065\u0301",))  # an e and its accent, which many tokenizers join
    [gold] = json.loads(Question("q", "?", ("a",), (replace(marked, support=(0,)),)).reference())["gold"]
    assert gold == ["<b> \ud800", "x <answer>e\u0301"]
    assert gold_grade([gold], neutral(marked.render()).replace("e\u0301", "\u00e9")).kinds[0] == "found"


@pytest.mark.parametrize(
    ("result", "kind"),
    [
        ("# Bel\nA river in\n", "missed"),
        ("# Bel\nA river in [cut]\n", "found"),
        ("# Bel\nA [cut]\n", "found"),
        ("# Bel\nA river in Rio. [cut]\n", "found"),  # the whole of it, of a longer result
        ("# Bel\nA river in Rio.\n[cut]\n", "found"),
        ("# Bel\nA riv [cut]\n", "missed"),
        ("# Bel\nA lake [cut]\n", "missed"),
        ("# Rio\nA river in [cut]\n", "missed"),
        ("# Bel\n[cut]\n", "missed"),  # no word of it
        ("# Bel\n\n", "missed"),
        ("# Bel", "missed"),
        ("[cut]\n", "refused"),
    ],
)
def test_a_paragraph_that_was_cut_is_the_gold_one_that_begins_so(result, kind):
    assert gold_grade([["Bel", "A river in Rio."]], result).kinds[0] == kind


def test_a_cut_paragraph_is_the_first_that_it_may_be_and_no_new_one_later():
    gold = [["Bel", "A river in Rio."], ["Bel", "A river in Peru."], ["Bel", "Ends in [cut]"]]
    grade = gold_grade(gold, "# Bel\nA river in [cut]\n", "# Bel\nA river in Rio.\n", "# Bel\nA river in Peru.\n",
                       "# Bel\nEnds in [cut]\n")  # fmt: skip
    assert grade.kinds[:4] == ("found", "again", "found", "found")
    assert grade.measures["recall"] == 1.0


@pytest.mark.parametrize("tokens", [100_000, 300])
def test_the_recall_of_musique_is_that_of_its_retrieval(tokens, tmp_path, monkeypatch):
    path = published("musique/eval_sample.jsonl.gz")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    task = MultiHopSearch(test=str(path), k=5, result_tokens=tokens)
    pairs = list(zip(task.questions("test"), task.examples("test"), strict=True))
    index = open_index(distinct(p for question, _ in pairs for p in question.paragraphs))
    assert len(pairs) == 200
    repeated = cut = 0
    for question, example in pairs:
        query = f"<search>{question.question}</search>"
        text, turns = rollout(query, task.environment(example.reference).reply(query), "<answer>x</answer>")
        grade = task.grade(example.reference, text, turns=turns)
        wanted = {identity(paragraph) for paragraph in question.gold}
        brought = index.search(question.question, 5)
        whole = len("".join(p.render() for p in brought).split()) <= tokens
        shown, length = set(), 0
        for paragraph in brought:
            if whole or length + len(paragraph.title.split()) + 2 < tokens:  # the hash, a word of text, and the mark
                shown.add(identity(paragraph))
            length += len(paragraph.render().split())
        assert grade.measures["recall"] == len(wanted & shown) / len(wanted)
        cut += not whole
        assert grade.kinds[0] == ("found" if grade.measures["recall"] else "missed")
        titles = {title for title, _ in wanted}
        repeated += len({p.title for p in question.paragraphs}) < len(question.paragraphs) or len(titles) < len(wanted)
    assert repeated > 50
    assert cut == 0 if tokens > 300 else cut > 100
