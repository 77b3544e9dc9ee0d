"""Annotations by hand, hostile ones, and those of GSM8K."""

import gzip
import json
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepcredit.batch import Rollouts, ScoredSpan, Span
from stepcredit.errors import InputError
from stepcredit.signals.calculator import Calculator, evaluate

DATA = Path(__file__).parents[2] / "../shared/data/gsm8k"


def grade(step: str) -> float | None:
    """The score of one step, None where it has none."""
    found = Calculator().score(Rollouts(["q"], [step], group_ids=[0], steps=[[Span(0, len(step))]]))
    return found[0][0].score if found[0] else None


@pytest.mark.parametrize(
    ("step", "score"),
    [
        ("16 - 3 = <<16-3=13>>13 eggs", 1),
        ("16 - 3 = <<16-3=12>>12 eggs", 0),
        ("16 - 3 = <<16-3=13>>12 eggs", 0),
        ("16 - 3 = <<16-3=13>> eggs", 1),
        ("<<2*3=6>>6 and <<6+1=8>>8", 0),
        ("<<2*3=7>>7 and <<6+1=7>>7", 0),
        ("<<2*3=6>>6 and <<6+1=7>>7", 1),
        ("no annotation", None),
        # Rounding at the digits printed: half a unit of the last one.
        ("<<1/3=0.33>>", 1),
        ("<<1/3=.333>>", 1),
        ("<<1/3=0.34>>", 0),
        ("<<2/3=0.66>>", 0),
        ("<<2/3=0.67>>", 1),
        ("<<1/8=0.13>>", 1),
        ("<<1/8=0.12>>", 1),
        ("<<1/8=0.14>>", 0),
        ("<<10/3=3>>3", 1),
        ("<<11/3=3>>3", 0),
        ("<<2*100=200.0>>200", 1),
        ("<<2*100=200.1>>200", 0),
        # Doubles, as calculators print them.
        ("<<1.87*9=16.830000000000002>>16.83", 1),
        ("<<1.87*9=16.830000000002>>16.83", 1),
        ("<<1.87*9=16.83000000002>>16.83", 0),
        # After the annotation, rounded up or down is still the number; another number is not.
        ("<<7/3=2.3333333333333335>>2 boxes", 1),
        ("<<7/3=2.3333333333333335>>3 boxes", 1),
        ("<<7/3=2.3333333333333335>>4 boxes", 0),
        ("<<7/3=2.3333333333333335>>2.4 boxes", 1),
        ("<<7/3=2.3333333333333335>>2.5 boxes", 0),
        ("<<4/12=0.3333333333333333>>0.33333333333333333", 1),
        ("<<14*2=28>>29", 0),
        ("<<14*2=28>>28.", 1),
        ("<<14*2=28>>28,", 1),
        ("<<14*2=28>>$28", 1),
        ("<<14*2=28>>-28", 0),
        ("<<2-30=-28>>-28", 1),
        ("<<2-30=-28>>28", 0),
        ("<<1000*1000=1000000>>1,000,000 ants", 1),
        ("<<350*50=17500>>17 500.", 1),
        ("<<350*50=17500>>18 500.", 0),
        ("<<17*1=17>>17 500-g bags", 1),
        # Notation.
        ("<<3,650*10/100=365>>365", 1),
        ("<<$5*2=$10>>10", 1),
        ("<<50000*5%=2500>>2,500", 1),
        ("<<(1+2)*(3-1)=6>>6", 1),
        ("<<-14+-8+1=-21>>-21", 1),
        ("<<560//10=56>>56", 1),
        ("<< 2 + 2 = 4 >>4", 1),
        ("<<5*2/5=2.0=2.0>>2", 1),
        ("<<50=50-20-60=50>>50", 0),
        ("<<60=60>>60", 1),
        ("<<3*4=24/2>>12", 1),
        ("<<3*4=25/2>>12", 0),
        # What cannot be evaluated is not right.
        ("<<x+56=86>>86", 0),
        ("<<4*mugs=16=16>>16", 0),
        ("<<4=>>4", 0),
        ("<<=4>>4", 0),
        ("<<4>>4", 0),
        ("<<>>4", 0),
        ("<<2+2=4", 0),
        ("<<3+<<2+2=4>>4", 0),
        ("<<1/0=1>>1", 0),
        ("<<1//0=1>>1", 0),
        ("<<2**10=1024>>1024", 0),
        ("<<12/1.3333...=9>>9", 0),
        ("<<\u0663+\u0661=4>>4", 0),
        (">>4<<", 0),
        (">>4", None),
    ],
)
def test_by_hand(step, score):
    assert grade(step) == score


def test_only_the_step_itself_is_read():
    # The number after the first annotation is outside its step; the second annotation is cut by its step's end.
    text = "a <<1+1=2>>3 b <<1+1=2>>2"
    steps = [[Span(0, 11), Span(11, 14), Span(15, 22)]]
    found = Calculator().score(Rollouts(["q"], [text], group_ids=[0], steps=steps))
    assert found == [[ScoredSpan(0, 11, 1.0), ScoredSpan(15, 22, 0.0)]]


def test_needs_steps():
    with pytest.raises(InputError, match="`rollouts` must have steps"):
        Calculator().score(Rollouts(["q"], ["a"], group_ids=[0]))
    assert Calculator.requires == {"steps"}
    assert Calculator() == Calculator()
    assert Calculator().score(Rollouts([], [], group_ids=[], steps=[])) == []


@pytest.mark.parametrize(
    "expression",
    ["(" * 10_000 + "1" + ")" * 10_000, "9**9**9**9", "1e999999999", "9^99999", "1/0", "1//0", "-" * 10_000 + "1",
     "(" * 100, ")" * 100, "1)", "(1", "()", "", " ", "+", "1 2", "2(3)", "(2)3", "1,00", "1.2.3", "1..2", "%", "5%%%x",
     "1" * 1_000_000, "\x00", "\u0661", "²", "a", "__import__('os')", "1//(1/3-1/3)"],
)  # fmt: skip
def test_hostile_expressions_are_no_value(expression):
    start = time.process_time()
    assert evaluate(expression) is None
    assert grade(f"<<{expression}=1>>1") == 0
    assert time.process_time() - start < 1


@pytest.mark.parametrize("step", ["<<" * 200_000, "<<1=1>>" * 30_000, "<<1=1>>" + "1" * 200_000, "<" * 200_000])
def test_long_steps_take_bounded_time(step):
    start = time.process_time()
    grade(step)
    assert time.process_time() - start < 3


@settings(max_examples=300, deadline=None)
@given(step=st.text("<>=0123456789.,+-*/()%$x e\n", max_size=60))
def test_never_raises(step):
    assert grade("<<" + step) in (0, 1)
    evaluate(step)


# A tree of exact arithmetic and the text that spells it, every operation in parentheses or not needing them.
leaves = st.integers(0, 999).map(lambda n: (Fraction(n), str(n))) | st.integers(0, 9999).map(
    lambda n: (Fraction(n, 100), f"{n / 100:.2f}")
)


def combine(children):
    def build(parts):
        (a, left), sign, (b, right) = parts
        if sign == "/" and b == 0:
            sign = "+"
        value = a + b if sign == "+" else a - b if sign == "-" else a * b if sign == "*" else a / b
        return value, f"({left}{sign}{right})"

    return st.tuples(children, st.sampled_from("+-*/"), children).map(build) | children.map(
        lambda child: (-child[0], f"(-{child[1]})")
    )


@settings(max_examples=300, deadline=None)
@given(tree=st.recursive(leaves, combine, max_leaves=10))
def test_exact_arithmetic(tree):
    value, expression = tree
    assert evaluate(expression) == value


@settings(max_examples=300, deadline=None)
@given(terms=st.lists(st.tuples(st.sampled_from("+-*/"), st.sampled_from(["", "-"]), st.integers(1, 99)), min_size=1))
def test_precedence_is_that_of_python(terms):
    expression = "".join(f"{operator}{sign}{number}" for operator, sign, number in terms)[:200].rstrip("+-*/")
    assert evaluate("7" + expression) == pytest.approx(eval("7" + expression), rel=1e-9, abs=1e-9)


def gsm8k(name):
    path = DATA / name
    if not path.exists():
        pytest.skip("the data folder is absent: no gsm8k")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def scored(texts):
    steps = []
    for text in texts:
        steps.append([])
        for line in text.splitlines(keepends=True):
            start = steps[-1][-1].end if steps[-1] else 0
            steps[-1].append(Span(start, start + len(line)))
    found = Calculator().score(Rollouts(texts, texts, group_ids=range(len(texts)), steps=steps))
    return [span.score for row in found for span in row]


def test_accepts_every_human_solution():
    scores = scored([row["answer"] for row in gsm8k("train.jsonl.gz")])
    assert len(scores) > 20_000
    assert min(scores) == 1.0


def test_finds_more_errors_in_wrong_model_solutions():
    models = ["6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"]
    solutions = [row[model] for row in gsm8k("example_model_solutions.jsonl.gz") for model in models]
    right, wrong = (
        scored([solution["solution"] for solution in solutions if solution["is_correct"] is kind])
        for kind in (True, False)
    )
    # 5 of 6,150 and 178 of 10,521 when this was written.
    assert right.count(0.0) / len(right) < 0.002 < 0.01 < wrong.count(0.0) / len(wrong) < 0.03
