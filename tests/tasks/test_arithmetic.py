import random
import re
import time
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stepcredit.errors import InputError
from stepcredit.tasks import Arithmetic
from stepcredit.tasks.arithmetic import STEP_KINDS

PROMPT = "a:3b:+5c:*2d:-7"  # 3+5 = 8; 8*2 = 16 = 6 (mod 10); 6-7 = -1 = 9 (mod 10)
GOLD = "b:3+5=8\nc:8*2=6\nd:6-7=9\nanswer: 9\n"
tasks = st.builds(Arithmetic, operations=st.integers(1, 12), modulus=st.sampled_from([2, 7, 10, 20, 100, 1000]))
seeds = st.integers(0, 2**32)


def brute_force(prompt: str, modulus: int) -> int:
    """The value by Python's own arithmetic on one nested expression, reduced once at the end."""
    start, *rest = re.split(r"[a-z]:", prompt)[1:]
    expression = start
    for operation in rest:
        expression = f"({expression}){operation}"
    return eval(expression) % modulus


def scores(grade):
    return [step.score for step in grade.steps]


def test_the_worked_example_by_hand():
    task = Arithmetic()
    problem = task.parse(PROMPT)
    assert problem.answer == "9"
    assert (problem.start, problem.operations) == (3, (("+", 5), ("*", 2), ("-", 7)))
    assert task.solution(problem) == GOLD


@settings(deadline=None)
@given(tasks, seeds)
def test_gold_grades_one_everywhere_and_has_the_brute_force_value(task, seed):
    problem = task.problem(seed)
    assert int(problem.answer) == brute_force(problem.prompt, task.modulus)
    gold = task.solution(problem)
    grade = task.grade(problem, gold)
    assert (grade.outcome, grade.format_reward, grade.format_ok, grade.parsed) == (1.0, 1.0, True, True)
    assert scores(grade) == [1.0] * (task.operations + 1)
    assert grade.kinds == ("one",) * task.operations + ("answer",)
    assert task.grade(problem.prompt, gold) == grade


@settings(deadline=None)
@given(tasks, seeds, st.data())
def test_any_changed_digit_of_gold_is_refused_from_its_line_on(task, seed, data):
    problem = task.problem(seed)
    gold = task.solution(problem)
    at = data.draw(st.sampled_from([m.start() for m in re.finditer("[0-9]", gold)]))
    digit = data.draw(st.sampled_from([d for d in "0123456789" if d != gold[at]]))
    changed = gold[:at] + digit + gold[at + 1 :]
    line = gold[:at].count("\n")
    grade = task.grade(problem, changed)
    assert scores(grade) == [1.0] * line + [0.0] * (task.operations + 1 - line)
    answer_line = line == task.operations
    assert grade.outcome == (0.0 if answer_line else 1.0)  # the outcome looks at the answer alone


@settings(deadline=None)
@given(tasks, seeds, seeds)
def test_steps_cover_a_noisy_chain_and_an_independent_check_agrees(task, seed, noise):
    problem = task.problem(seed)
    text = task.sample_solution(problem, noise)
    grade = task.grade(problem, text)
    assert grade.format_ok
    assert "".join(text[a:b] for a, b, _ in grade.steps) == text
    assert all(text[b - 1] == "\n" for _, b, _ in grade.steps)
    # Independent: lines of a noisy chain always refer to the right operations, so a line is right exactly when
    # Python's value of its left side is its right side, and the prefix is right while all lines are.
    prefix, expected = True, []
    for line in text.splitlines()[:-1]:
        left, right = line[2:].split("=")
        value, *applied = re.split(r"([+*-])", left)
        total = int(value)
        for operator, operand in zip(applied[::2], applied[1::2], strict=True):
            total = eval(f"({total}){operator}{operand}") % task.modulus
        prefix = prefix and total == int(right)
        expected.append(float(prefix))
    final = int(text.splitlines()[-1].removeprefix("answer: "))
    assert grade.outcome == float(final == brute_force(problem.prompt, task.modulus))
    assert scores(grade) == [*expected, float(prefix and grade.outcome == 1.0)]


def test_kinds_of_steps_by_hand():
    task = Arithmetic()
    #        merged: 3+5 = 8, 8*2 = 6      repeated               one
    text = "c:3+5*2=6\n" + "c:3+5*2=6\n" + "d:6-7=9\n" + "answer: 9\n"
    grade = task.grade(PROMPT, text)
    assert grade.kinds == ("merged", "repeated", "one", "answer")
    assert (scores(grade), grade.outcome, grade.format_ok) == ([1.0] * 4, 1.0, True)
    # A wrong line repeated is wrong; the chain goes on from the claimed total (8+1 = 9), and never recovers.
    grade = task.grade(PROMPT, "b:3+5=9\nb:3+5=9\nc:9*2=8\nd:8-7=1\nanswer: 1\n")
    assert grade.kinds == ("one", "repeated", "one", "one", "answer")
    assert (scores(grade), grade.outcome) == ([0.0] * 5, 0.0)
    # Another label, another total, another operand, a skipped operation: alien. Anything else: malformed.
    for line in ("c:3+5=8\n", "b:4+5=9\n", "b:3+6=9\n", "b:3*5=5\n", "c:3*2=6\n"):
        assert task.grade(PROMPT, line).kinds == ("alien",), line
    for line in ("b:3+5=08\n", "b: 3+5=8\n", "b:3+5=8 \n", "b:3+5=8\r\n", "b:٣+5=8\n", "\n", "b:3+5=18888\n"):
        assert task.grade(PROMPT, line).kinds == ("malformed",), line


@pytest.mark.parametrize(
    ("text", "finished", "outcome", "format_ok", "last_score"),
    [
        (GOLD, True, 1.0, True, 1.0),
        (GOLD.rstrip("\n"), True, 1.0, True, 1.0),  # the last newline may be missing when generation finished
        (GOLD, False, 1.0, False, 1.0),  # a complete answer line, but cut after it
        (GOLD.rstrip("\n"), False, 0.0, False, 0.0),  # "answer: 9" may have been about to become "answer: 92"
        ("answer: 9\n", True, 1.0, False, 0.0),  # a bare guess: outcome only
        ("b:3+5=8\nanswer: 9\n", True, 1.0, True, 0.0),  # stops early and guesses: the answer step is unsupported
        (GOLD + "answer: 9\n", True, 1.0, False, 0.0),  # an answer line before the last line is malformed
        (GOLD + "bye", True, 0.0, False, 0.0),
        (GOLD.replace("answer: 9", "answer: 8"), True, 0.0, True, 0.0),
        ("d:6-7=9\n", True, 0.0, False, 0.0),
    ],
)
def test_answer_and_format(text, finished, outcome, format_ok, last_score):
    grade = Arithmetic().grade(PROMPT, text, finished=finished)
    assert (grade.outcome, grade.format_ok, grade.steps[-1].score) == (outcome, format_ok, last_score)
    assert grade.format_reward == float(format_ok)


def test_empty_completion():
    grade = Arithmetic().grade(PROMPT, "")
    assert (grade.steps, grade.outcome, grade.parsed, grade.reason) == ((), 0.0, False, "no answer line")


@settings(deadline=None)
@given(st.text() | st.text(alphabet="ab:+-*=0123456789\nanswer ٣\r\ud800"), st.booleans())
@example("answer: 9\nanswer: 9", True)
@example("z:3" + "+5" * 50 + "=8\n", True)
def test_any_text_is_graded_and_covered(text, finished):
    grade = Arithmetic().grade(PROMPT, text, finished=finished)
    assert "".join(text[a:b] for a, b, _ in grade.steps) == text
    assert len(grade.kinds) == len(grade.steps)
    assert set(grade.kinds) <= set(STEP_KINDS)
    assert all(before >= after for before, after in pairwise(scores(grade)))  # once wrong, wrong for good


@pytest.mark.parametrize("unit", ["b:3+5=8\n", "+5", "9", "answer: ", "\n", "b:3" + "+5" * 40 + "\n"])
def test_time_is_linear_in_hostile_text(unit):
    task = Arithmetic()

    def seconds(length: int) -> float:
        text = "b:3" + unit * (length // len(unit))
        best = float("inf")
        for _ in range(2):
            start = time.perf_counter()
            task.grade(PROMPT, text)
            best = min(best, time.perf_counter() - start)
        return best

    # 16 times the text: 16 times the time if linear, 256 times if quadratic.
    assert seconds(160_000) < 80 * seconds(10_000) + 0.05


def test_seeds_are_deterministic():
    task = Arithmetic(operations=4)
    assert task.problem(7) == task.problem(7)
    assert len({task.problem(seed).prompt for seed in range(500)}) > 490
    problem = task.problem(7)
    assert task.sample_solution(problem, 3) == task.sample_solution(problem, 3)
    assert len({task.sample_solution(problem, seed) for seed in range(50)}) > 5
    # A seed with fewer operations is a prefix of the same seed with more: difficulty changes, the problem stays.
    assert problem.prompt.startswith(Arithmetic(operations=3).problem(7).prompt)


def test_sampling_leaves_the_global_generator_alone():
    state = random.getstate()
    task = Arithmetic()
    task.sample_solution(task.problem(1), 2)
    assert random.getstate() == state


def test_the_noise_has_the_rates_it_is_told():
    task, count = Arithmetic(operations=1, modulus=10), 4000
    problem = task.parse("a:3b:+5")
    wrong = sum(
        task.grade(problem, task.sample_solution(problem, s, slip=0.25, repeat=0)).outcome == 0 for s in range(count)
    )
    assert abs(wrong / count - 0.25) < 4 * (0.25 * 0.75 / count) ** 0.5
    product = task.parse("a:3b:*5")  # 15 = 5; the bug says 6
    bugged = sum(task.sample_solution(product, s, slip=0, repeat=0).endswith("answer: 6\n") for s in range(count))
    assert abs(bugged / count - 0.5) < 4 * (0.25 / count) ** 0.5
    lines = [task.sample_solution(problem, s, repeat=0.2).count("\n") - 2 for s in range(count)]
    assert abs(sum(lines) / count - 0.25) < 0.04  # geometric: p / (1 - p) repeats on average
    two = Arithmetic(operations=2).parse("a:3b:+5c:-1")
    merged = [task.sample_solution(two, s, merge=0.3, merge_slip=0.5, slip=0, repeat=0) for s in range(count)]
    kinds = [task.grade(two, text).kinds for text in merged]
    assert abs(sum(k[0] == "merged" for k in kinds) / count - 0.3) < 4 * (0.21 / count) ** 0.5
    failed = sum(task.grade(two, text).outcome == 0 for text in merged) / count
    assert abs(failed - 0.15) < 4 * (0.1275 / count) ** 0.5  # merged and slipped: .3 * .5


def test_the_default_tutor_ends_right_about_one_time_in_four():
    task = Arithmetic(operations=6)
    problems = [task.problem(seed) for seed in range(2000)]
    share = sum(task.grade(p, task.sample_solution(p, 1)).outcome for p in problems) / 2000
    assert 0.21 < share < 0.31  # 0.26 was measured with another implementation, over the same noise model


def test_no_noise_is_the_gold_chain():
    task = Arithmetic(operations=8)
    problem = task.problem(11)
    rates = dict.fromkeys(("slip", "product_bug", "merge", "merge_slip", "repeat"), 0.0)
    assert task.sample_solution(problem, 5, **rates) == task.solution(problem)


@pytest.mark.parametrize("settings_", [{"operations": 0}, {"operations": 26}, {"modulus": 1}, {"modulus": 1001}])
def test_ranges(settings_):
    with pytest.raises(InputError, match="must be a whole number from"):
        Arithmetic(**settings_)


def test_the_extremes_of_the_ranges_work():
    for operations, modulus in ((1, 2), (25, 1000)):
        task = Arithmetic(operations, modulus)
        problem = task.problem(0)
        assert len(problem.operations) == operations
        assert task.grade(problem, task.solution(problem)).outcome == 1.0


@pytest.mark.parametrize(
    "prompt", ["", "a:3", "a:+3b:+5", "a:3b:5", "a:3c:+5", "a:3b:+5 ", "a:03b:+5", "a:3b:/5", "hello"]
)
def test_a_prompt_of_another_form_is_an_input_error(prompt):
    with pytest.raises(InputError, match="`prompt` must look like"):
        Arithmetic().grade(prompt, "answer: 1\n")


def test_a_prompt_of_another_modulus_is_an_input_error():
    with pytest.raises(InputError, match="below modulus 10; got 12"):
        Arithmetic().parse("a:3b:+12")


@pytest.mark.parametrize("rates", [{"slip": -0.1}, {"merge": 1.5}, {"repeat": 1.0}])
def test_rates_are_probabilities(rates):
    task = Arithmetic()
    with pytest.raises(InputError, match="must be a probability"):
        task.sample_solution(task.problem(0), 0, **rates)
