"""What both settings share: how published questions are read, which worlds are drawn, and when an answer is right."""

import json
import re
import warnings

import pytest

from stepcredit.config.run import dump_config, load_config, parse_config
from stepcredit.errors import InputError, StepCreditWarning
from stepcredit.tasks import MultiHop, MultiHopSearch
from stepcredit.tasks.multihop import source
from stepcredit.tasks.multihop.question import Paragraph, Question
from stepcredit.tasks.multihop.world import World

MUSIQUE = {
    "id": "2hop__1_2",
    "question": "Who leads Oslo's twin?",
    "answer": "Bel",
    "answer_id": "Q1",
    "answerable": True,
    "paragraphs": [
        {"idx": 0, "title": "Rio", "paragraph_text": "Bel leads it.", "is_supporting": True},
        {"idx": 1, "title": "Oslo", "paragraph_text": "Its twin is Rio.", "is_supporting": True},
    ],
    "question_decomposition": [],
}


def write(folder, *rows, name="set.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("task", [MultiHop(), MultiHopSearch()])
@pytest.mark.parametrize("seed", [-1, -2])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_seed_below_0_is_refused(task, seed, split):
    with pytest.raises(InputError, match=f"`seed` must be at least 0; got {seed}"):
        task.examples(split, 2, seed=seed)


def test_a_seed_below_0_is_refused_for_published_questions_too(tmp_path):
    with pytest.raises(InputError, match="`seed` must be at least 0; got -1"):
        MultiHop(train=write(tmp_path, MUSIQUE)).examples("train", seed=-1)


@pytest.mark.parametrize("task", [MultiHop(hops=3), MultiHopSearch(hops=1)])
@pytest.mark.parametrize(("split", "seed", "first"), [("test", 5, 0), ("train", 0, 2**32), ("train", 2, 3 * 2**32)])
def test_a_reference_names_the_world_of_its_question(task, split, seed, first):
    examples = task.examples(split, 4, seed=seed)
    assert [json.loads(example.reference)["world"] for example in examples] == list(range(first, first + 4))
    for number, example in enumerate(examples, first):
        assert example.prompt == task.prompt(task.of_world(World(number)))


def test_the_options_of_a_source_reach_its_loading(tmp_path, monkeypatch):
    calls = []

    def load_questions(name, **options):
        calls.append((name, options))
        return load(name, **options)

    load = source.load_questions
    monkeypatch.setattr(source, "load_questions", load_questions)
    path = write(tmp_path, MUSIQUE, {**MUSIQUE, "id": "2", "answerable": False})
    names = write(tmp_path, {"Q_id": "Q1", "aliases": ["Bella"], "demonyms": []}, name="id_aliases.json")
    with pytest.raises(InputError, match="unanswerable question"):
        MultiHop(test=path).examples("test")
    task = MultiHop(test=path, config="full", aliases=names, answerable_only=True)
    with pytest.warns(StepCreditWarning, match=r"set.jsonl: unanswerable question: left out \(1 times\)"):
        examples = task.examples("test")
    assert [json.loads(example.reference)["answers"] for example in examples] == [["Bel", "Bella"]]
    assert calls[-1] == (
        path, {"split": "validation", "config": "full", "aliases": names, "answerable_only": True}
    )  # fmt: skip
    with pytest.warns(StepCreditWarning):
        plain = MultiHop(test=path, answerable_only=True).examples("test")  # read again: other options, other answers
    assert json.loads(plain[0].reference)["answers"] == ["Bel"]
    assert calls[-1][1] == {"split": "validation", "config": None, "aliases": None, "answerable_only": True}
    count = len(calls)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert task.examples("test") == examples
    assert len(calls) == count


def test_a_search_reads_the_questions_that_are_asked(tmp_path):
    pytest.importorskip("bm25s")
    path = write(tmp_path, MUSIQUE, {**MUSIQUE, "id": "2", "answerable": False})
    task = MultiHopSearch(test=path, answerable_only=True, k=1)
    with pytest.warns(StepCreditWarning, match="unanswerable question: left out"):
        examples = task.examples("test")
    assert "Its twin is Rio." in task.environment(examples[0].reference).search("twin Oslo")


@pytest.mark.parametrize("recipe", ["multihop-grpo", "multihop-search-grpo"])
def test_the_options_of_a_source_go_through_a_config(recipe):
    told = {"config": "full", "aliases": "names.json", "answerable_only": True}
    config = load_config(recipe, {f"task.{option}": value for option, value in told.items()})
    again = parse_config(dump_config(config))
    assert {option: again.task[option] for option in told} == told
    assert again.task == config.task
    plain = load_config(recipe).task
    assert {option: plain[option] for option in told} == {"config": "", "aliases": "", "answerable_only": False}


def test_equal_paragraphs_are_shown_as_often_as_asked():
    twice = Paragraph("Bern", ("A city.",))
    gold = Paragraph("Oslo", ("A port.",), (0,))
    question = Question("q", "Who?", ("x",), (twice, gold, twice, gold, twice))
    shown = {n: re.findall("# (.)", MultiHop(paragraphs=n).prompt(question)) for n in (2, 3, 4, 5)}
    assert shown == {2: list("OO"), 3: list("BOO"), 4: list("BOBO"), 5: list("BOBOB")}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiHop(facts=1.5), "`facts` must be a whole number; got 1.5"),
        (lambda: MultiHop(facts=None), "`facts` must be a whole number; got None"),
        (lambda: MultiHop(paragraphs=2.5), "`paragraphs` must be a whole number; got 2.5"),
        (lambda: MultiHop(paragraphs=True), "`paragraphs` must be a whole number; got True"),
        (lambda: MultiHop(paragraphs=65), "`paragraphs` must be at most the world's 64; got 65"),
        (lambda: MultiHop(train="x.jsonl", paragraphs=65), "`paragraphs` must be at most the world's 64; got 65"),
        (lambda: MultiHop(hops=True), "`hops` must be a whole number from 1 to 4; got True"),
        (lambda: MultiHop(config=None), "`config` must be a text; got None"),
        (lambda: MultiHop(aliases=3), "`aliases` must be a text; got 3"),
        (lambda: MultiHop(train=("a", "b")), "`train` must be a text; got ('a', 'b')"),
        (lambda: MultiHopSearch(answerable_only="yes"), "`answerable_only` must be true or false; got 'yes'"),
    ],
)
def test_options_of_another_type_are_refused(make, message):
    with pytest.raises(InputError, match=re.escape(message)):
        make()


def test_the_largest_numbers_of_paragraphs():
    assert MultiHop(paragraphs=64).examples("test", 1)[0].prompt.count("# ") == 64
    assert MultiHop(train="x.jsonl", test="y.jsonl", paragraphs=65).paragraphs == 65


@pytest.mark.parametrize("kind", [MultiHop, MultiHopSearch])
def test_only_the_world_alone_has_no_instruction(kind):
    assert kind().instruction == ""
    for sources in ({"train": "x.jsonl"}, {"test": "x.jsonl"}, {"train": "x.jsonl", "test": "y.jsonl"}):
        assert "<answer>" in kind(**sources).instruction
        assert kind(**sources, instruction="").instruction == ""


@pytest.mark.parametrize("kind", [MultiHop, MultiHopSearch])
@pytest.mark.parametrize("reward", ["em", "f1"])
def test_an_answer_is_correct_by_exact_match_whatever_it_earns(kind, reward):
    reference = Question("q", "Who?", ("Bel of Oslo",)).reference(world=0)
    found = {}
    for answer in ("the Bel of Oslo.", "Bel", "Rio"):
        grade = kind(reward=reward).grade(reference, f"<answer>{answer}</answer>")
        found[answer] = (grade.outcome, grade.correct)
    part = 0.5 if reward == "f1" else 0.0  # one word of one, and of three: 2 * 1 * 1/3 / (1 + 1/3)
    assert found == {"the Bel of Oslo.": (1.0, True), "Bel": (part, False), "Rio": (0.0, False)}
