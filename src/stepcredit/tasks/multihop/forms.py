"""Turns one row of a published multi-hop set, whichever of the known forms it has, into a `Question`."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from stepcredit.errors import InputError
from stepcredit.tasks.multihop.nested import integer, plain_text, records, texts
from stepcredit.tasks.multihop.question import Hop, Paragraph, Question
from stepcredit.tasks.rows import Row

MOVED = "supporting sentence beyond its paragraph: the last sentence"
EMPTY = "supporting sentence of a paragraph without any: left out"
ABSENT = "supporting fact of a paragraph that is not there: left out"
REPEATED = "supporting fact of a title that several paragraphs have: the first that has the sentence"
BLANK = "answer alias without a text: left out"
NEGATIVE = "supporting fact with an index below 0: left out"
NOWHERE = "hop of a paragraph that is not there: kept without one"
PARTIAL = "evidence without all of its texts: left out"
UNTOLD = "hop without a question or an answer: all hops of its question left out"

_FORMS = (
    "context, supporting_facts (HotpotQA, 2WikiMultihopQA); paragraphs of title, paragraph_text, is_supporting "
    "(MuSiQue); paragraphs of title, sentences, support"
)
_IDS = ("_id", "id")
_ALIASES = ("answer_aliases", "aliases")
_QUALIFIER = re.compile(r" \([^()]*\)$")


def question_of(row: Row, where: str, name: str, repairs: Counter[str], more: Sequence[str] = ()) -> Question:
    """One row as a question.

    Args:
        row: The row.
        where: What to call it in a message.
        name: The id of a row that has none.
        repairs: Counts what in the row did not fit; added to.
        more: Further aliases of the answer.

    Raises:
        InputError: The row has no known form, or breaks the one that it has; names ``where``, and the fields.
    """
    if {"context", "supporting_facts"} <= row.keys():
        paragraphs = _by_facts(row, where, repairs)
        hops, kind = _evidence_hops(row, paragraphs, where, repairs), row.get("type")
    else:
        items = records(row, "paragraphs", (), where) if row.get("paragraphs") else []
        if items and all("paragraph_text" in item for item in items):
            paragraphs, hops = _flagged(row, items, where, repairs)
            kind = row.get("type") or str(row.get("id", "")).rpartition("__")[0]  # MuSiQue's ids begin with "2hop__"
        elif items and all({"sentences", "support"} <= item.keys() for item in items):
            paragraphs = [_paragraph(item, where, _indices(item, where, repairs), repairs) for item in items]
            hops, kind = _evidence_hops(row, paragraphs, where, repairs), row.get("type")
            hops = _hops(row, "decomposition", "paragraph", range(len(items)), where, repairs) or hops
        else:
            fields = ", ".join(map(str, row)) or "none"
            raise InputError(f"A row must have one of the forms {_FORMS}; got the fields {fields} in {where}.")
    identity = next((str(row[key]) for key in _IDS if row.get(key) not in (None, "")), name)
    question = plain_text(row, "question", where)
    return Question(
        identity, question, _answers(row, where, more, repairs), tuple(paragraphs), tuple(hops), str(kind or "")
    )


def _answers(row: Row, where: str, more: Sequence[str], repairs: Counter[str]) -> tuple[str, ...]:
    aliases = [alias for field in _ALIASES if row.get(field) is not None for alias in texts(row, field, where)]
    aliases.extend(more)
    kept = [alias for alias in aliases if alias.strip()]
    repairs[BLANK] += len(aliases) - len(kept)
    return tuple(dict.fromkeys([plain_text(row, "answer", where), *kept]))


def _by_facts(row: Row, where: str, repairs: Counter[str]) -> list[Paragraph]:
    items = records(row, "context", ("title", "sentences"), where)
    places: dict[str, list[int]] = defaultdict(list)
    for place, item in enumerate(items):
        places[plain_text(item, "title", where, blank=True)].append(place)
    found: dict[int, list[int]] = defaultdict(list)
    for fact in records(row, "supporting_facts", ("title", "sent_id"), where):
        title, index = plain_text(fact, "title", where, blank=True), integer(fact, "sent_id", where)
        if index < 0:
            repairs[NEGATIVE] += 1
            continue
        candidates = places.get(title, [])
        candidates = [p for p in candidates if index < len(texts(items[p], "sentences", where))] or candidates
        if not candidates:
            repairs[ABSENT] += 1
            continue
        if len({tuple(texts(items[p], "sentences", where)) for p in candidates}) > 1:
            repairs[REPEATED] += 1
        found[candidates[0]].append(index)
    return [_paragraph(item, where, found[place], repairs) for place, item in enumerate(items)]


def _paragraph(item: Row, where: str, indices: Sequence[int], repairs: Counter[str]) -> Paragraph:
    sentences, support = texts(item, "sentences", where), set()
    for index in indices:
        if not sentences:
            repairs[EMPTY] += 1
            continue
        if index >= len(sentences):
            # The paragraph stays gold: the set says that it is needed, only its sentences were cut differently.
            repairs[MOVED] += 1
        support.add(min(index, len(sentences) - 1))
    return Paragraph(plain_text(item, "title", where, blank=True), tuple(sentences), tuple(sorted(support)))


def _indices(item: Row, where: str, repairs: Counter[str]) -> list[int]:
    if not isinstance(item["support"], (list, tuple)):
        raise InputError(f"`support` must be a list of sentence indices; got {item['support']!r:.80} in {where}.")
    indices = [integer({"support": index}, "support", where) for index in item["support"]]
    kept = [index for index in indices if index >= 0]
    repairs[NEGATIVE] += len(indices) - len(kept)
    return kept


def _flagged(row: Row, items: Sequence[Row], where: str, repairs: Counter[str]) -> tuple[list[Paragraph], list[Hop]]:
    paragraphs = []
    for item in items:
        if not isinstance(item.get("is_supporting"), bool):
            got = repr(item.get("is_supporting"))
            raise InputError(f"`is_supporting` must be true or false; got {got:.80} in {where}.")
        text = texts({"paragraph_text": [item["paragraph_text"]]}, "paragraph_text", where)
        support = (0,) if item["is_supporting"] else ()
        paragraphs.append(Paragraph(plain_text(item, "title", where, blank=True), tuple(text), support))
    names = [integer(item, "idx", where) if "idx" in item else place for place, item in enumerate(items)]
    if len(set(names)) < len(names):
        raise InputError(f"`idx` must be another one in each paragraph; got {names} in {where}.")
    return paragraphs, _hops(row, "question_decomposition", "paragraph_support_idx", names, where, repairs)


def _hops(row: Row, field: str, pointer: str, names: Sequence[int], where: str, repairs: Counter[str]) -> list[Hop]:
    """The steps of a decomposition: all of them or none, because they refer to each other by number."""
    steps = records(row, field, (), where) if row.get(field) is not None else []
    untold = sum(not all(_told(step.get(name)) for name in ("question", "answer")) for step in steps)
    if untold:
        repairs[UNTOLD] += untold
        return []
    hops = []
    for step in steps:
        name = step.get(pointer)
        place = names.index(name) if type(name) is int and name in names else None
        repairs[NOWHERE] += name is not None and place is None
        hops.append(Hop(step["question"].strip(), step["answer"].strip(), place))
    return hops


def _told(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _evidence_hops(row: Row, paragraphs: Sequence[Paragraph], where: str, repairs: Counter[str]) -> list[Hop]:
    hops = []
    names = ("subject", "relation", "object")
    for triple in records(row, "evidences", names, where) if row.get("evidences") is not None else []:
        if not all(_told(triple.get(name)) for name in names):
            repairs[PARTIAL] += 1
            continue
        subject, relation, value = (triple[name].strip() for name in names)
        hops.append(Hop(f"{subject} >> {relation}", value, _titled(subject, paragraphs)))
    return hops


def _titled(subject: str, paragraphs: Sequence[Paragraph]) -> int | None:
    """The gold paragraph titled like the subject, else the one titled like it but for what stands in parentheses."""
    for spelled in (str.strip, _unqualified):
        places = [
            place for place, each in enumerate(paragraphs) if each.support and spelled(each.title) == spelled(subject)
        ]
        if len(places) == 1:
            return places[0]
    return None


def _unqualified(title: Any) -> str:
    return _QUALIFIER.sub("", title.strip()).casefold()
