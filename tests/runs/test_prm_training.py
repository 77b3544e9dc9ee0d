import json
import math
from dataclasses import replace

import pytest
import torch

from stepcredit.batch import Rollouts
from stepcredit.errors import InputError
from stepcredit.runs.policies import load_policy
from stepcredit.runs.prm_backbone import Scratch, from_scratch, load_backbone
from stepcredit.runs.prm_folder import save_prm
from stepcredit.runs.prm_scores import score_solutions
from stepcredit.runs.prm_training import encode_solutions, provenance, train_prm
from stepcredit.signals import PRM
from stepcredit.signals.prm.training import StepTraining, step_probabilities
from stepcredit.tasks import Arithmetic, LabeledSteps

transformers = pytest.importorskip("transformers")
TASK = Arithmetic(operations=3)
SMALL = Scratch(hidden_size=16, layers=2, heads=2, vocabulary=300, positions=128)


def tutor(count, first=0):
    """Solutions of the noisy tutor with the task's own verdicts."""
    made = []
    for seed in range(first, first + count):
        problem = TASK.problem(seed)
        text = TASK.sample_solution(problem, seed)
        steps = TASK.grade(problem, text).steps
        texts = tuple(text[start:end] for start, end, _ in steps)
        made.append(LabeledSteps(f"t{seed}", problem.prompt + "\n", texts, tuple(score for *_, score in steps)))
    return made


def by_hand(folder, problem, steps, separator="\n"):
    """Transformers alone: the checkpoint's classes and the layout written out."""
    model = transformers.AutoModelForTokenClassification.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    ids, marks = ids + tokenizer.encode(problem, add_special_tokens=False), []
    for step in steps:
        ids += tokenizer.encode(step.strip(), add_special_tokens=False)
        ids += tokenizer.encode(separator, add_special_tokens=False)
        marks.append(len(ids) - 1)
    logits = model(input_ids=torch.tensor([ids])).logits[0, marks].detach().double()
    return [1 / (1 + math.exp(a - b)) for a, b in logits.tolist()]


@pytest.mark.parametrize("start", ["backbone", "encoder", "decoder"])
def test_the_folder_alone_is_a_process_reward_model(tmp_path, start):
    solutions = tutor(12)
    if start == "backbone":
        model, tokenizer = load_backbone("tiny-arithmetic")
    else:
        model, tokenizer = from_scratch(replace(SMALL, kind=start), [text for row in solutions for text in row.steps])
    options = StepTraining(epochs=2, batch_size=4, learning_rate=1e-3)
    report = train_prm(model, tokenizer, solutions[:10], held_out=solutions[10:], options=options, separator="\n")
    text = provenance(report, command="c", start="s", labels="l", parameters=1)
    digest = save_prm(tmp_path / "prm", model, tokenizer, separator="\n", provenance=text, probe=report.probe)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prm"]
    assert digest in (tmp_path / "prm" / "PROVENANCE.md").read_text()
    assert json.loads((tmp_path / "prm" / "stepcredit_prm.json").read_text()) == {"preset": "trl", "separator": "\n"}
    scores = score_solutions(PRM(str(tmp_path / "prm"), device="cpu"), solutions, at_once=5)
    for row in solutions:
        assert scores[row.id] == pytest.approx(by_hand(tmp_path / "prm", row.problem, row.steps), abs=1e-5)
    with pytest.raises(InputError, match="`--out` must name a folder that does not exist"):
        save_prm(tmp_path / "prm", model, tokenizer, separator="\n", provenance=text, probe=report.probe)


def test_a_folder_that_would_not_score_as_the_model_is_not_written(tmp_path):
    model, tokenizer = from_scratch(SMALL, ["a b c"])
    with pytest.raises(InputError, match="`out` must score as the model does"):
        save_prm(tmp_path / "prm", model.eval(), tokenizer, separator="\n", provenance="", probe=[0.0, 1.0])
    assert list(tmp_path.iterdir()) == []


def test_the_body_of_a_policy_is_kept_under_a_head_of_its_own():
    policy, (model, _) = load_policy("tiny-arithmetic").model, load_backbone("tiny-arithmetic", seed=1)
    body, found = policy.model.state_dict(), model.model.state_dict()
    assert body.keys() == found.keys()
    assert all(torch.equal(body[name], found[name]) for name in body)
    state = torch.get_rng_state()
    same, other = (load_backbone("tiny-arithmetic", seed=seed)[0].score.weight for seed in (1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(model.score.weight, same)
    assert not torch.equal(model.score.weight, other)


def test_ground_truth_labels_are_learned_and_held_out_steps_show_it():
    solutions = tutor(160)
    model, tokenizer = load_backbone("tiny-arithmetic")
    options = StepTraining(epochs=6, batch_size=16, learning_rate=4e-3)
    before = train_prm(
        model, tokenizer, solutions[:1], held_out=solutions[128:], options=StepTraining(learning_rate=1e-9)
    )
    report = train_prm(model, tokenizer, solutions[:128], held_out=solutions[128:], options=options)
    inputs, labels, _ = encode_solutions(tokenizer, solutions[128:])
    pairs = [
        (p, y) for row, ys in zip(step_probabilities(model, inputs), labels, strict=True)
        for p, y in zip(row, ys, strict=True)
    ]  # fmt: skip
    loss = -sum(math.log(p if y else 1 - p) for p, y in pairs) / len(pairs)
    ups, downs = ([p for p, y in pairs if y == kind] for kind in (1.0, 0.0))
    auc = sum((a > b) + (a == b) / 2 for a in ups for b in downs) / len(ups) / len(downs)
    assert report.held_out == {
        "solutions": 32, "steps": len(pairs), "loss": pytest.approx(loss, rel=1e-6), "auc": pytest.approx(auc)
    }  # fmt: skip
    assert auc > 0.75
    assert report.held_out["loss"] < before.held_out["loss"]
    assert (model.training, report.blank_steps, report.unread_steps) == (False, 0, 0)


def test_what_the_model_does_not_read_is_counted():
    model, tokenizer = from_scratch(SMALL, [])
    rows = [
        LabeledSteps("a", "p", ("xx", " \n", "yyyy"), (1.0, 0.0, None)),
        LabeledSteps("b", "p", ("zz", "zzzzzzzz"), (0.0, 1.0)),
        LabeledSteps("c", "p", ("z",), (None,)),
    ]
    inputs, labels, blank = encode_solutions(tokenizer, rows)
    assert (labels, blank) == ([[1.0, None], [0.0, 1.0], [None]], 1)
    assert [(len(ids), marks) for ids, marks in inputs] == [(9, [3, 8]), (13, [3, 12]), (3, [2])]  # a byte a token
    report = train_prm(model, tokenizer, rows, options=StepTraining(), max_length=8)
    assert (report.blank_steps, report.unread_steps) == (1, 2)
    assert (report.metrics["steps"], report.metrics["unlabeled_rows"]) == (2, 1)
    with pytest.raises(InputError, match="`max_length` must be from 1 to the model's 128 positions; got 129"):
        train_prm(model, tokenizer, rows, max_length=129)


def test_a_new_tokenizer_reads_digits_one_by_one_and_loses_no_character():
    texts = ["So $1234 + 567 = 1801$.", "émigré \\frac{1}{2}\n\n\t🎉 数"] * 3
    first, second = (from_scratch(SMALL, texts) for _ in range(2))
    assert first[1].get_vocab() == second[1].get_vocab()
    assert all(torch.equal(a, b) for a, b in zip(first[0].parameters(), second[0].parameters(), strict=True))
    tokenizer = first[1]
    for text in (*texts, "never seen: ∑ 42\r\n"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text
        pieces = [tokenizer.decode([token]) for token in ids]
        assert all(len(piece) == 1 for piece in pieces if any(c.isdigit() for c in piece))
    assert len(tokenizer) <= 300
    with pytest.raises(InputError, match="`hidden_size` must be a multiple of twice the 2 heads; got 18"):
        Scratch(hidden_size=18, heads=2)
    with pytest.raises(InputError, match="`layers` must be at least 2 for an encoder"):
        Scratch(layers=1)


def test_backbones_that_are_none_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"has no config\.json"):
        load_backbone(tmp_path)
    with pytest.raises(InputError, match=r"`backbone` must be .* a local folder or a hub name; got './absent'"):
        load_backbone("./absent")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="`backbone` must be loadable as a token classifier"):
        load_backbone(tmp_path)


def test_scores_come_by_step_and_blank_or_unread_steps_have_none():
    class Signal:
        name = "half"

        def score(self, rollouts):
            rows = []
            for text, spans in zip(rollouts.completions, rollouts.steps, strict=True):
                kept = [span for span in spans if text[span.start : span.end].strip()]
                rows.append([(*span, len(text[span.start : span.end]) / 10) for span in kept][:2])
            return rows

    rows = [
        LabeledSteps("a", "p", ("xx", "", " ", "y\nyy", "z"), (1.0,) * 5),
        LabeledSteps("b", "p", ("q", ""), (1.0,) * 2),
    ]
    assert score_solutions(Signal(), rows, at_once=1) == {"a": [0.2, None, None, 0.4, None], "b": [0.1, None]}

    class Shifted(Signal):
        def score(self, rollouts: Rollouts):
            return [[(spans[0].start, spans[0].end + 1, 0.5)] for spans in rollouts.steps]

    with pytest.raises(InputError, match="`signal` must score the steps it is given; half gave"):
        score_solutions(Shifted(), rows)
