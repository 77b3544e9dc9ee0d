import json
import sys

import pytest

from stepcredit.errors import InputError, MissingExtraError
from stepcredit.tasks import MathProblem, gsm8k_solutions, load_problems
from tasks.published import published


def write(folder, *rows, name="set.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_gsm8k_rows(tmp_path):
    answer = "Half is 2,400/2 = <<2400/2=1200>>1200.\n#### 1,200"
    path = write(tmp_path, {"question": "Half of 2,400?", "answer": answer})
    assert load_problems(path) == [MathProblem("set.jsonl-1", "Half of 2,400?", "1200", answer)]


def test_svamp_rows(tmp_path):
    row = {
        "ID": "chal-1",
        "Body": "A pen costs 2. ",
        "Question": "Two pens?",
        "Equation": "( 2.0 * 2.0 )",
        "Answer": 4.0,
    }
    path = tmp_path / "SVAMP.json"
    path.write_text(json.dumps([row, {**row, "ID": "chal-2", "Answer": 2.5}]))
    assert load_problems(path) == [
        MathProblem("chal-1", "A pen costs 2. Two pens?", "4"),
        MathProblem("chal-2", "A pen costs 2. Two pens?", "2.5"),
    ]


def test_math_rows(tmp_path):
    row = {
        "problem": "Half?",
        "solution": "It is $\\boxed{\\frac12}$.",
        "answer": "\\frac12",
        "unique_id": "test/1.json",
    }
    assert load_problems(write(tmp_path, row)) == [
        MathProblem("test/1.json", "Half?", "\\frac12", "It is $\\boxed{\\frac12}$.")
    ]


@pytest.mark.parametrize("question", ["question", "problem", "prompt", "input"])
@pytest.mark.parametrize("answer", ["answer", "final_answer", "target", "gold"])
def test_common_field_names(tmp_path, question, answer):
    path = write(tmp_path, {question: "1+1?", answer: 2, "note": "x"}, {question: "2+2?", answer: " 4 "})
    assert [(p.question, p.answer, p.solution) for p in load_problems(path)] == [
        ("1+1?", "2", None),
        ("2+2?", "4", None),
    ]


def test_fields_by_name(tmp_path):
    path = write(tmp_path, {"question": "q", "prompt": "p", "label": "7", "answer": "8"})
    with pytest.raises(InputError, match=r"exactly one of the fields question \| problem .* for the question; got the "
                                         r"fields question, prompt, label, answer in .*set.jsonl, row 1. Name it with "
                                         r"question_field="):  # fmt: skip
        load_problems(path)
    assert load_problems(path, question_field="prompt", answer_field="label") == [MathProblem("set.jsonl-1", "p", "7")]
    with pytest.raises(InputError, match=r"must have the field 'gone' for the answer; .* Name it with answer_field="):
        load_problems(path, question_field="prompt", answer_field="gone")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q"}, "fields answer | final_answer | target | gold for the answer; got the fields question in"),
        ({}, "got the fields none in"),
        ({"question": "q", "answer": "1", "gold": "1"}, "for the answer; got the fields question, answer, gold"),
        ({"question": "", "answer": "1"}, "question must be a non-empty text; got '' in"),
        ({"question": [{"role": "user"}], "answer": "1"}, "question must be a non-empty text; got [{"),
        ({"question": "q", "answer": None}, "answer must be a non-empty text or a finite number; got None"),
        ({"question": "q", "answer": [1]}, "finite number; got [1]"),
        ({"question": "q", "answer": True}, "finite number; got True"),
        ({"question": "q", "answer": float("nan")}, "finite number; got nan"),
        ({"question": "q", "answer": "so\n#### "}, "answer must be a non-empty text"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, message):
    path = write(tmp_path, {"question": "fine", "answer": "1"}, row)
    with pytest.raises(InputError) as error:
        load_problems(path)
    assert message in str(error.value)
    assert "set.jsonl, row 2" in str(error.value)


def test_limit_and_missing_path(tmp_path):
    path = write(tmp_path, *({"question": f"{n}?", "answer": n} for n in range(5)))
    assert [p.answer for p in load_problems(path, limit=2)] == ["0", "1"]
    for name in (tmp_path / "none.jsonl", "none/none.jsonl.gz", "./none"):
        with pytest.raises(InputError, match="must be a file that exists"):
            load_problems(name)


def test_a_hub_name_goes_through_datasets(monkeypatch):
    datasets = pytest.importorskip("datasets")
    calls = []

    def load_dataset(name, config=None, *, split):
        calls.append((name, config, split))
        if name == "no/such":
            raise FileNotFoundError("no such dataset")
        return datasets.Dataset.from_list([{"question": f"{n}?", "answer": f"...\n#### {n}"} for n in range(3)])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    problems = load_problems("openai/gsm8k", split="train", limit=2)
    assert [(p.id, p.question, p.answer) for p in problems] == [("gsm8k-1", "0?", "0"), ("gsm8k-2", "1?", "1")]
    load_problems("some/set", config="easy")
    assert calls == [("openai/gsm8k", "main", "train"), ("some/set", "easy", "test")]
    with pytest.raises(InputError, match=r"got 'no/such', split 'test', .*FileNotFoundError: no such dataset"):
        load_problems("no/such")
    with pytest.raises(InputError, match="`limit` must be at least 1"):
        load_problems("some/set", limit=0)


def test_a_folder_goes_through_datasets(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "mine"
    folder.mkdir()
    write(folder, {"question": "1+1?", "answer": "2"}, name="test.jsonl")
    assert load_problems(folder) == [MathProblem("mine-1", "1+1?", "2")]


def test_without_datasets_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"`datasets` is needed to load 'openai/gsm8k' .*stepcredit\[data\]"):
        load_problems("openai/gsm8k")


def test_gsm8k_solutions_rows(tmp_path):
    names = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
    answers = {name: {"is_correct": n % 2 == 0, "solution": f"s{n}\nA: {n}"} for n, name in enumerate(names)}
    row = {"question": "q", "ground_truth": "40*30\nA: 1,200", **answers}
    rollouts, rewards = gsm8k_solutions(write(tmp_path, row, {**row, "question": "r"}))
    assert list(rollouts.prompts) == ["q"] * 4 + ["r"] * 4
    assert list(rollouts.completions) == ["s0\nA: 0", "s1\nA: 1", "s2\nA: 2", "s3\nA: 3"] * 2
    assert list(rollouts.group_ids) == [0] * 4 + [1] * 4
    assert rollouts.references == ["1200"] * 8
    assert rewards == [1.0, 0.0, 1.0, 0.0] * 2
    del row["175b_finetuning"]
    with pytest.raises(InputError, match=r"row 1 has fields .* and lacks '175b_finetuning'"):
        gsm8k_solutions(write(tmp_path, row))


def test_the_published_files_load_whole():
    counts = {"gsm8k/test.jsonl.gz": 1319, "svamp/SVAMP.json.gz": 1000, "math500/test.jsonl.gz": 500}
    for name, count in counts.items():
        problems = load_problems(published(name))
        assert len(problems) == count
        assert all(problem.question and problem.answer for problem in problems)
        assert all(
            "####" not in problem.answer and "," not in problem.answer for problem in problems if "gsm8k" in name
        )
    assert load_problems(published("gsm8k/test.jsonl.gz"), limit=1)[0].answer == "18"  # read off the file by eye
    assert load_problems(published("svamp/SVAMP.json.gz"), limit=1)[0].answer == "51"


def test_the_published_model_solutions_load_whole():
    rollouts, rewards = gsm8k_solutions(published("gsm8k/example_model_solutions.jsonl.gz"))
    assert len(rollouts) == len(rewards) == 4 * 1319
    assert list(rollouts.group_ids) == [question for question in range(1319) for _ in range(4)]
    assert rewards[:8] == [0, 0, 0, 1, 1, 1, 0, 1]  # read off the file by eye
    gold = {problem.question: problem.answer for problem in load_problems(published("gsm8k/test.jsonl.gz"))}
    known = [(gold[q], a) for q, a in zip(rollouts.prompts, rollouts.references, strict=True) if q in gold]
    assert len(known) > 5000
    assert all(a == b for a, b in known)
