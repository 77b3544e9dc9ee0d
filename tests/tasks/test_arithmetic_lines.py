"""Every line's kind and score against a second grader, which reads whole lines first and compares numbers."""

import random
import re
from fractions import Fraction

import pytest

from stepcredit.tasks import Arithmetic

_LINE = re.compile(r"(?P<label>[a-z]):(?P<total>\d+)(?P<operations>([+*-]\d+)+)=(?P<result>\d+)", re.ASCII)


def is_number(text: str) -> bool:
    return len(text) <= 4 and str(int(text)) == text


def reading(line: str) -> tuple[int, int, list[tuple[str, int]], int] | None:
    """Label's place, total, operations, result; None where the line is malformed."""
    found = _LINE.fullmatch(line)
    if found is None or not all(map(is_number, re.findall("[0-9]+", line))):
        return None
    operations = [(part[0], int(part[1:])) for part in re.findall("[+*-][0-9]+", found["operations"])]
    return ord(found["label"]) - ord("a"), int(found["total"]), operations, int(found["result"])


def graded(prompt: str, text: str, finished: bool, modulus: int) -> tuple[list[str], list[float]]:
    parts = re.split("[a-z]:", prompt)[1:]
    total, planned = int(parts[0]), [(part[0], int(part[1:])) for part in parts[1:]]
    gold = Fraction(total)
    for op, y in planned:
        gold = gold + y if op == "+" else gold - y if op == "-" else gold * y
    lines = re.findall("[^\n]*\n|[^\n]+", text)
    kinds, scores, right, last = [], [], True, ""
    for i, whole in enumerate(lines):
        line, cut = whole.removesuffix("\n"), not whole.endswith("\n") and not finished
        found = None if cut else reading(line)
        answer = re.fullmatch("answer: ([0-9]+)", line)
        if i == len(lines) - 1 and not cut and answer and is_number(answer[1]):
            right = right and not planned and int(answer[1]) == gold % modulus
            kinds.append("answer")
        elif found is None:
            right = False
            kinds.append("malformed")
        elif line == last:
            kinds.append("repeated")
        else:
            last = line
            place, start, operations, result = found
            taken = len(operations)
            done = prompt.count(":") - 1 - len(planned)
            if start == total and operations == planned[:taken] and place == done + taken:
                value = Fraction(start)
                for op, y in operations:
                    value = value + y if op == "+" else value - y if op == "-" else value * y
                right = right and value % modulus == result
                total, planned = result, planned[taken:]
                kinds.append("one" if taken == 1 else "merged")
            else:
                right = False
                kinds.append("alien")
        scores.append(float(right))
    return kinds, scores


def mutated(text: str, rng: random.Random) -> str:
    """Characters changed, left out or doubled, and lines moved, doubled or left out."""
    lines = text.splitlines(keepends=True)
    for _ in range(rng.choice([0, 0, 1, 2])):
        at = rng.randrange(len(lines))
        lines[at:at] = [lines[rng.randrange(len(lines))]]
        if rng.random() < 0.3:
            del lines[rng.randrange(len(lines))]
    letters = list("".join(lines))
    for _ in range(rng.choice([0, 0, 1, 1, 3])):
        at = rng.randrange(len(letters))
        letters[at : at + rng.choice([0, 1, 1])] = rng.choice(["", *"0123456789abcdef:+-*=\n ٣"])
    return "".join(letters)[: None if rng.random() < 0.8 else rng.randrange(60)]


@pytest.mark.parametrize("modulus", [2, 10, 97, 1000])
def test_lines_are_graded_as_by_a_second_grader(modulus: int) -> None:
    seen: set[str] = set()
    for seed in range(1500):
        rng = random.Random(f"{modulus}:{seed}")
        task = Arithmetic(operations=rng.randint(1, 8), modulus=modulus)
        problem = task.problem(seed)
        text = mutated(task.sample_solution(problem, seed), rng)
        finished = rng.random() < 0.7
        grade = task.grade(problem, text, finished=finished)
        kinds, scores = graded(problem.prompt, text, finished, modulus)
        assert (list(grade.kinds), [step.score for step in grade.steps]) == (kinds, scores), (problem.prompt, text)
        seen |= {*kinds}
    assert seen == {*Arithmetic.kinds}
