"""Cuts a completion into steps: contiguous character spans, in order, that cover the text exactly."""

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Literal, get_args

from stepcredit.batch import Span
from stepcredit.errors import InputError

Scheme = Literal["lines", "paragraphs", "sentences", "marker"]
SCHEMES: tuple[str, ...] = get_args(Scheme)

_LINE_END = re.compile(r"\r\n|\n|\r")
# Only the first mark of a run starts a match (the look-behind), and runs never backtrack (++, *+): linear time.
_SENTENCE_END = re.compile(
    r"(?<![.!?\u2026])[.!?\u2026]++[\"'\u201d\u2019)\]}*$]*+(?=\s)"  # ... and curly quotes
    r"|[\u3002\uff01\uff1f]++[\u201d\u2019\u300d\u300f\uff09]*+"  # their full-width counterparts, no space needed
)
# A word before the dot that does not end a sentence. In doubt two sentences stay one step, never the reverse.
_ABBREVIATIONS = frozenset(
    ("approx", "cf", "dept", "dr", "eq", "eqs", "est", "etc", "fig", "figs", "ft", "gen", "hr", "hrs", "inc", "jr",
     "lb", "lbs", "mr", "mrs", "ms", "mt", "oz", "prof", "resp", "sec", "secs", "sr", "st", "viz", "vs")
)  # fmt: skip
_DOTTED = re.compile(r"(?:[A-Za-z]\.)+[A-Za-z]")  # e.g, i.e, U.S, a.m


def segment(text: str, by: Scheme = "lines", *, marker: str | None = None) -> list[Span]:
    r"""Cuts text into steps.

    The separator belongs to the step before it, so joining the pieces gives the text back. A piece without
    content (only white space, or only the marker) joins the step before it, or the first step when it leads.

    Args:
        text: The exact completion.
        by: ``"lines"``: after every line end (``\n``, ``\r\n`` or ``\r``).
            ``"paragraphs"``: after every run of blank lines.
            ``"sentences"``: after ``.``, ``!``, ``?`` and closing quotes or brackets that white space follows,
            after ``。！？``, and after every line end; not inside a number (``3.5``, ``$1.24``), a common
            abbreviation (``e.g.``, ``Dr.``), a list number that opens a line (``1. Add``) or ``<<...>>``.
            ``"marker"``: after every occurrence of ``marker``.
        marker: The literal text that ends a step; only with ``by="marker"``.

    Returns:
        Spans with ``spans[0].start == 0``, each beginning where the one before ended, the last ending at
        ``len(text)``.

    Raises:
        InputError: An unknown scheme, or a marker that is missing, empty or not asked for.

    Degenerate cases:
        Empty text has no spans; text of white space alone is one span; text without separator is one span.

    Example:
        >>> text = "It costs $1.24, e.g. a pen. Two cost <<2*1.24=2.48>>2.48.\n\nSo 2.48"
        >>> [text[start:end] for start, end in segment(text, "sentences")]
        ['It costs $1.24, e.g. a pen. ', 'Two cost <<2*1.24=2.48>>2.48.\n\n', 'So 2.48']
        >>> segment("one\n\ntwo", "paragraphs")
        [Span(start=0, end=5), Span(start=5, end=8)]
    """
    if by not in SCHEMES:
        raise InputError(f"`by` must be one of {', '.join(SCHEMES)}; got {by!r}.")
    if (by == "marker") != bool(marker):
        raise InputError(f"`marker` must be a non-empty text with by='marker' and absent otherwise; got {marker!r}.")
    if marker:
        return _join_empty(text, _after_each(text, marker), marker)
    cuts = {"lines": _lines, "paragraphs": _paragraphs, "sentences": _sentences}[by](text)
    return _join_empty(text, cuts)


def _lines(text: str) -> list[int]:
    return [match.end() for match in _LINE_END.finditer(text)]


def _paragraphs(text: str) -> list[int]:
    """The end of every blank line: the joining of empty pieces makes one cut of each run."""
    ends = _lines(text)
    return [end for start, end in pairwise([0, *ends]) if not text[start:end].strip()]


def _sentences(text: str) -> list[int]:
    cuts = []
    for start, end in pairwise([0, *_lines(text), len(text)]):
        line = text[start:end]
        shields = _calculator_marks(line)
        shield = next(shields, None)
        for match in _SENTENCE_END.finditer(line):
            while shield and shield.end <= match.start():
                shield = next(shields, None)
            inside = shield and shield.start < match.start()
            if not inside and not _is_abbreviation(line, match):
                cuts.append(start + _past_blanks(line, match.end()))
        cuts.append(end)
    return cuts


def _calculator_marks(line: str) -> Iterator[Span]:
    """The ``<<...>>`` of a line, in order; an unclosed one shields nothing."""
    closing = 0
    while (opening := line.find("<<", closing)) >= 0 and (closing := line.find(">>", opening)) >= 0:
        closing += 2
        yield Span(opening, closing)


def _past_blanks(line: str, position: int) -> int:
    while position < len(line) and line[position].isspace():
        position += 1
    return position


def _is_abbreviation(line: str, match: re.Match[str]) -> bool:
    if match[0][0] != "." or match[0].startswith(".."):
        return False
    word = re.split(r"[\s(\[\"'\u201c\u2018]", line[max(0, match.start() - 12) : match.start()])[-1]
    if word.isdigit():
        return line[: match.start()].strip() == word
    return word.lower() in _ABBREVIATIONS or _DOTTED.fullmatch(word) is not None


def _after_each(text: str, marker: str) -> list[int]:
    return [match.end() for match in re.finditer(re.escape(marker), text)]


def _join_empty(text: str, cuts: Iterable[int], marker: str | None = None) -> list[Span]:
    """Turns cut positions into spans, a piece without content joined to its neighbor."""
    spans: list[Span] = []
    led_by_blank = False
    for start, end in pairwise([0, *cuts, len(text)]):
        if start == end:
            continue
        piece = text[start:end]
        blank = not (piece.replace(marker, "") if marker else piece).strip()
        if spans and (blank or led_by_blank):
            spans[-1] = Span(spans[-1].start, end)
        else:
            spans.append(Span(start, end))
        led_by_blank = blank and (led_by_blank or (len(spans) == 1 and spans[0].start == start))
    return spans
