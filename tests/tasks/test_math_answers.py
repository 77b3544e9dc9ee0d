import importlib.util
import logging
import pickle
import re
import threading
import time
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepcredit.tasks import AnswerGrader, FinalAnswer, final_answer, gsm8k_solutions, load_problems
from stepcredit.tasks.math_answers import rational
from tasks.published import published

if importlib.util.find_spec("math_verify") is None:
    pytest.skip("math-verify is not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def grader():
    made = AnswerGrader(timeout_s=20.0)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("2+2=4\n#### 4", "4"),
        ("A: 4", "4"),
        ("so\nA: $4.00", "$4.00"),
        ("Answer: 4.", "4"),
        ("**Final answer:** $4$", "4"),
        ("### The final answer:\n\n4\n", "4"),
        ("#### Final Answer: 4", "4"),
        ("answer: The answer is 4", "4"),
        (r"so $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}} is it", r"\{1, 2\}"),
        (r"\boxed{1} no, \boxed {2}", "2"),  # the last mark counts
        ("A: 1\n#### 2", "2"),
        (r"\boxed{1}" + "\n#### 2", "2"),
        (r"Answer: $\boxed{2}$ eggs", "2"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{3}. To check the answer: 3 is odd", "3"),  # inside a line "answer:" is no mark
    ],
)
def test_marked_answers(completion, answer):
    assert final_answer(completion) == FinalAnswer(answer, True)


@pytest.mark.parametrize(
    ("completion", "answer"),
    [("I think\nit is 4 eggs.\n\n", "it is 4 eggs"), ("4", "4"), ("AA: 4", "AA: 4"), ("# 4", "# 4")],
)
def test_without_a_mark_the_last_line_is_searched(completion, answer):
    assert final_answer(completion) == FinalAnswer(answer, False)


@pytest.mark.parametrize(
    "completion", ["", " \n", "####", "A: \n \n", r"\boxed{", r"\boxed{12", r"\boxed{ }", "#### " + "9" * 1001]
)
def test_no_answer(completion):
    assert final_answer(completion) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-5", -5), ("+5", 5), ("1,234", 1234), ("1234.50", Fraction(2469, 2)), (".5", Fraction(1, 2)), ("$-3", -3),
        ("-$3", -3), ("\\$18.90", Fraction(189, 10)), ("10,\\!080", 10080),
        ("11,\\! 111", 11111), ("3/4", Fraction(3, 4)),
        ("\\frac{6}{4}", Fraction(3, 2)), ("-\\dfrac{1}{2}", Fraction(-1, 2)), ("\\frac43", Fraction(4, 3)), ("007", 7),
        ("\N{MINUS SIGN}2", -2), ("1{,}000", 1000),
    ],
)  # fmt: skip
def test_rational_numbers_are_read_exactly(text, value):
    assert rational(text) == (value, False)


@pytest.mark.parametrize(
    "text", ["", "x", "5 or 6", "1,2", "1,23", "3 5", "1/0", "\\frac{1}{0}", "1e5", "--5", "٣", "5.5.5"]
)
def test_anything_else_is_no_plain_number(text):
    assert rational(text) is None


@settings(deadline=None)
@given(st.fractions(min_value=-(10**9), max_value=10**9), st.integers(0, 6))
def test_printed_numbers_are_read_back(value, places):
    assert rational(str(value)) == (value, False)
    assert rational(f"\\frac{{{value.numerator}}}{{{value.denominator}}}") == (value, False)
    fixed = round(value * 10**places)
    sign, digits = ("-" if fixed < 0 else ""), f"{abs(fixed):0{places + 1}d}"
    whole, decimals = digits[: len(digits) - places], digits[len(digits) - places :]
    assert rational(f"{sign}{int(whole):,}.{decimals}") == (Fraction(fixed, 10**places), False)


@pytest.mark.parametrize(
    ("gold", "answer", "outcome", "reason"),
    [
        ("18", "18", 1, "exact"),
        ("18", "18.00", 1, "numeric"),
        ("18", "$18", 1, "numeric"),
        ("18", "18 dollars per day", 1, "numeric"),
        ("18", "18.5", 0, "numeric"),
        ("18", "18 thousand", 0, "symbolic"),
        ("18", "18 or 19", 0, "symbolic"),
        ("18", "18, 19", 0, "symbolic"),
        ("50", "50%", 1, "numeric"),
        ("0.5", "50%", 1, "numeric"),
        ("50%", "0.5", 1, "numeric"),
        ("50", "5%", 0, "numeric"),
        ("1/3", "0.333333", 1, "symbolic"),  # math-verify rounds to six decimals
        ("1/3", "0.3333", 0, "numeric"),
        ("1000000", "1000001", 0, "numeric"),
        ("52_8", "52_{8}", 1, "base"),
        ("52_8", "52", 1, "base"),
        ("52_8", "52_9", 0, "base"),
        ("52_8", "42", 0, "base"),
        ("\\text{Evelyn}", "evelyn", 1, "words"),
        ("\\text{(C)}", "C", 1, "words"),
        ("\\text{east}", "seat", 0, "words"),  # an anagram is the same product of letters
        ("east", "\\text{seat}", 0, "words"),
        ("\\frac{\\sqrt{3}}{3}", "1/\\sqrt{3}", 1, "symbolic"),
        ("90^\\circ", "90", 1, "symbolic"),
        ("x=5", "5", 1, "symbolic"),
        ("\\boxed{\\frac{1}{2}}", "1/2", 1, "numeric"),
        ("x+1", "{", 0, "unparsed"),
        ("x+1", "1} + \\frac{x", 0, "unparsed"),
        ("", "5", 0, "gold unparsed"),
    ],
)
def test_comparison(grader, gold, answer, outcome, reason):
    grade = grader(f"#### {answer}", gold)
    assert (grade.outcome, grade.reason) == (outcome, reason)
    assert grade.parsed == (reason != "unparsed")


def test_form_asks_for_a_mark_and_an_end(grader):
    assert grader("#### 4", "4").format_reward == 1.0
    assert not grader("#### 4", "4", finished=False).format_ok
    unmarked = grader("it is 4", "4")
    assert (unmarked.outcome, unmarked.format_ok) == (1.0, False)
    assert not grader("", "4").format_ok


def test_counters_add_up():
    grader = AnswerGrader()
    for completion in ("A: 1", "A: 2", "", "A: {", "A: {"):
        grader(completion, "1")
    assert grader.counts == Counter(exact=1, numeric=1, unparsed=2, **{"no answer": 1})
    assert (grader.parse_failures, grader.timeouts) == (3, 0)


def test_symbolic_verdicts_are_remembered_but_not_stops(monkeypatch):
    grader, calls = AnswerGrader(), []
    verdicts = iter(["stopped", "equal"])
    monkeypatch.setattr(grader._symbolic, "compare", lambda *a, **_: calls.append(a) or next(verdicts))
    outcomes = [grader("A: x", "y").outcome for _ in range(4)]
    assert (outcomes, len(calls), grader.timeouts) == ([0.0, 1.0, 1.0, 1.0], 2, 1)


def test_a_pickled_copy_grades_and_keeps_its_counts(grader):
    grader("A: 1", "1")
    copy = pickle.loads(pickle.dumps(grader))
    assert copy.counts == grader.counts
    assert copy("A: x+1", "1+x").outcome == 1.0
    copy.close()


HOSTILE = {
    "power tower": "A: 9**9**9**9",
    "power tower in LaTeX": r"\boxed{9^{9^{9^{9}}}}",
    "unmarked tower": "9**9**9**9",
    "factorial": r"\boxed{1000000000!}",
    "open parentheses": "(" * 100_000,
    "marked parentheses": "A: " + "(" * 990,
    "deep braces": r"\boxed{" + "{" * 100_000 + "5" + "}" * 100_000 + "}",
    "braces within the limit": r"\boxed{" + "{" * 450 + "5" + "}" * 450 + "}",
    "boxes": r"\boxed{" * 100_000,
    "marks": "A: " * 100_000,
    "mark lines": "A:\n" * 50_000,
    "emphasis": "A: " + "*." * 50_000,
    "long word": "A: 5 " + "a" * 900 + "1",
    "digits": "#### " + "9" * 999,
    "surrogate": "A: \ud800",
    "null": "A: \x00",
    "code": 'A: __import__("os").abort()',
    "megabyte": "x" * 1_000_000,
    "blank lines": "\n" * 200_000 + "####",
    "hash runs": "#### " * 50_000,
}


@pytest.fixture(scope="module")
def hasty():
    made = AnswerGrader(timeout_s=0.5)
    yield made
    made.close()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_graded_zero_and_soon(hasty, name):
    start = time.perf_counter()
    grade = hasty(HOSTILE[name], r"\frac{14}{3}")
    seconds = time.perf_counter() - start
    assert grade.outcome == 0.0
    assert seconds < 20.0  # half a second of limit, and a new child where the last one was stopped


def test_off_the_main_thread_the_limit_holds_and_nothing_leaks(hasty, caplog):
    grades = []
    with caplog.at_level(logging.DEBUG):
        thread = threading.Thread(target=lambda: grades.append(hasty(HOSTILE["power tower in LaTeX"], "5")))
        thread.start()
        thread.join(30)
    assert [(grade.outcome, grade.reason, grade.parsed) for grade in grades] == [(0.0, "stopped", False)]
    assert not [record for record in caplog.records if "math_verify" in record.name]


@settings(deadline=None, max_examples=60)
@given(st.text() | st.text(alphabet="A: #\\boxed{}$().,*%/5-\nanswer"))
def test_any_text_is_graded(hasty, text):
    assert hasty(text, "hypotenuse").outcome == float("hypotenuse" in text)


def perturbations(gold):
    """Answers that differ from a gold answer for sure, each with the name of the change."""
    plain = rational(gold)
    if plain is not None:
        yield "plus one", str(plain[0] + 1)
        if plain[0]:
            yield "sign", str(-plain[0])
            yield "ten times", str(10 * plain[0])
        return
    if digits := [match.start() for match in re.finditer("[0-9]", gold)]:
        yield "LaTeX digit", gold[: digits[-1]] + str((int(gold[digits[-1]]) + 1) % 10) + gold[digits[-1] + 1 :]
    if gold.startswith("\\text{"):
        yield "other word", "\\text{other}"
    elif not re.search(r",|=|\\in|\\pm|matrix|_", gold):  # one expression, neither set, vector nor equation
        yield "LaTeX sign", f"-({gold})"
        yield "LaTeX ten times", f"10({gold})"
        yield "LaTeX plus one", f"{gold}+1"


SETS = {"GSM8K": "gsm8k/test.jsonl.gz", "SVAMP": "svamp/SVAMP.json.gz", "MATH-500": "math500/test.jsonl.gz"}


@pytest.mark.parametrize("name", SETS)
def test_every_published_gold_answer_and_solution_is_accepted(grader, name):
    problems = load_problems(published(SETS[name]))
    for problem in problems:
        for completion in (problem.answer, f"#### {problem.answer}", problem.solution or problem.answer):
            assert grader(completion, problem.answer).outcome == 1.0, (problem.answer, completion[-200:])


def test_math_verify_alone_accepts_every_gold_answer_of_math_500(grader):
    problems = load_problems(published(SETS["MATH-500"]))
    refused = [p.answer for p in problems if grader._symbolic.compare(p.answer, p.answer) != "equal"]
    assert refused == []


# Known: math-verify drops units before it compares, exponents of units too.
UNITS_DROPPED = {("864 \\mbox{ inches}^2", "LaTeX digit"), ("15\\mbox{ cm}^2", "LaTeX digit")}


@pytest.mark.parametrize("name", SETS)
def test_perturbed_gold_answers_are_refused(grader, name):
    problems = load_problems(published(SETS[name]))
    accepted, tried = set(), Counter()
    for problem in problems:
        for change, wrong in perturbations(problem.answer):
            tried[change] += 1
            if grader(f"\\boxed{{{wrong}}}", problem.answer).outcome:
                accepted.add((problem.answer, change))
    assert accepted == (UNITS_DROPPED if name == "MATH-500" else set())
    assert tried["plus one"] > 0.7 * len(problems)


def test_agreement_with_the_published_outcomes_of_5276_model_solutions(grader):
    rollouts, rewards = gsm8k_solutions(published("gsm8k/example_model_solutions.jsonl.gz"))
    start = time.process_time()
    outcomes = [grader(c, gold).outcome for c, gold in zip(rollouts.completions, rollouts.references, strict=True)]
    assert outcomes == rewards
    assert time.process_time() - start < 20.0  # seconds for 5,276 answers: almost none needs the child
