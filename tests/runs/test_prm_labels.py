import re
from dataclasses import replace

import pytest
import torch

from stepcredit.batch import Span
from stepcredit.errors import InputError
from stepcredit.runs import prm_labels
from stepcredit.runs.policies import load_policy
from stepcredit.runs.prm_labels import Sampling, Solution, monte_carlo_labels, sample_solutions, task_labels
from stepcredit.tasks import Arithmetic, Example, Mathematics, MultiHopSearch, segment

TASK = Arithmetic(operations=2)
SAMPLING = Sampling(samples=2, rollouts_per_step=4, max_new_tokens=40, batch_size=8, seed=3)


@pytest.fixture(scope="module")
def policy():
    return load_policy("tiny-arithmetic")


def ids_of(policy, text):
    return policy.tokenizer(text, add_special_tokens=False)["input_ids"]


def solution(policy, text, prompt="a:3b:+5c:*2", by="lines"):
    example = Example("p", prompt + "\n", prompt)
    grade = TASK.grade(prompt, text)
    return Solution(
        example, 0, policy.tokenizer(example.prompt)["input_ids"], ids_of(policy, text), text, True, grade,
        tuple(segment(text, by)),
    )  # fmt: skip


def script(monkeypatch, answer):
    """Replaces the policy's sampling by ``answer(beginning, index among its rollouts)`` -> the ids written."""
    seen = []

    def sample_groups(model, prompts, **options):
        rows, counts = [], {}
        for ids in prompts:
            number = counts[tuple(ids)] = counts.get(tuple(ids), 0) + 1
            rows.append(answer(ids, number - 1)[: options["max_new_tokens"]])
        seen.append((prompts, options["max_new_tokens"]))
        return rows

    monkeypatch.setattr(prm_labels, "sample_groups", sample_groups)
    return seen


@pytest.mark.parametrize("target", ["soft", "hard"])
def test_a_label_is_the_share_of_right_rollouts_from_exactly_there(monkeypatch, policy, target):
    first, second = "b:3+5=8\nc:8*2=6\nanswer: 6\n", "b:3+5=7\nc:7*2=4\nanswer: 6\n"
    right, wrong = ([*ids_of(policy, f"answer: {n}\n"), policy.tokenizer.eos_token_id] for n in (6, 4))
    prompt = policy.tokenizer("a:3b:+5c:*2\n")["input_ids"]
    shares = {"b:3+5=8\n": 3, "b:3+5=8\nc:8*2=6\n": 4, "b:3+5=7\n": 1, "b:3+5=7\nc:7*2=4\n": 0}

    def answer(ids, number):
        assert ids[: len(prompt)] == prompt
        text = policy.tokenizer.decode(ids[len(prompt) :])
        return right if number < shares[text] else wrong

    seen = script(monkeypatch, answer)
    rows = [solution(policy, text) for text in (first, second)]
    labeled, report = monte_carlo_labels(policy, TASK, rows, SAMPLING, target=target)
    soft = [(0.75, 1.0, 1.0), (0.25, 0.0, 1.0)]  # the last ones are the solutions' own outcomes
    assert [row.labels for row in labeled] == (soft if target == "soft" else [(1, 1, 1), (1, 0, 1)])
    assert [row.steps for row in labeled] == [tuple(re.findall(r".*\n", text)) for text in (first, second)]
    assert (labeled[0].id, labeled[0].problem, labeled[0].group) == ("p/0", "a:3b:+5c:*2\n", "p")
    assert (report.solutions, report.steps, report.rollouts, report.reencoded) == (2, 6, 16, 0)
    assert report.tokens == 16 * len(right)
    assert report.right == 1.0
    assert sum(len(prompts) for prompts, _ in seen) == 16
    assert max(len(prompts) for prompts, _ in seen) <= SAMPLING.batch_size


def test_a_rollout_has_what_its_beginning_leaves_of_the_limit(monkeypatch, policy):
    text = "b:3+5=8\nc:8*2=6\nanswer: 6\n"
    written = [*ids_of(policy, "c:8*2=6\nanswer: 6\n"), policy.tokenizer.eos_token_id]  # 7 + 3 and the end
    second = len(policy.tokenizer("a:3b:+5c:*2\n")["input_ids"]) + 14  # the prompt and two steps of 7 tokens
    script(monkeypatch, lambda ids, _: written[7:] if len(ids) == second else written)
    row = solution(policy, text)
    whole = "b:3+5=8\n" + "c:8*2=6\nanswer: 6\n"
    for room, text_there, right in (
        (11, whole, True),
        (10, whole, True),
        (9, whole[:-1], False),
        (8, whole[:-2], False),
    ):
        assert TASK.grade("a:3b:+5c:*2", text_there, finished=room == 11).outcome == right
        labeled, _ = monte_carlo_labels(policy, TASK, [row], replace(SAMPLING, max_new_tokens=7 + room))
        assert labeled[0].labels[0] == right
        assert labeled[0].labels[1] == right  # 7 tokens on, with 7 fewer left, though the batch has room for more


def test_near_temperature_zero_a_label_is_what_transformers_own_greedy_decoding_says(policy):
    sampling = Sampling(samples=1, rollouts_per_step=2, temperature=1e-4, max_new_tokens=40, seed=1)
    examples = TASK.examples("train", 6, seed=2)
    sampled = sample_solutions(policy, TASK, examples, replace(sampling, temperature=1.5))
    labeled, report = monte_carlo_labels(policy, TASK, sampled, sampling)
    model, tokenizer, seen = policy.model, policy.tokenizer, set()
    for row, found, example in zip(sampled, labeled, examples, strict=True):
        assert "".join(found.steps) == row.text
        for k in range(len(found.steps) - 1):
            beginning = "".join(found.steps[: k + 1])
            ids = torch.tensor([tokenizer(example.prompt)["input_ids"] + ids_of(policy, beginning)])
            room = 40 - len(ids_of(policy, beginning))
            out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=room)
            finished = out[0, -1].item() == tokenizer.eos_token_id
            text = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
            expected = TASK.grade(example.reference, beginning + text, finished=finished).outcome
            assert found.labels[k] == expected
            seen.add(expected)
        assert found.labels[-1] == TASK.grade(example.reference, row.text, finished=row.finished).outcome
    assert seen == {0.0, 1.0}
    assert report.rollouts == 2 * sum(len(row.steps) - 1 for row in labeled)


def test_solutions_and_labels_follow_the_seed_and_leave_the_random_state(policy):
    examples = TASK.examples("train", 3)
    state = torch.get_rng_state()
    made = []
    for seed in (0, 0, 1):
        sampling = replace(SAMPLING, seed=seed)
        sampled = sample_solutions(policy, TASK, examples, sampling)
        made.append(([row.text for row in sampled], monte_carlo_labels(policy, TASK, sampled, sampling)[0]))
    assert torch.equal(state, torch.get_rng_state())
    assert made[0] == made[1]
    assert made[0][0] != made[2][0]
    assert [row.id for row in made[0][1]] == [f"train-{k}/{sample}" for k in range(3) for sample in range(2)]


def test_a_step_that_ends_inside_a_token_is_encoded_again_and_counted(monkeypatch, policy):
    row = solution(policy, "b:3+5=8\nanswer: 6\n")
    cut = replace(row, steps=(Span(0, 1), Span(1, 8), Span(8, len(row.text))))  # "b" | ":3+5=8\n"; "b:" is one token
    script(monkeypatch, lambda *_: [policy.tokenizer.eos_token_id])
    _, report = monte_carlo_labels(policy, TASK, [cut], SAMPLING)
    assert report.reencoded == 1


def test_the_tasks_verdict_labels_every_step_and_needs_a_task_that_has_one(policy):
    sampled = sample_solutions(policy, TASK, TASK.examples("train", 4), SAMPLING)
    labeled, report = task_labels(sampled)
    for row, found in zip(sampled, labeled, strict=True):
        grade = TASK.grade(row.example.reference, "".join(found.steps), finished=row.finished)
        assert list(found.labels) == [score for _, _, score in grade.steps]
    assert (report.rollouts, report.solutions) == (0, 8)
    stepless = [replace(row, grade=Mathematics().grade("6", row.text)) for row in sampled]
    with pytest.raises(InputError, match="`labels` must be 'monte-carlo' for a task that grades no steps"):
        task_labels(stepless)


def test_an_empty_solution_is_left_out_and_counted(monkeypatch, policy):
    script(monkeypatch, lambda *_: [policy.tokenizer.eos_token_id])
    empty, other = solution(policy, ""), solution(policy, "b:3+5=8\nanswer: 6\n")
    labeled, report = monte_carlo_labels(policy, TASK, [empty, other], SAMPLING)
    assert (len(labeled), report.stepless, report.solutions) == (1, 1, 1)
    with pytest.raises(InputError, match="`solutions` must have one with a step"):
        monte_carlo_labels(policy, TASK, [empty], SAMPLING)
    with pytest.raises(InputError, match="`max_new_tokens` must fit the policy's 512 positions"):
        sample_solutions(policy, TASK, TASK.examples("train", 1), replace(SAMPLING, max_new_tokens=512))


def test_a_task_that_searches_is_refused(policy):
    task = MultiHopSearch()
    with pytest.raises(InputError, match=r"`task` must be one without searches, .*; got multihop-search"):
        sample_solutions(policy, task, task.examples("train", 1), SAMPLING)


def test_an_answer_right_in_part_is_not_right(monkeypatch, policy):
    class InPart(Arithmetic):
        def grade(self, *args, **options):
            grade = super().grade(*args, **options)
            return replace(grade, outcome=grade.outcome or 0.5, correct=grade.correct, parsed=True)

    task, eos = InPart(operations=2), policy.tokenizer.eos_token_id
    script(monkeypatch, lambda *_: [*ids_of(policy, "answer: 4\n"), eos])
    text = "b:3+5=8\nanswer: 4\n"
    row = replace(solution(policy, text), grade=task.grade("a:3b:+5c:*2", text))
    assert row.grade.outcome == 0.5
    labeled, report = monte_carlo_labels(policy, task, [row], SAMPLING)
    assert (labeled[0].labels, report.right) == ((0.0, 0.0), 0.0)
