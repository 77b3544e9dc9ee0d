"""Reads the results of searches back out of a rollout."""

import json
from collections.abc import Iterator

from stepcredit.tasks.multihop.environment import CUT, MESSAGES, SPENT

Shown = tuple[str, str]
"""Title and text of a paragraph, as a result shows them."""

_WITHOUT_PARAGRAPHS = frozenset({*MESSAGES, CUT} - {SPENT})
_DECODER = json.JSONDecoder()


def shown_results(written: str) -> list[list[Shown]]:
    r"""The paragraphs of each result of a search in what was written between two turns, in order.

    Lines ``# title``, with a line of text under each, that follow one another are the paragraphs of one result; a
    line that is ``[cut]`` belongs to them. One of the environment's sentences on a line is a result without
    paragraphs; but to be told that no searches are left is no result, and neither is the error of a tool call. Where
    no line is any of these, the texts of JSON strings are read so: some chat templates write results as such.

    Args:
        written: What neither the policy nor its prompt wrote: the environment's text with its frame, or a chat
            template's.

    Degenerate cases:
        A line of text is no title, whatever it looks like; a title in the last line has the empty text. Two results
        with paragraphs that nothing parts are taken for one.

    Example:
        >>> shown_results("\n<information>\n# Oslo\nThe mayor of [cut]\n</information>\n")
        [[('Oslo', 'The mayor of [cut]')]]
        >>> shown_results('tool: "# Oslo\\nA city.\\n# Rio\\nA city.\\n", "Nothing was found.\\n"')
        [[('Oslo', 'A city.'), ('Rio', 'A city.')], []]
        >>> shown_results("No searches are left.\n")
        []
    """
    return list(_by_lines(written)) or [result for text in _json_strings(written) for result in _by_lines(text)]


def shown_paragraphs(written: str) -> list[Shown]:
    """The paragraphs of all results, in order; see `shown_results`."""
    return [paragraph for result in shown_results(written) for paragraph in result]


def _by_lines(written: str) -> Iterator[list[Shown]]:
    result: list[Shown] = []
    lines = iter(written.split("\n"))
    for line in lines:
        if line.startswith("# "):
            result.append((line[2:].strip(), next(lines, "").strip()))
            continue
        if result:
            yield result
        if line.strip() in _WITHOUT_PARAGRAPHS and not (result and line.strip() == CUT):
            yield []
        result = []
    if result:
        yield result


def _json_strings(written: str) -> Iterator[str]:
    start = written.find('"')
    while start >= 0:
        try:
            text, end = _DECODER.raw_decode(written, start)
            yield text
        except ValueError:
            end = start + 1
        start = written.find('"', end)
