"""Reads the nested fields of a row, however a copy of the set stores them: lists, dicts of lists, JSON texts."""

import json
from collections.abc import Sequence
from typing import Any

from stepcredit.errors import InputError
from stepcredit.tasks.rows import Row

# Copies of one set call a member differently.
_SAME = {"content": "sentences", "fact": "subject", "entity": "object"}


def records(row: Row, field: str, names: Sequence[str], where: str) -> list[Row]:
    """A field of several members as a list of records.

    Args:
        row: The row.
        field: The field: a list of dicts, a dict of equally long lists, a list of lists whose members have the
            order of ``names``, or a JSON text of one of these.
        names: What a list's members are called; empty where the set has no such form.
        where: What to call the row in a message.

    Raises:
        InputError: The field is none of these.

    Example:
        >>> records({"x": '[["Oslo", 2]]'}, "x", ("title", "sent_id"), "row 1")
        [{'title': 'Oslo', 'sent_id': 2}]
        >>> records({"x": {"title": ["Oslo"], "sent_id": [2]}}, "x", (), "row 1")
        [{'title': 'Oslo', 'sent_id': 2}]
    """
    value = row[field]
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise InputError(f"`{field}` must be a list, or a list as JSON; got {error} in {where}.") from error
    if isinstance(value, dict) and all(isinstance(column, (list, tuple)) for column in value.values()):
        lengths = {name: len(column) for name, column in value.items()}
        if len(set(lengths.values())) > 1:
            raise InputError(f"`{field}` must have columns of one length; got {lengths} in {where}.")
        count = max(lengths.values(), default=0)
        value = [{name: column[place] for name, column in value.items()} for place in range(count)]
    if not isinstance(value, (list, tuple)):
        raise InputError(f"`{field}` must be a list; got {value!r:.80} in {where}.")
    return [_record(member, field, names, where) for member in value]


def _record(member: Any, field: str, names: Sequence[str], where: str) -> Row:
    if isinstance(member, (list, tuple)) and names and len(member) == len(names):
        member = dict(zip(names, member, strict=True))
    if not isinstance(member, dict):
        expected = f"{', '.join(names)}, or a record" if names else "a record"
        raise InputError(f"A member of `{field}` must be {expected}; got {member!r:.80} in {where}.")
    return {str(_SAME.get(name, name)): value for name, value in member.items()}


def texts(row: Row, field: str, where: str) -> list[str]:
    """A field that is a list of texts.

    Raises:
        InputError: It is absent or something else.
    """
    value = row.get(field)
    if not isinstance(value, (list, tuple)) or not all(isinstance(member, str) for member in value):
        raise InputError(f"`{field}` must be a list of texts; got {value!r:.80} in {where}.")
    return list(value)


def plain_text(row: Row, field: str, where: str, *, blank: bool = False) -> str:
    """A field that is a text, without white space around it.

    Raises:
        InputError: It is absent, something else, or blank where that is not allowed.
    """
    value = row.get(field)
    if not isinstance(value, str) or not (blank or value.strip()):
        rule = "a text" if blank else "a non-empty text"
        raise InputError(f"`{field}` must be {rule}; got {value!r:.80} in {where}.")
    return value.strip()


def integer(row: Row, field: str, where: str) -> int:
    """A field that is a whole number.

    Raises:
        InputError: It is absent or something else.
    """
    value = row.get(field)
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(f"`{field}` must be a whole number; got {value!r:.80} in {where}.")
    return value
