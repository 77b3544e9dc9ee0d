import random
import re

import pytest
import torch

from stepcredit.errors import InputError
from stepcredit.runs.courses import FIRST, MultiHopCourse
from stepcredit.runs.tiny import MULTIHOP, tiny_model, tiny_tokenizer
from stepcredit.runs.warm_start import warm_start
from stepcredit.tasks import MultiHop, MultiHopSearch
from stepcredit.tasks.multihop.environment import CUT, MESSAGES, frame
from stepcredit.tasks.multihop.world import World

TOKENIZER = tiny_tokenizer(MULTIHOP)


def ids_of(text):
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def lessons(course, count):
    rng = random.Random(0)
    return [course.lesson(rng, FIRST + n, lambda text: len(ids_of(text))) for n in range(count)]


def test_the_tokenizer_is_exact_on_every_text_of_the_world():
    texts = [frame(f"{message}\n") for message in (*MESSAGES, f"# Oslo The {CUT}")]
    texts = [text.replace("Oslo", "Orlan") for text in texts]
    for prompt, pieces in lessons(MultiHopCourse(4), 80):
        texts += [prompt, *(text for text, _ in pieces)]
    for text in texts:
        ids = ids_of(text)
        assert TOKENIZER.unk_token_id not in ids, text
        assert TOKENIZER.decode(ids) == text
        words = re.findall(r"</?[a-z]+>|\[cut\]| ?[A-Za-z]+|[\s\S]", text)
        assert TOKENIZER.convert_ids_to_tokens(ids) == words


def test_lessons_are_drills_or_are_read_or_searched_and_of_every_length():
    made = lessons(MultiHopCourse(3), 300)
    drills = [(prompt, pieces) for prompt, pieces in made if "Question:" not in prompt]
    prompts = [prompt for prompt, _ in made if "Question:" in prompt]
    assert 110 < len(drills) < 190
    read = [prompt for prompt in prompts if prompt.startswith("#")]
    assert 45 < len(read) < 105
    hops = [prompt.rpartition("Question:")[2].count(" of ") for prompt in prompts]
    assert {n: hops.count(n) > 30 for n in set(hops)} == {1: True, 2: True, 3: True}
    assert {prompt.count("# ") for prompt in read} == {1, 2, 3, 4, 5}


def test_a_drill_states_one_relation_again_and_only_the_values_are_learnt():
    for prompt, pieces in lessons(MultiHopCourse(3, "clean"), 60):
        if "Question:" in prompt:
            continue
        shown, said = prompt.split("\n")[1::2], "".join(text for text, _ in pieces).split("\n")[:-1]
        assert sorted(shown) == sorted(said)
        assert 2 <= len(said) <= 6
        assert len({line.split(" ")[1] for line in said}) == 1
        learnt = [text for text, taught in pieces if taught]
        assert learnt == [f" {line.split(' ')[-1].rstrip('.')}" for line in said]


def test_a_clean_tutor_is_right_in_both_settings():
    for number, (prompt, pieces) in enumerate(lessons(MultiHopCourse(3, "clean"), 100), FIRST):
        if "Question:" not in prompt:
            continue
        text, turns = "".join(piece for piece, _ in pieces), sum(learnt for _, learnt in pieces)
        gold = World(number).question(hops=prompt.rpartition("Question:")[2].count(" of ")).answers[0]
        assert text.endswith(f"<answer> {gold}</answer>")
        assert prompt.startswith("#") == (turns == 1)


def test_the_loss_is_that_of_what_the_tutor_writes():
    # The same lessons, and a plain loop over rows and positions, one row a forward pass; what stands between
    # <information> and </information>, and the line breaks around them, is the environment's; of a drill only what
    # follows "is" is learnt, and the end.
    course, seed, size = MultiHopCourse(3), 1, 12
    report = warm_start(course, updates=1, batch_size=size, seed=seed)[2]
    rng, model, nats, count = random.Random(seed), tiny_model(seed, MULTIHOP), 0.0, 0
    searched = 0
    for number in range(size):
        prompt, pieces = course.lesson(rng, FIRST * (1 + seed) + number, lambda text: len(ids_of(text)))
        left = TOKENIZER(prompt)["input_ids"]
        ids = left + ids_of("".join(text for text, _ in pieces)) + [TOKENIZER.eos_token_id]
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        text = TOKENIZER.convert_ids_to_tokens(ids)
        drill, shown = "Question:" not in prompt, False
        for position in range(len(left), len(ids)):
            shown = shown or (text[position] == "\n" and text[position + 1] == "<information>")
            value = text[position - 1] == " is" or text[position] == "<eos>"
            if value if drill else not shown:
                nats -= float(logprobs[position - 1, ids[position]])
                count += 1
            elif shown and text[position] == "\n" and text[position - 1] == "</information>":
                shown, searched = False, searched + 1
    assert searched > 1
    assert report.tokens == count
    assert report.losses == (pytest.approx(nats / count, rel=1e-5),)


def test_bad_arguments_are_refused():
    with pytest.raises(InputError, match="`tutor` must be noisy or clean; got 'kind'"):
        MultiHopCourse(2, "kind")
    with pytest.raises(InputError, match="`hops` must be a whole number from 1 to 4; got 5"):
        MultiHopCourse(5)


def test_exams_cover_both_settings():
    assert list(MultiHopCourse(2).exams) == ["read, 1", "read, 2", "search, 1", "search, 2"]
    kinds = {type(task) for task in MultiHopCourse(2).exams.values()}
    assert kinds == {MultiHop, MultiHopSearch}
