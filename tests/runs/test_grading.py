"""What a run counts of a task's grades, and which rollouts it takes for right."""

import json

from stepcredit import Rollouts
from stepcredit.runs.grading import TaskGrader
from stepcredit.tasks import MultiHop

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
