"""What a run counts of a task's grades, and which rollouts it takes for right."""

import json

from stepcredit import Rollouts
from stepcredit.config import build_task
from stepcredit.runs.grading import TaskGrader
from stepcredit.runs.policies import load_policy
from stepcredit.tasks import Grade, MultiHop

END = 0


def rollouts(*texts: str) -> Rollouts:
    reference = json.dumps({"answers": ["Bel of Oslo"], "gold": [], "world": 0})
    return Rollouts(
        prompts=["?"] * len(texts), completions=list(texts), group_ids=[0] * len(texts),
        references=[reference] * len(texts), token_ids=[[1, END]] * len(texts),
    )  # fmt: skip


def test_an_answer_right_in_part_earns_its_part_and_is_not_right() -> None:
    grader = TaskGrader(MultiHop(reward="f1"), None, [END])
    made = rollouts(*(f"<answer>{answer}</answer>" for answer in ("Bel of Oslo", "Bel", "Rio")))
    assert [grade.outcome for grade in grader.grades(made)] == [1.0, 0.5, 0.0]
    assert grader.correct(made) == [True, False, False]
    counts = grader.counts(made)
    assert (counts["accuracy"], counts["em"], counts["f1"]) == (1.0, 1.0, 1.5)


def test_a_batch_is_graded_once_whoever_asks() -> None:
    policy = load_policy("tiny-arithmetic")
    task = build_task("arithmetic", {"operations": 2})
    asked: list[str] = []

    class Counting:
        kinds, measures = task.kinds, task.measures

        def grade(self, reference: str, text: str, *, finished: bool = True) -> Grade:
            asked.append(text)
            return task.grade(reference, text, finished=finished)

    grader = TaskGrader(Counting(), policy.tokenizer, {policy.tokenizer.eos_token_id})
    for batch in range(4):
        texts = [f"b:3+5={n}\n" for n in range(2 * batch, 2 * batch + 2)]
        ids = [policy.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        references = ["a:3b:+5"] * 2
        grader.outcome(completion_ids=ids, reference=references)
        grader.format(completion_ids=ids, reference=references)
        made = Rollouts(["p"] * 2, texts, [0, 0], token_ids=ids, references=references)
        for read in (grader.correct, grader.score, grader.counts):
            read(made)
        assert asked == texts
        asked.clear()
