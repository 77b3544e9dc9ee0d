"""The lines of an arithmetic solution: their form, and what operations come to."""

import re
from functools import lru_cache

_NUMBER = r"(?:0|[1-9][0-9]{0,3})"
_REDUCTION = re.compile(rf"[a-z]:{_NUMBER}(?:[+*-]{_NUMBER})+={_NUMBER}")
_WHOLE = re.compile(_NUMBER)


def applied(total: int, operations: tuple[tuple[str, int], ...], modulus: int) -> int:
    """A running total after some operations."""
    for op, y in operations:
        total = (total + y if op == "+" else total - y if op == "-" else total * y) % modulus
    return total


@lru_cache(maxsize=2**14)  # there are 300 modulo 10
def result(total: str, operation: str, modulus: int) -> str:
    """What a running total is after one operation, as lines write the three.

    Example:
        >>> result("3", "-5", 10)
        '8'
    """
    return str(applied(int(total), ((operation[0], int(operation[1:])),), modulus))


def is_reduction(line: str) -> bool:
    """Whether a line, without its newline, is a label, a colon and an equation; whatever they say.

    Example:
        >>> is_reduction("b:3+5=9"), is_reduction("b:3+5="), is_reduction("B:3+5=8"), is_reduction("b:3+05=8")
        (True, False, False, False)
    """
    return _REDUCTION.fullmatch(line) is not None


def is_number(text: str) -> bool:
    """Whether a text is a number as this task writes it: up to four digits, no zero before others."""
    return _WHOLE.fullmatch(text) is not None
