"""Evaluation of a policy that searches by tags, held to a plain loop over tokens."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from dialogues import EOS, Asking, make_asking, make_tokenizer
from stepcredit import InputError
from stepcredit.files import write_rows
from stepcredit.runs.evaluate import evaluate
from stepcredit.runs.evaluation import Evaluation
from stepcredit.runs.protocols import OneTurn, protocol_of
from stepcredit.runs.sampling import GREEDY, uniforms
from stepcredit.tasks import Arithmetic, Example, Grade

TASK = Asking(searches=2, result_tokens=40)
LIMIT = 110


@pytest.fixture(scope="module", params=["one token", "characters"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return make_tokenizer(tags=request.param == "one token")


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    return make_asking(tokenizer)


def replay(model: Any, tokenizer: Any, task: Asking, example: Example, sample: int, seed: int) -> dict[str, Any]:
    """One rollout by plain forwards of the whole text: no cache, no batch, no `generate`; its own random numbers."""
    environment = task.environment(example.reference, lambda text: len(tokenizer(text)["input_ids"]))
    draws = iter(uniforms(seed, example.id, sample, LIMIT))
    ids, mask, nats, pieces = list(tokenizer(example.prompt)["input_ids"]), [], [], [""]
    start = len(ids)
    while True:
        with torch.no_grad():
            p = model(torch.tensor([ids])).logits[0, -1].double().softmax(-1).tolist()
        nats.append(-sum(x * math.log(x) for x in p))
        u = next(draws) * sum(p)
        token = next(i for i, total in enumerate(itertools.accumulate(p)) if total > u)
        if sample == GREEDY:
            token = p.index(max(p))
        ids.append(token)
        mask.append(1)
        pieces[-1] += tokenizer.decode([token], skip_special_tokens=True)
        if token == EOS or len(mask) == LIMIT:
            break
        if not pieces[-1].endswith("</search>"):
            continue
        reply = environment.reply(pieces[-1], LIMIT - len(mask) - 1)
        if reply is None:
            break
        shown = tokenizer(reply)["input_ids"]
        ids += shown
        mask += [0] * len(shown)
        pieces.append("")
    return {
        "ids": ids[start:], "mask": mask, "entropy": sum(nats) / len(nats), "length": sum(mask), "turns": len(pieces),
        "finished": ids[-1] == EOS, "written": pieces, "text": tokenizer.decode(ids[start:], skip_special_tokens=True),
    }  # fmt: skip


def test_rows_are_those_of_the_plain_loop_and_the_same_whatever_the_batches(model: Any, tokenizer: Any) -> None:
    examples = TASK.examples("test", 7)
    options: dict[str, Any] = {"samples": 2, "max_new_tokens": LIMIT, "seed": 4}
    found = evaluate(model, tokenizer, TASK, examples, batch_size=64, **options)
    ends = Counter((row.turns, row.finished) for row in found.rows)
    assert {turns for turns, _ in ends} >= {1, 3}
    assert {finished for _, finished in ends} == {True, False}
    by_id = {example.id: example for example in examples}
    for row in found.rows:
        want = replay(model, tokenizer, TASK, by_id[row.id], row.sample, 4)
        assert row.completion == want["text"]
        assert (row.length, row.turns, row.finished) == (want["length"], want["turns"], want["finished"])
        assert row.entropy == pytest.approx(want["entropy"], abs=1e-6)
        mine = "".join(want["written"])
        assert row.measures == {"asked": mine.count("</search>"), "characters": len(mine)}
        assert row.correct == any(f"<answer>r{row.id[2:]}</answer>" in part for part in want["written"])
    for batch_size in (1, 7):
        assert evaluate(model, tokenizer, TASK, examples[::-1], batch_size=batch_size, **options).rows == found.rows


def test_measures_are_averaged_and_written_by_name(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    found = evaluate(model, tokenizer, TASK, TASK.examples("test", 4), samples=2, max_new_tokens=LIMIT)
    sampled = [row for row in found.rows if row.sample != GREEDY]
    for name in ("asked", "characters"):
        by_hand = [sum(row.measures[name] for row in sampled if row.id == f"q-{i}") / 2 for i in range(4)]
        assert found.by_problem()[name].tolist() == by_hand
        assert found.summary()["metrics"][name]["mean"] == pytest.approx(sum(by_hand) / 4)
    turns = [sum(row.turns for row in sampled if row.id == f"q-{i}") / 2 for i in range(4)]
    assert found.by_problem()["turns"].tolist() == turns
    table = found.table()
    assert [row["asked"] for row in table] == [row.measures["asked"] for row in found.rows]
    assert "measures" not in table[0]
    pytest.importorskip("pyarrow")
    write_rows(tmp_path / "rows.parquet", table)


def test_an_answer_right_in_part_does_not_pass(model: Any, tokenizer: Any) -> None:
    class InPart(Asking):
        def grade(self, *args: Any, **options: Any) -> Grade:
            grade = super().grade(*args, **options)
            return dataclasses.replace(grade, outcome=grade.outcome or 0.5, parsed=True)

    task, examples = InPart(searches=2, result_tokens=40), TASK.examples("test", 4)
    found, whole = (
        evaluate(model, tokenizer, each, examples, samples=2, max_new_tokens=LIMIT).rows for each in (task, TASK)
    )
    assert [row.correct for row in found] == [row.correct for row in whole]
    assert not all(row.correct for row in found)


def test_a_task_of_one_turn_has_no_measures_and_no_turns() -> None:
    assert isinstance(protocol_of(Arithmetic(), make_tokenizer()), OneTurn)
    row = {"id": "p-0", "sample": 0, "correct": True, "format_ok": True, "length": 3, "entropy": 0.0, "finished": True}
    from stepcredit.runs.evaluation import Row

    plain = Row(**row, completion="", reason="", kinds=())
    assert plain.turns == 1
    values = Evaluation((plain,), {"samples": 1, "greedy": False}).by_problem()
    assert set(values) == {"pass@1", "length", "entropy", "finished", "format_ok"}


def test_a_grade_has_the_measures_that_its_task_names(model: Any, tokenizer: Any) -> None:
    class Forgets(Asking):
        def grade(self, *args: Any, **options: Any) -> Grade:
            return dataclasses.replace(super().grade(*args, **options), measures={"asked": 1.0})

    with pytest.raises(InputError, match="`task` must give each of its measures"):
        evaluate(model, tokenizer, Forgets(), TASK.examples("test", 1), max_new_tokens=5)
    with pytest.raises(InputError, match="`measures` must be finite; got nan for 'em'"):
        Grade(0.0, measures={"em": float("nan")})
