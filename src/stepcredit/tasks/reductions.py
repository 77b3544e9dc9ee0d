"""The lines of an arithmetic solution: what each one claims."""

import re
from functools import lru_cache
from typing import NamedTuple

_EQUATION = re.compile(r"(0|[1-9][0-9]{0,3})((?:[+*-](?:0|[1-9][0-9]{0,3}))+)=(0|[1-9][0-9]{0,3})")
_APPLIED = re.compile(r"([+*-])([0-9]+)")


class Reduction(NamedTuple):
    """What a well-formed line says behind its label, ``total operations=result``, and whether that is so."""

    total: int
    operations: tuple[tuple[str, int], ...]
    result: int
    right: bool


def applied(total: int, operations: tuple[tuple[str, int], ...], modulus: int) -> int:
    """A running total after some operations."""
    for op, y in operations:
        total = (total + y if op == "+" else total - y if op == "-" else total * y) % modulus
    return total


def reduction_of(line: str, modulus: int) -> Reduction | None:
    """Reads a line without its newline; None where it is not a label, a colon and an equation.

    Example:
        >>> reduction_of("b:3+5=8", 10)
        Reduction(total=3, operations=(('+', 5),), result=8, right=True)
        >>> reduction_of("b:3+5=", 10) is None, reduction_of("B:3+5=8", 10) is None
        (True, True)
    """
    labeled = line[1:2] == ":" and "a" <= line[0] <= "z"
    return _equation(line[2:], modulus) if labeled else None


@lru_cache(maxsize=1 << 14)
def _equation(text: str, modulus: int) -> Reduction | None:
    """What follows the label; rollouts write the same ones over and over."""
    match = _EQUATION.fullmatch(text)
    if match is None:
        return None
    operations = tuple((op, int(y)) for op, y in _APPLIED.findall(match[2]))
    total, result = int(match[1]), int(match[3])
    return Reduction(total, operations, result, result == applied(total, operations, modulus))
