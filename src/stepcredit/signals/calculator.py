"""A process signal without a model: are the calculator annotations of a step right?"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from stepcredit.batch import Rollouts, ScoredSpan
from stepcredit.errors import InputError

_LONGEST = 256  # characters of an annotation that are read; GSM8K's longest has 56. Bounds the arithmetic, too.
_NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_TOKEN = re.compile(rf"\s*(?:\$?({_NUMBER})|(//|[-+*/()%]))\s*")
_SPACED = re.compile(r"-?\$?([0-9]{1,3}(?: [0-9]{3})+)(?![0-9])")  # 17 500
_PRINTED = re.compile(rf"-?\$?({_NUMBER})")
_RANK = {"(": 0, "+": 1, "-": 1, "*": 2, "/": 2, "//": 2, "negative": 3}
_APPLY: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "//": lambda a, b: Fraction(a // b),
}


@dataclass(frozen=True)
class Calculator:
    r"""Checks the calculator annotations ``<<16-3=13>>13`` that GSM8K's solutions carry.

    An annotation is right when its sides are equal, up to rounding at the digits that the right side prints (or a
    double's precision, 1e-12), and when the number printed right after it, if there is one, is the annotated one,
    up to rounding in either direction at its own digits (``<<7/3=2.33>>2 full boxes``). A dropped minus is a wrong
    number, even before "less".

    Attributes:
        name: What this signal is called in configurations and records.
        unit: What its scores mean.
        requires: The fields of `Rollouts` that it reads beside the completions.

    Example:
        >>> text = "16 - 3 = <<16-3=13>>13 eggs\nThat is 13 * 2 = $<<13*2=25>>25\nSo 25."
        >>> steps = [[(0, 27), (28, 57), (58, 64)]]
        >>> Calculator().score(Rollouts(["..."], [text], group_ids=[0], steps=steps))
        [[ScoredSpan(start=0, end=27, score=1.0), ScoredSpan(start=28, end=57, score=0.0)]]
    """

    name: ClassVar[str] = "calculator"
    unit: ClassVar[str] = "1 = every calculator annotation of the step is right, 0 = one is wrong"
    requires: ClassVar[frozenset[str]] = frozenset({"steps"})

    def score(self, rollouts: Rollouts) -> list[list[ScoredSpan]]:
        """Scores every step that has a calculator annotation.

        Args:
            rollouts: The rollouts to score; must have ``steps``.

        Returns:
            For each rollout its annotated steps, in order: 1.0 where every annotation is right, 0.0 where one is
            wrong, cannot be evaluated or is not closed. A step without one is not in the list.

        Raises:
            InputError: ``rollouts`` has no steps.

        Degenerate cases:
            - Division by zero, letters, powers, an annotation without ``=`` or of more than 256 characters: 0.0.
        """
        if rollouts.steps is None:
            raise InputError("`rollouts` must have steps; got none. Segment the completions first.")
        return [
            [
                ScoredSpan(start, end, float(all(verdicts)))
                for start, end in steps
                if (verdicts := list(_verdicts(text[start:end])))
            ]
            for text, steps in zip(rollouts.completions, rollouts.steps, strict=True)
        ]


def evaluate(expression: str) -> Fraction | None:
    """The exact value of an arithmetic expression.

    Knows ``+ - * / //``, parentheses, signs, decimals, ``1,000``, ``$5`` and ``5%`` (a hundredth each).

    Args:
        expression: The expression, of at most 256 characters.

    Returns:
        Its value; None where it cannot be evaluated, whatever the reason. Never raises.

    Example:
        >>> evaluate("-(1,000 - 50%) / 3"), evaluate("2/0"), evaluate("2**9")
        (Fraction(-1999, 6), None, None)
    """
    # Two stacks, not recursion: the depth of the parentheses is the model's to choose.
    values: list[Fraction] = []
    operators: list[str] = []
    wants_value = True
    position = 0
    if len(expression) > _LONGEST:
        return None
    try:
        while position < len(expression):
            match = _TOKEN.match(expression, position)
            if match is None:
                return None
            position = match.end()
            number, symbol = match.groups()
            opens = number or symbol in ("(", "+", "-") if wants_value else symbol and symbol != "("
            if not opens:
                return None
            if number:
                values.append(Fraction(number.replace(",", "")))
                wants_value = False
            elif symbol == "(":
                operators.append(symbol)
            elif wants_value:
                if symbol == "-":
                    operators.append("negative")
            elif symbol == "%":
                values[-1] /= 100
            elif symbol == ")":
                _reduce(values, operators, 1)
                operators.pop()  # its opening parenthesis; IndexError without one
            else:
                _reduce(values, operators, _RANK[symbol])
                operators.append(symbol)
                wants_value = True
        if wants_value:
            return None
        _reduce(values, operators, 1)
    except (ZeroDivisionError, IndexError):
        return None
    return None if operators else values[0]


def _reduce(values: list[Fraction], operators: list[str], rank: int) -> None:
    """Applies the operators on top of the stack that bind at least as tightly as ``rank``."""
    while operators and _RANK[operators[-1]] >= rank:
        operator = operators.pop()
        right = values.pop()
        values.append(-right if operator == "negative" else _APPLY[operator](values.pop(), right))


def _verdicts(step: str) -> Iterator[bool]:
    """Whether each annotation of a step is right, in order."""
    start = step.find("<<")
    while start >= 0:
        end = step.find(">>", start)
        if end < 0:
            yield False
            return
        readings = [match for form in (_PRINTED, _SPACED) if (match := form.match(step, end + 2))]
        yield _is_right(step[start + 2 : end], readings)
        start = step.find("<<", end)


def _is_right(annotation: str, readings: list[re.Match[str]]) -> bool:
    """Whether the sides of an annotation agree with each other and with one reading of the number after it."""
    sides = annotation.split("=") if len(annotation) <= _LONGEST else []
    values = [value for side in sides if (value := evaluate(side)) is not None]
    if len(values) < len(sides) or len(values) < 2:
        return False
    for left, right, side in zip(values, values[1:], sides[1:], strict=False):
        if abs(left - right) > max(_digit(side) / 2, _precision(left)):
            return False
    if not readings:
        return True
    shown = [(evaluate(match[0].replace(" ", "")), match[1]) for match in readings]
    last = values[-1]
    return any(
        value is not None and abs(last - value) < max(_digit(number), _precision(last)) for value, number in shown
    )


def _precision(value: Fraction) -> Fraction:
    """What a double-precision calculator may be off by: ``1.87*9=16.830000000000002``."""
    return Fraction(1, 10**12) * max(Fraction(1), abs(value))


def _digit(side: str) -> Fraction:
    """The unit of the last digit of a printed number; 0 for anything else, which is exact."""
    if not _PRINTED.fullmatch(side.strip()):
        return Fraction(0)
    return Fraction(1, 10 ** len(side.strip().partition(".")[2]))
