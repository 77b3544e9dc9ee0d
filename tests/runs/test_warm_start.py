import argparse
import hashlib
import json
import math
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepcredit.cli import warm_start as verb
from stepcredit.errors import InputError
from stepcredit.runs import provenance, tiny, warm_start
from stepcredit.runs.courses import ArithmeticCourse, MultiHopCourse
from stepcredit.runs.policies import load_policy
from stepcredit.tasks import Arithmetic

SHIPPED = Path(warm_start.__file__).parent / "models" / "tiny_arithmetic"
TOKENIZER = tiny.tiny_tokenizer()
tasks = st.builds(Arithmetic, operations=st.integers(1, 25), modulus=st.sampled_from([2, 7, 10, 100, 1000]))


def tokens_by_hand(text: str) -> list[str]:
    found = []
    while text:
        size = 8 if text.startswith("answer: ") else 2 if re.match("[a-z]:", text) else 1
        found.append(text[:size])
        text = text[size:]
    return found


@settings(deadline=None)
@given(tasks, st.integers(0, 2**64), st.integers(0, 2**32))
def test_the_tokenizer_is_exact_on_every_text_of_the_task(task, seed, noise):
    problem = task.problem(seed)
    prompt, completion = problem.prompt + "\n", task.sample_solution(problem, noise)
    whole = TOKENIZER(prompt)["input_ids"] + TOKENIZER(completion, add_special_tokens=False)["input_ids"]
    assert TOKENIZER.convert_ids_to_tokens(whole) == ["<bos>", *tokens_by_hand(prompt), *tokens_by_hand(completion)]
    assert TOKENIZER.decode(whole, skip_special_tokens=True) == prompt + completion
    assert TOKENIZER(prompt + completion)["input_ids"] == whole
    offsets = TOKENIZER(completion, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    assert [completion[a:b] for a, b in offsets] == tokens_by_hand(completion)


@given(st.text("abcr0123+=: \nswen", max_size=20))
def test_text_of_the_vocabulary_comes_back_and_other_characters_are_unknown_one_by_one(text):
    tokens = TOKENIZER.convert_ids_to_tokens(TOKENIZER(text, add_special_tokens=False)["input_ids"])
    assert tokens == [token if token in tiny.ARITHMETIC.vocabulary else "<unk>" for token in tokens_by_hand(text)]


def test_a_step_is_seven_tokens_and_what_is_unknown_says_so():
    assert len(TOKENIZER("b:3+5=8\n", add_special_tokens=False)["input_ids"]) == 7
    assert TOKENIZER.convert_ids_to_tokens(TOKENIZER("é ")["input_ids"]) == ["<bos>", "<unk>", "<unk>"]
    assert TOKENIZER("")["input_ids"] == [TOKENIZER.bos_token_id]
    padded = TOKENIZER(["a:3", "a:12"], padding=True, padding_side="left")["input_ids"]
    assert [row[0] for row in padded] == [TOKENIZER.pad_token_id, TOKENIZER.bos_token_id]


def test_weights_at_the_start_follow_the_seed_and_leave_the_random_state():
    before = torch.get_rng_state()
    first, same, other = (tiny.tiny_model(seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_training_is_a_function_of_its_seed_and_leaves_threads_and_random_state():
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    course, seen = ArithmeticCourse(Arithmetic(operations=3)), []
    runs = [
        warm_start.warm_start(course, updates=3, batch_size=8, seed=seed, progress=lambda *told: seen.append(told))
        for seed in (0, 0, 1)
    ]
    (first, _, report), (same, _, again), (other, _, _) = runs
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_num_threads() == threads
    assert report.losses == again.losses
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), same.parameters(), strict=True))
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)
    assert seen[:3] == list(enumerate(report.losses, start=1))


def test_the_loss_is_that_of_the_completion_and_its_end_alone():
    # An independent draw of the first batch, and a plain loop over rows and positions, one row a forward pass.
    task, seed, size = Arithmetic(operations=4), 2, 5
    report = warm_start.warm_start(ArithmeticCourse(task), updates=1, batch_size=size, seed=seed)[2]
    rng, model = random.Random(seed), tiny.tiny_model(seed)
    nats, count = 0.0, 0
    for number in range(size):
        drawn = replace(task, operations=rng.randint(2, 4))
        problem = drawn.problem(2**64 * (1 + seed) + number)
        completion = drawn.sample_solution(problem, 2**64 * (1 + seed) + number)
        prompt = TOKENIZER(problem.prompt + "\n")["input_ids"]
        ids = prompt + TOKENIZER(completion, add_special_tokens=False)["input_ids"] + [TOKENIZER.eos_token_id]
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        for position in range(len(prompt), len(ids)):
            nats -= float(logprobs[position - 1, ids[position]])
            count += 1
    assert report.tokens == count
    assert report.losses == (pytest.approx(nats / count, rel=1e-5),)


def test_the_learning_rate_rises_then_falls_in_a_line():
    shares = [warm_start._rate(update, 1250) for update in range(1250)]
    assert shares[0] == pytest.approx(1 / 50)
    assert shares[24] == pytest.approx(25 / 50)
    assert shares[49] == max(shares) == 1.0
    assert shares[649] == pytest.approx(1 - 0.95 * 600 / 1200)  # half way down
    assert shares[1249] == pytest.approx(0.05)
    assert [warm_start._rate(update, 3) for update in range(3)] == [0.02, 0.04, 0.06]


def test_training_goes_on_from_a_policy_of_the_same_vocabulary(tmp_path):
    course = ArithmeticCourse(Arithmetic(operations=2))
    policy = load_policy("tiny-arithmetic")
    model, _, report = warm_start.warm_start(
        course, updates=1, batch_size=4, learning_rate=1e-6, start="tiny-arithmetic"
    )
    assert report.start == "tiny-arithmetic"
    pairs = zip(model.parameters(), policy.model.parameters(), strict=True)
    assert 0 < max(float((a - b).detach().abs().max()) for a, b in pairs) < 1e-5
    assert report.losses[0] < 1.0  # random weights begin at the logarithm of the vocabulary, 3.9
    with pytest.raises(InputError, match="`start` must have the vocabulary of the built-in multi-hop world"):
        warm_start.warm_start(MultiHopCourse(), updates=1, start="tiny-arithmetic")


def test_the_loss_goes_down():
    losses = warm_start.warm_start(ArithmeticCourse(Arithmetic(operations=4)), updates=30, batch_size=16)[2].losses
    assert losses[0] == pytest.approx(
        math.log(len(tiny.ARITHMETIC.vocabulary)), rel=0.05
    )  # at first every token is as likely
    assert losses[-1] < 0.75 * losses[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"updates": 0}, "`updates` must be at least 1; got 0"),
        ({"batch_size": 0}, "`batch_size` must be at least 1; got 0"),
        ({"threads": 0}, "`threads` must be at least 1; got 0"),
        ({"seed": -1}, "`seed` must not be negative; got -1"),
        ({"learning_rate": 0.0}, "`learning_rate` must be a positive number; got 0.0"),
        ({"learning_rate": math.nan}, "`learning_rate` must be a positive number; got nan"),
        ({"learning_rate": 1e30, "updates": 5, "batch_size": 2}, "`learning_rate` must keep the loss finite; got"),
    ],
)
def test_what_cannot_be_trained_is_refused(options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        warm_start.warm_start(ArithmeticCourse(Arithmetic(operations=2)), **options)


@pytest.fixture(scope="module")
def trained():
    return warm_start.warm_start(ArithmeticCourse(Arithmetic(operations=1)), updates=2, batch_size=4)


ACCURACY = [warm_start.Accuracy(exam="1", problems=4, sampled=0.25, greedy=0.5, finished=1.0, length=12.0)]


def test_the_folder_is_standard_and_reloads_with_equal_logits(tmp_path, trained):
    model, tokenizer, report = trained
    folder = tmp_path / "policy"
    digest = provenance.save_warm_start(folder, model, tokenizer, report, ACCURACY, command="make it")
    names = ["PROVENANCE.md", "config.json", "generation_config.json", "model.safetensors"]
    assert sorted(path.name for path in folder.iterdir()) == [*names, "tokenizer.json", "tokenizer_config.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
    probe = tmp_path / "probe"
    probe.touch()
    assert {path.stat().st_mode for path in folder.iterdir()} == {probe.stat().st_mode}
    generation = json.loads((folder / "generation_config.json").read_text())
    assert [generation[f"{name}_token_id"] for name in ("pad", "bos", "eos")] == [0, 1, 2]
    assert digest == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    told = (folder / "PROVENANCE.md").read_text()
    assert digest in told
    assert "    make it\n" in told
    assert "| 1 | 0.250 | 0.500 | 1.000 | 12.0 |" in told
    policy = load_policy(folder)
    ids = tokenizer("a:3b:+5\nb:3+5=8\n", return_tensors="pt")["input_ids"]
    assert policy.tokenizer("a:3b:+5\nb:3+5=8\n")["input_ids"] == ids[0].tolist()
    with torch.no_grad():
        assert torch.equal(policy.model(ids).logits, model(ids).logits)


def test_a_folder_is_never_written_over_and_never_half_there(tmp_path, trained, monkeypatch):
    for there in (tmp_path / "there", tmp_path / "link"):
        there.mkdir() if there.name == "there" else there.symlink_to(tmp_path / "nowhere")
        with pytest.raises(InputError, match="must name a folder that does not exist yet"):
            provenance.save_warm_start(there, *trained, ACCURACY, command="")
    with pytest.raises(InputError, match="must lie in a folder that exists"):
        provenance.save_warm_start(tmp_path / "no" / "policy", *trained, ACCURACY, command="")
    monkeypatch.setattr(provenance, "_provenance", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        provenance.save_warm_start(tmp_path / "policy", *trained, ACCURACY, command="")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "there"]


def test_the_verb_trains_measures_and_writes(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    words = ["--out", str(tmp_path / "p"), "--operations", "2", "--updates", "2", "--problems", "2"]
    result = verb.run(parser.parse_args(words))
    assert json.loads(json.dumps(result)) == result
    assert "2 of 2 updates" in capsys.readouterr().err
    assert [row["exam"] for row in result["accuracy"]] == ["2"]
    assert result["command"].endswith(
        "--task arithmetic --tutor noisy --operations 2 --modulus 10 --updates 2 --batch-size 64 "
        "--learning-rate 0.003 --seed 0 --problems 2 --threads 1"
    )
    assert result["sha256"] in (tmp_path / "p" / "PROVENANCE.md").read_text()
    assert result["sha256"] in verb.show(result)
    for more, message in (([], "does not exist yet"), (["--problems", "0", "--out", str(tmp_path / "q")], "problems")):
        with pytest.raises(InputError, match=message):
            verb.run(parser.parse_args([*words, *more]))


def test_the_shipped_policy_is_the_one_its_provenance_tells_of():
    written = (SHIPPED / "PROVENANCE.md").read_text()
    weights = (SHIPPED / "model.safetensors").read_bytes()
    assert re.findall("[0-9a-f]{64}", written) == [hashlib.sha256(weights).hexdigest()]
    policy = load_policy("tiny-arithmetic")
    assert f"{policy.model.num_parameters():,} parameters" in written
    assert policy.tokenizer.get_vocab() == TOKENIZER.get_vocab()
    told = {int(cells[0]): float(cells[1]) for cells in re.findall(r"^\| (\d+) \| ([\d.]+) \|", written, re.M)}
    assert list(told) == list(range(2, 11))
    assert 0.12 <= told[10] <= 0.20  # right often enough to learn from, wrong often enough to have much to learn


def test_the_shipped_policy_answers_as_often_as_told():
    policy = load_policy("tiny-arithmetic")
    accuracy = warm_start.measure(policy.model, policy.tokenizer, "10", Arithmetic(operations=10), problems=64)
    assert 0.02 <= accuracy.sampled <= 0.33  # about .14 with a standard error of .043: 2.8 of them below, 4.4 above
    assert accuracy.finished > 0.9
    assert policy.model.dtype == torch.float32
