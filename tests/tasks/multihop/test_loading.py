import json
import sys

import pytest

from stepcredit.errors import InputError, MissingExtraError
from stepcredit.tasks.multihop.loading import load_paragraphs, load_questions
from stepcredit.tasks.multihop.question import Hop, Paragraph, Question

BEYOND = "supporting sentence beyond its paragraph: the last sentence"
EMPTY = "supporting sentence of a paragraph without any: left out"
ABSENT = "supporting fact of a paragraph that is not there: left out"
REPEATED = "supporting fact of a title that several paragraphs have: the first that has the sentence"

CONTEXT = [["Oslo", ["Oslo is a city.", " Its twin is Rio."]], ["Bern", ["A city."]], ["Rio", ["Bel leads it."]]]
FACTS = [["Rio", 0], ["Oslo", 1], ["Oslo", 1]]
HOTPOT = {
    "_id": "h1",
    "question": "Who leads Oslo's twin?",
    "answer": "Bel",
    "type": "bridge",
    "level": "hard",
    "context": CONTEXT,
    "supporting_facts": FACTS,
}
PARAGRAPHS = (
    Paragraph("Oslo", ("Oslo is a city.", " Its twin is Rio."), (1,)),
    Paragraph("Bern", ("A city.",)),
    Paragraph("Rio", ("Bel leads it.",), (0,)),
)
EVIDENCES = [["Oslo", "twin", "Rio"], ["Rio", "leader", "Bel"]]
HOPS = (Hop("Oslo >> twin", "Rio", 0), Hop("Rio >> leader", "Bel", 2))
MUSIQUE = {
    "id": "2hop__12_34",
    "question": "Who leads Oslo's twin?",
    "answer": "Bel",
    "answer_aliases": ["Bella", "Bel", " "],
    "answerable": True,
    "paragraphs": [
        {"idx": 7, "title": "Rio", "paragraph_text": "Bel leads it.", "is_supporting": True},
        {"idx": 3, "title": "Rio", "paragraph_text": "It is hot.", "is_supporting": False},
        {"idx": 5, "title": "Oslo", "paragraph_text": "Its twin is Rio.", "is_supporting": True},
    ],
    "question_decomposition": [
        {"id": 12, "question": "Oslo >> twin", "answer": "Rio", "paragraph_support_idx": 5},
        {"id": 34, "question": "Who leads #1?", "answer": "Bel", "paragraph_support_idx": 7},
        {"id": 35, "question": "Is it #2?", "answer": "Bel", "paragraph_support_idx": None},
    ],
}


def columns(names, members):
    return {name: [member[place] for member in members] for place, name in enumerate(names)}


def write(folder, *rows, name="set.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def spelled(how):
    """One 2WikiMultihopQA row as the official file and three kinds of copies on the hub have it."""
    row = {**HOTPOT, "evidences": EVIDENCES}
    if how == "texts":
        return {**row, **{name: json.dumps(row[name]) for name in ("context", "supporting_facts", "evidences")}}
    if how == "columns":
        return {
            **{name: value for name, value in row.items() if name != "_id"},
            "id": "h1",
            "context": columns(("title", "sentences"), CONTEXT),
            "supporting_facts": columns(("title", "sent_id"), FACTS),
        }
    if how == "other columns":
        return {
            **row,
            "context": columns(("title", "content"), CONTEXT),
            "supporting_facts": columns(("title", "sent_id"), FACTS),
            "evidences": columns(("fact", "relation", "entity"), EVIDENCES),
        }
    return row


@pytest.mark.parametrize("how", ["official", "texts", "columns", "other columns"])
@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_one_question_however_it_is_stored(tmp_path, how, suffix):
    path = tmp_path / f"set.{suffix}"
    if suffix == "parquet":
        pa = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        row = spelled(how)
        if how == "official":  # a table holds no lists of mixed types
            row = {**row, "context": json.dumps(CONTEXT), "supporting_facts": json.dumps(FACTS)}
        parquet.write_table(pa.Table.from_pylist([row]), path)
    else:
        path.write_text(json.dumps([spelled(how)] if suffix == "json" else spelled(how)))
    questions = load_questions(path)
    assert questions == [Question("h1", "Who leads Oslo's twin?", ("Bel",), PARAGRAPHS, HOPS, "bridge")]
    assert questions.repairs == {}


def test_hotpotqa_has_no_hops(tmp_path):
    question = load_questions(write(tmp_path, HOTPOT))[0]
    assert question == Question("h1", "Who leads Oslo's twin?", ("Bel",), PARAGRAPHS, (), "bridge")
    assert [paragraph.title for paragraph in question.gold] == ["Oslo", "Rio"]


def test_the_paragraph_of_an_evidence_triple(tmp_path):
    titles = ["The Egg", "The Egg (film)", "Cy", "Al (king)", "Al (duke)", "Get Low (song)", "Bo"]
    gold = [1, 3, 4, 5, 6]
    triples = [
        (subject, "is", "x")
        for subject in ("The Egg", "The Egg (film)", "Cy", "Al", "Al (duke)", "get low", "Bo", "Dee")
    ]
    row = {
        **HOTPOT,
        "context": [[title, ["x"]] for title in titles],
        "supporting_facts": [[titles[place], 0] for place in gold],
        "evidences": triples,
    }
    hops = load_questions(write(tmp_path, row))[0].hops
    # A distractor is never a hop's paragraph, two gold candidates are no answer, parentheses and their case may differ.
    assert [hop.paragraph for hop in hops] == [1, 1, None, None, 4, 5, 6, None]


def test_musique_rows(tmp_path):
    questions = load_questions(write(tmp_path, MUSIQUE))
    assert questions == [
        Question(
            "2hop__12_34",
            "Who leads Oslo's twin?",
            ("Bel", "Bella"),
            (
                Paragraph("Rio", ("Bel leads it.",), (0,)),
                Paragraph("Rio", ("It is hot.",)),
                Paragraph("Oslo", ("Its twin is Rio.",), (0,)),
            ),
            (Hop("Oslo >> twin", "Rio", 2), Hop("Who leads #1?", "Bel", 0), Hop("Is it #2?", "Bel")),
            "2hop",
        )
    ]
    assert questions.repairs == {"answer alias without a text: left out": 1}


def test_rows_of_ones_own(tmp_path):
    paragraphs = [{"title": p.title, "sentences": p.sentences, "support": p.support} for p in PARAGRAPHS]
    bare = {"question": "Who?", "answer": "Bel", "paragraphs": paragraphs}
    steps = [
        {"question": "Oslo's twin?", "answer": "Rio", "paragraph": 0},
        {"question": "#1's leader?", "answer": "Bel"},
    ]
    hops = (Hop("Oslo's twin?", "Rio", 0), Hop("#1's leader?", "Bel"))
    rich = {
        **bare,
        "id": 7,
        "type": "2hop",
        "answer_aliases": ["Bella"],
        "decomposition": steps,
        "evidences": EVIDENCES,
    }
    assert load_questions(write(tmp_path, bare, rich)) == [
        Question("set.jsonl-1", "Who?", ("Bel",), PARAGRAPHS),
        Question("7", "Who?", ("Bel", "Bella"), PARAGRAPHS, hops, "2hop"),
    ]


def test_what_does_not_fit_is_mended_and_counted(tmp_path):
    context = [["Oslo", ["a"]], ["Rio", ["b", "c"]], ["Oslo", ["d", "e"]], ["Rio", ["b", "c"]], ["Nil", []]]
    facts = [["Oslo", 1], ["Oslo", 0], ["Oslo", 9], ["Rio", 1], ["Rio", 2], ["Nil", 0], ["Bern", 0], ["rio", 0]]
    questions = load_questions(write(tmp_path, {**HOTPOT, "context": context, "supporting_facts": facts}))
    # Oslo 1 is only in the second Oslo; 0 is in both, 9 in neither: the first takes them. The two Rios are the same.
    assert [paragraph.support for paragraph in questions[0].paragraphs] == [(0,), (1,), (1,), (), ()]
    assert questions.repairs == {BEYOND: 2, EMPTY: 1, ABSENT: 2, REPEATED: 2}


def test_unanswerable_questions_are_refused_or_counted(tmp_path):
    twin = {**MUSIQUE, "answerable": False}
    path = write(tmp_path, MUSIQUE, twin)
    with pytest.raises(InputError, match=r"unanswerable question in .*set.jsonl, row 2\. .*answerable_only=True"):
        load_questions(path)
    questions = load_questions(path, answerable_only=True)
    assert [question.id for question in questions] == ["2hop__12_34"]
    assert questions.repairs["unanswerable question: left out"] == 1
    with pytest.raises(InputError, match=r"must have an answerable question; .*none in 1 rows"):
        load_questions(write(tmp_path, twin, name="none.jsonl"), answerable_only=True)


def test_an_id_occurs_once(tmp_path):
    path = write(tmp_path, HOTPOT, {**HOTPOT, "_id": "h2"}, HOTPOT)
    with pytest.raises(InputError, match=r"must have an id once; got 'h1' in .*set.jsonl, row 3 and in row 1"):
        load_questions(path)
    assert [question.id for question in load_questions(path, limit=2)] == ["h1", "h2"]


def changed(row, **changes):
    return {name: value for name, value in {**row, **changes}.items() if value != "gone"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "must have one of the forms context, supporting_facts (HotpotQA, 2WikiMultihopQA); paragraphs of"),
        ({}, "got the fields none in"),
        (changed(HOTPOT, supporting_facts="gone"), "got the fields _id, question, answer, type, level, context in"),
        ({"id": 1, "paragraphs": [{"title": "x", "text": "y"}]}, "got the fields id, paragraphs in"),
        ({"id": 1, "paragraphs": []}, "got the fields id, paragraphs in"),
        (changed(HOTPOT, answer="gone"), "`answer` must be a non-empty text; got None in"),
        (changed(HOTPOT, answer=" "), "`answer` must be a non-empty text; got ' ' in"),
        (changed(HOTPOT, question=None), "`question` must be a non-empty text; got None in"),
        (changed(HOTPOT, context="[[1"), "`context` must be a list, or a list as JSON; got"),
        (changed(HOTPOT, context='"x"'), "`context` must be a list; got 'x' in"),
        (changed(HOTPOT, context=[["Oslo"]]), "of `context` must be title, sentences, or a record; got ['Oslo']"),
        (changed(HOTPOT, context={"title": ["a"], "sentences": []}), "of one length; got {'title': 1, 'sentences': 0}"),
        (changed(HOTPOT, context=[["Oslo", "a text"]]), "`sentences` must be a list of texts; got 'a text' in"),
        (changed(HOTPOT, context=[[3, ["x"]]]), "`title` must be a text; got 3 in"),
        (changed(HOTPOT, supporting_facts=None), "`supporting_facts` must be a list; got None in"),
        (changed(HOTPOT, supporting_facts=[["Oslo", "0"]]), "`sent_id` must be a whole number; got '0' in"),
        (changed(HOTPOT, supporting_facts=[["Oslo", True]]), "`sent_id` must be a whole number; got True in"),
        (changed(HOTPOT, evidences=[["a", "b"]]), "must be subject, relation, object, or a record; got ['a', 'b'] in"),
        (changed(HOTPOT, aliases="Bella"), "`aliases` must be a list of texts; got 'Bella' in"),
        (changed(MUSIQUE, paragraphs=[["a", "b"]]), "A member of `paragraphs` must be a record; got ['a', 'b'] in"),
        (changed(MUSIQUE, paragraphs=[{"paragraph_text": "b"}]), "`is_supporting` must be true or false; got None"),
        (changed(MUSIQUE, paragraphs=MUSIQUE["paragraphs"] * 2), "`idx` must be another one in each paragraph; got ["),
        ({"paragraphs": [{"sentences": ["b"], "support": 0}]}, "`support` must be a list of sentence indices; got 0"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named(tmp_path, row, message):
    path = write(tmp_path, {**HOTPOT, "_id": "fine"}, row)
    with pytest.raises(InputError) as error:
        load_questions(path)
    assert message in str(error.value)
    assert "set.jsonl, row 2" in str(error.value)


def test_the_names_of_an_entity_are_right_too(tmp_path):
    names = {"Q_id": "Q1", "aliases": ["Bella", ""], "demonyms": ["Belian"]}
    aliases = write(tmp_path, names, {"Q_id": "Q2", "aliases": [], "demonyms": []}, name="id_aliases.json")
    rows = [{**HOTPOT, "_id": entity, "answer_id": entity} for entity in ("Q1", "Q2", "Q3")]
    path = write(tmp_path, *rows, {**HOTPOT, "answer_id": None})
    questions = load_questions(path, aliases=aliases)
    assert [question.answers for question in questions] == [("Bel", "Bella", "Belian"), ("Bel",), ("Bel",), ("Bel",)]
    assert questions.repairs == {"answer alias without a text: left out": 1}
    assert [question.answers for question in load_questions(path)] == [("Bel",)] * 4
    with pytest.raises(InputError, match=r"`Q_id` must be a non-empty text; got None in .*set.jsonl, row 1"):
        load_questions(path, aliases=path)


def test_known_hub_sets_get_their_configuration(monkeypatch):
    datasets = pytest.importorskip("datasets")
    calls = []

    def load_dataset(name, config=None, *, split):
        calls.append((name, config, split))
        if name == "a/corpus":
            return datasets.Dataset.from_list([{"title": "Oslo", "text": "A city."}])
        return datasets.Dataset.from_list([{**spelled("columns"), "id": name} for name in ("a", "b", "c")])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    questions = load_questions("hotpotqa/hotpot_qa", limit=2)
    assert [question.id for question in questions] == ["a", "b"]
    assert questions[0].paragraphs == PARAGRAPHS
    load_questions("hotpotqa/hotpot_qa", split="train", config="fullwiki")
    load_questions("framolfese/2WikiMultihopQA")
    assert load_paragraphs("a/corpus") == [Paragraph("Oslo", ("A city.",))]
    assert calls == [
        ("hotpotqa/hotpot_qa", "distractor", "validation"),
        ("hotpotqa/hotpot_qa", "fullwiki", "train"),
        ("framolfese/2WikiMultihopQA", None, "validation"),
        ("a/corpus", None, "train"),
    ]


def test_without_datasets_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        MissingExtraError, match=r"`datasets` is needed to load 'hotpotqa/hotpot_qa' .*stepcredit\[data\]"
    ):
        load_questions("hotpotqa/hotpot_qa")
