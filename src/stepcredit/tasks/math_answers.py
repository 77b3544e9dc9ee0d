r"""Grades a completion's final answer against a gold one: finding it, exact and numeric comparison, then math-verify.

Which text is the answer: what follows the *last* of these marks in the completion,

- ``\boxed{...}`` (or ``\fbox``), up to its matching brace;
- ``####``, ``A:`` or ``answer:`` (in any case, also "the final answer:", "**Answer:**") at the start of a line, up
  to the line's end, or the next line with text where nothing follows on its own;

and without any mark, the last line with text, in which math-verify looks for the last expression or number.
"""

import re
from collections import Counter
from fractions import Fraction
from typing import NamedTuple

from stepcredit.tasks.grading import Grade
from stepcredit.tasks.symbolic import SymbolicComparer

ANSWER_LIMIT = 1000  # characters; a longer "answer" is none (and would keep a parser busy)
_TAIL = 500  # characters of an unmarked last line that are looked at
_MEMORY = 10_000  # symbolic verdicts remembered: the rollouts of a group repeat their answers

_MARK = re.compile(
    r"^[ \t]*####|^[ \t*]*A:|^[ \t>*#]*(?i:(?:the[ ]|final[ ]|so[ ]|thus[ ])*answer)[ \t*]*:", re.MULTILINE
)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_ANSWER_IS = re.compile(r"\A(?:the )?(?:final )?answer(?: is)?\s*:?\s*", re.IGNORECASE)
_NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+"
_RATIONAL = re.compile(rf"([+-]?)\s*\$?\s*([+-]?)({_NUMBER})(?:\s*/\s*({_NUMBER}))?\s*(%?)")
_FRAC = re.compile(r"([+-]?)\\[dt]?frac\s*(?:\{(-?[0-9]+)\}|([0-9]))\s*(?:\{([0-9]+)\}|([0-9]))")
_UNITS = re.compile(r"([^A-Za-z]*[0-9%])\s+((?:a|[A-Za-z]{2,})(?:[ .,'/-]+(?:a|[A-Za-z]{2,}))*)")
# Words after a number that are no unit: they scale it, or another answer follows.
_NO_UNITS = frozenset(
    ("hundred", "thousand", "million", "billion", "trillion", "dozen", "half", "quarter", "pi", "sqrt", "mod", "times",
     "or", "and", "to")
)  # fmt: skip
_IN_BASE = re.compile(r"([0-9A-Fa-f]+)_(?:\{([0-9]+)\}|([0-9]+))")
_TEXT = re.compile(r"\\(?:text|textbf|textrm|mbox|mathrm)\s*\{([^{}]*)\}")
_WORDS = re.compile(r"[A-Za-z]{3,}(?:[ -][A-Za-z]+)*")


class FinalAnswer(NamedTuple):
    """The final answer of a completion; ``marked`` is False where it is only the last line, to be searched."""

    text: str
    marked: bool


def final_answer(completion: str) -> FinalAnswer | None:
    r"""Finds the final answer, by the rules at the top of this module. Time is linear in the text.

    Args:
        completion: The exact text that the model wrote.

    Returns:
        The answer without surrounding dollars, emphasis and final period; None where there is none.

    Degenerate cases:
        Blank text, a mark with nothing after it, a box whose brace never closes, and a marked answer longer
        than `ANSWER_LIMIT` have no answer.

    Example:
        >>> final_answer("2+2=4.\n#### 4"), final_answer(r"Thus $x = \boxed{\frac{1}{2}}$.").text
        (FinalAnswer(text='4', marked=True), '\\frac{1}{2}')
    """
    box = max((match.end() for match in _BOX.finditer(completion)), default=-1)
    mark = max((match.end() for match in _MARK.finditer(completion)), default=-1)
    if box > mark:
        end = _closing_brace(completion, box)
        text = "" if end is None else completion[box:end]
    elif mark >= 0:
        lines = completion[mark:].lstrip("*: \t").splitlines() or [""]
        first = _ANSWER_IS.sub("", lines[0], count=1).strip("* ")
        text = first or next((line for line in lines[1:] if line.strip()), "")
    else:
        text = completion.rstrip()[-_TAIL:].rpartition("\n")[2]
    text = _bare(text) if len(text) <= ANSWER_LIMIT else ""
    return FinalAnswer(text, max(box, mark) >= 0) if text else None


class AnswerGrader:
    r"""Grades final answers; callable with ``(completion, gold)``.

    Equal text, numbers (exact rational arithmetic; currency signs, thousands separators and unit words aside; a
    percentage equals its number or its hundredth), numerals in a base, and words are decided at once. Everything
    else goes to math-verify in a child process under the time limit (see `SymbolicComparer`).

    Args:
        timeout_s: Seconds that one symbolic comparison may take; past it the answer is not accepted.

    Attributes:
        counts: How often each ``Grade.reason`` came up: "exact", "numeric", "base", "words", "symbolic"
            (accepted or refused by that rule), "no answer", "unparsed", "gold unparsed", "stopped" (refused).

    Raises:
        InputError: ``timeout_s`` is not positive.
        MissingExtraError: math-verify is not installed.

    Example:
        >>> grader = AnswerGrader()
        >>> grader("So she makes $18.\n#### 18", "18").outcome, grader("A: 19", "18").outcome
        (1.0, 0.0)
        >>> grader("", "18").reason, grader.parse_failures
        ('no answer', 1)
    """

    def __init__(self, timeout_s: float = 5.0) -> None:
        self.counts: Counter[str] = Counter()
        self._symbolic = SymbolicComparer(timeout_s)
        self._seen: dict[tuple[str, str, bool], str] = {}

    @property
    def parse_failures(self) -> int:
        """Completions in which no answer was found or read; none of them was rewarded."""
        return self.counts["no answer"] + self.counts["unparsed"]

    @property
    def timeouts(self) -> int:
        """Completions whose comparison the limit of time or memory ended; none of them was rewarded."""
        return self.counts["stopped"]

    def __call__(self, completion: str, gold: str, *, finished: bool = True) -> Grade:
        """Grades one completion.

        Args:
            completion: The exact text that the model wrote.
            gold: The gold answer alone: a number, LaTeX or words.
            finished: False where generation was cut by a length limit.

        Returns:
            The grade, without steps. ``format_ok``: the answer is marked, and generation finished. ``parsed``
            is False where no answer was found or read, or the limit stopped the comparison; the outcome is 0.

        Degenerate cases:
            A gold answer that math-verify cannot read accepts equal text only (reason "gold unparsed").
        """
        answer = final_answer(completion)
        equal, reason = (False, "no answer") if answer is None else self._compare(gold, answer)
        self.counts[reason] += 1
        format_ok = finished and answer is not None and answer.marked
        parsed = reason not in ("no answer", "unparsed", "stopped")
        return Grade(float(equal), float(format_ok), format_ok, parsed=parsed, reason=reason)

    def close(self) -> None:
        """Ends the child process; a later comparison starts another."""
        self._symbolic.close()

    def _compare(self, gold: str, answer: FinalAnswer) -> tuple[bool, str]:
        inside = final_answer(gold) if _BOX.match(gold.strip()) else None
        gold = inside.text if inside else _bare(gold)
        given = answer.text
        if given == gold:
            return True, "exact"
        for reason, rule in (("numeric", _same_number), ("base", _same_numeral), ("words", _same_words)):
            decided = rule(gold, given)
            if decided is not None:
                return decided, reason
        if answer.marked and _closing_brace(given + "}", 0) != len(given):
            return False, "unparsed"
        key = (gold, given, answer.marked)
        verdict = self._seen.get(key) or self._symbolic.compare(gold, given, marked=answer.marked)
        if verdict != "stopped":  # a busy machine may stop what it would otherwise decide
            if len(self._seen) >= _MEMORY:
                self._seen.clear()
            self._seen[key] = verdict
        return verdict == "equal", "symbolic" if verdict in ("equal", "different") else verdict


def rational(text: str) -> tuple[Fraction, bool] | None:
    r"""Reads a plain number, fraction or percentage exactly.

    Args:
        text: A bare answer.

    Returns:
        The value (of ``50%``: 50) and whether a percent sign follows; None for anything else.

    Example:
        >>> rational("$1,234.50"), rational(r"-\frac{3}{6}"), rational("5 or 6")
        ((Fraction(2469, 2), False), (Fraction(-1, 2), False), None)
    """
    if len(text) > ANSWER_LIMIT:  # Python refuses to read very long integers
        return None
    text = (
        re.sub(r"\\[!,;]\s*|\{(?=,\})|(?<=,)\}", "", text)
        .replace("\\$", "$")
        .replace("\\%", "%")
        .replace("\N{MINUS SIGN}", "-")
    )
    if fraction := _FRAC.fullmatch(text):
        high, low = int(fraction[2] or fraction[3]), int(fraction[4] or fraction[5])
        return (Fraction(-high if fraction[1] == "-" else high, low), False) if low else None
    number = _RATIONAL.fullmatch(text)
    if number is None or (number[1] and number[2]):
        return None
    divisor = Fraction((number[4] or "1").replace(",", ""))
    if not divisor:
        return None
    value = Fraction(number[3].replace(",", "")) / divisor
    return (-value if "-" in (number[1], number[2]) else value), bool(number[5])


def _same_number(gold: str, given: str) -> bool | None:
    right = rational(gold)
    if right is None:
        return None
    value = rational(given)
    if value is None and (units := _UNITS.fullmatch(given)):
        words = re.split(r"[ .,'/-]+", units[2].lower())
        value = None if _NO_UNITS.intersection(words) else rational(units[1].strip())
    if value is None:
        return None
    if value[0] == right[0] or (value[1] and not right[1] and value[0] / 100 == right[0]):
        return True
    if right[1] and not value[1] and right[0] / 100 == value[0]:
        return True
    if value[0].denominator == right[0].denominator == 1:
        return False
    close = abs(value[0] - right[0]) <= max(Fraction(1), abs(right[0])) / 100_000
    return None if close else False  # 0.333333 for 1/3: math-verify's rounding decides


def _same_numeral(gold: str, given: str) -> bool | None:
    """Numerals with a base, which math-verify reads without it; an answer may leave the base to the question."""
    right, value = _IN_BASE.fullmatch(gold), _IN_BASE.fullmatch(given)
    if right is None or (value is None and not given.isalnum()):
        return None
    if value is None:
        return given == right[1]
    return value[1] == right[1] and (value[2] or value[3]) == (right[2] or right[3])


def _same_words(gold: str, given: str) -> bool | None:
    """Words, which math-verify reads as products of letters, so that "seat" would be "east"."""
    right = _TEXT.fullmatch(gold)
    word = right[1] if right else gold if _WORDS.fullmatch(gold) else None
    if word is None or not any(map(str.isalpha, word)):
        return None
    return _plain(word) == _plain(_TEXT.sub(r"\1", given))


def _plain(words: str) -> str:
    return " ".join(words.casefold().strip(" ().,;:\"'").split())


def _bare(text: str) -> str:
    """The text without what only surrounds it: white space, emphasis, math delimiters, a final period."""
    before = None
    while text != before:
        before = text
        text = text.strip().strip("*").strip()
        text = re.sub(r"(?<!\.)\.\Z", "", text)
        for left, right in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
            inner = text[len(left) : -len(right)]
            if len(text) > len(left) + len(right) and text == left + inner + right and "$" not in inner:
                text = inner
    return text


def _closing_brace(text: str, start: int) -> int | None:
    """Where the brace closes that was opened just before ``start``; None if it never does."""
    depth, position = 1, start
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 1
        elif character in "{}":
            depth += 1 if character == "{" else -1
            if depth == 0:
                return position
        position += 1
    return None
