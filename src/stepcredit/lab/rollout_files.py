"""Reads a file of rollouts into `Rollouts` and reward columns, and refuses a bad row by number, field and fact."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stepcredit.batch import Rollouts, ScoredSpan, Span
from stepcredit.batch.checks import LARGEST
from stepcredit.errors import InputError
from stepcredit.tasks.math_problems import gsm8k_solutions
from stepcredit.tasks.rows import read_rows

Row = Mapping[str, Any]


@dataclass(frozen=True)
class RolloutFile:
    """What a file of rollouts holds.

    Attributes:
        rollouts: Texts, groups, and token offsets and log-probabilities where the file has them.
        columns: [batch] fields of `RolloutBatch` by name: rewards, format_rewards, format_ok, correct, row_mask.
        scores: The file's own scored steps, or None.
        groups: The group labels as the file writes them.
        ignored: Fields of the file that nothing here reads.
    """

    rollouts: Rollouts
    columns: dict[str, list[Any]]
    scores: list[list[ScoredSpan]] | None
    groups: list[str]
    ignored: list[str] = field(default_factory=list)


def read_rollouts(path: str | Path, limit: int | None = None) -> RolloutFile:
    """Reads a file of rollouts: JSON Lines, a JSON array or Parquet, each also gzipped.

    A row has ``prompt``, ``completion``, ``group`` (text or integer) and ``reward`` (null: the row counts in nothing).
    It may have ``reference`` (text), ``format_reward``, ``format_ok``, ``correct``, ``extra_rewards`` ({name: number}),
    ``steps`` (a list of {end, score}: character offsets into the completion, end exclusive, each step starting where
    the one before ended or at its own ``start``; score null: not covered), ``offsets`` ([start, end] a token),
    and beside them one entry a token of ``response_mask``, ``old_logprobs``, ``ref_logprobs``, ``teacher_logprobs``,
    ``base_logprobs``.
    A field is in every row or in none. GSM8K's published example model solutions are read as they are.

    Args:
        path: The file.
        limit: Read at most this many rows.

    Raises:
        InputError: The first bad row, by its number (from 1), the field and the fact.
        MissingExtraError: A Parquet file without pyarrow.
    """
    rows = read_rows(path, limit)
    if "completion" not in rows[0] and {"question", "ground_truth"} <= set(rows[0]):
        rollouts, rewards = gsm8k_solutions(path, limit=limit)
        return RolloutFile(rollouts, {"rewards": rewards}, None, [str(label) for label in rollouts.group_ids])
    present = {name for row in rows for name in row if row[name] is not None or name == "reward"}
    for name in ("prompt", "completion", "group"):
        if name not in present:
            raise InputError(
                f"row 1: `{name}` must be there: rows need prompt, completion and group; got {_names(rows[0])}."
            )
        _column(rows, name, present, str if name != "group" else _label)
    token_fields = {
        name: _column(rows, name, present, check)
        for name, check in (
            ("offsets", _offsets),
            ("response_mask", _bools),
            *((f"{model}_logprobs", _numbers) for model in ("old", "ref", "teacher", "base")),
        )
    }
    groups = [_label(row["group"]) for row in rows]
    references = _column(rows, "reference", present, str)
    order = {label: index for index, label in enumerate(dict.fromkeys(groups))}
    steps = _steps(rows) if "steps" in present else None
    rollouts = _rollouts(rows, token_fields, [order[label] for label in groups], steps, references)
    known = {*_READ, *token_fields}
    scores = None if steps is None else [[step for step in row if step.score == step.score] for row in steps]
    ignored = sorted({name for row in rows for name in row} - known)
    return RolloutFile(rollouts, _columns(rows, present), scores, groups, ignored)


_READ = (
    "prompt", "completion", "group", "reward", "reference",
    "format_reward", "format_ok", "correct", "extra_rewards", "steps",
)  # fmt: skip


def _rollouts(
    rows: Sequence[Row],
    token_fields: Mapping[str, list[Any] | None],
    group_ids: list[int],
    steps: list[list[ScoredSpan]] | None,
    references: list[str] | None,
) -> Rollouts:
    prompts, completions = [row["prompt"] for row in rows], [row["completion"] for row in rows]
    if token_fields["offsets"] is None and any(x is not None for x in token_fields.values()):
        given = next(name for name, x in token_fields.items() if x is not None)
        raise InputError(
            f"`offsets` must be in the file when `{given}` is: it says which characters each token covers."
        )
    spans = None if steps is None else [[Span(step.start, step.end) for step in row] for row in steps]
    for number, row in enumerate(rows, 1):  # one row at a time, so that an error names it
        one = {name: [x[number - 1]] for name, x in token_fields.items() if x is not None}
        if spans is not None:
            one["steps"] = [spans[number - 1]]
        try:
            Rollouts([row["prompt"]], [row["completion"]], [0], **one)
        except InputError as error:
            raise InputError(f"row {number}: {str(error).replace(' in row 0', '').replace(', row 0', '')}") from None
    present = {name: x for name, x in token_fields.items() if x is not None}
    return Rollouts(prompts, completions, group_ids, references=references, steps=spans, **present)


def _columns(rows: Sequence[Row], present: set[str]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {}
    if "reward" in present:
        for number, row in enumerate(rows, 1):
            if "reward" not in row:
                raise _bad(number, "reward", "be a number or null", "nothing")
        columns["row_mask"] = [row["reward"] is not None for row in rows]
        if any(columns["row_mask"]):
            columns["rewards"] = [
                0.0 if row["reward"] is None else _number(row["reward"], number, "reward")
                for number, row in enumerate(rows, 1)
            ]
    for name, target, check in (
        ("format_reward", "format_rewards", _number),
        ("format_ok", "format_ok", _bool),
        ("correct", "correct", _bool),
    ):
        if name in present:
            columns[target] = [check(_given(row, name, number), number, name) for number, row in enumerate(rows, 1)]
    if "extra_rewards" in present:
        columns["extra_rewards"] = _extra_rewards(rows)
    _check_format(columns)
    return columns


def _check_format(columns: Mapping[str, list[Any]]) -> None:
    """The batch's own rule on formats, said in the file's terms."""
    rewards, complies = columns.get("format_rewards"), columns.get("format_ok")
    counted = columns.get("row_mask") or [True] * len(rewards or complies or [])
    for number, counts in enumerate(counted, 1):
        if counts and rewards and not complies and rewards[number - 1] not in (0, 1):
            raise _bad(number, "format_reward", "be 0 or 1, or come with `format_ok`", rewards[number - 1])
        if counts and complies and not rewards and not complies[number - 1]:
            raise _bad(number, "format_ok", "come with `format_reward` where a row violates the format", False)


def _extra_rewards(rows: Sequence[Row]) -> Any:
    names = list(rows[0].get("extra_rewards") or {})
    channels: dict[str, list[float]] = {name: [] for name in names}
    for number, row in enumerate(rows, 1):
        extra = _given(row, "extra_rewards", number)
        if not isinstance(extra, Mapping) or set(extra) != set(names):
            raise _bad(number, "extra_rewards", f"map the names {names} to numbers, as in row 1", extra)
        for name in names:
            channels[name].append(_number(extra[name], number, f"extra_rewards[{name!r}]"))
    return channels


def _steps(rows: Sequence[Row]) -> list[list[ScoredSpan]]:
    """Each row's steps; a score of nan stands for null, a step that is not covered."""
    parsed = []
    for number, row in enumerate(rows, 1):
        steps, start = [], 0
        for step in _list(_given(row, "steps", number), number, "steps"):
            if not isinstance(step, Mapping) or "end" not in step or "score" not in step:
                raise _bad(number, "steps", "be a list of {end, score}", step)
            if step.get("start") is not None:
                start = _integer(step["start"], number, "steps.start")
            end = _integer(step["end"], number, "steps.end")
            score = float("nan") if step["score"] is None else _number(step["score"], number, "steps.score")
            steps.append(ScoredSpan(start, end, score))
            start = end
        parsed.append(steps)
    return parsed


def _column(rows: Sequence[Row], name: str, present: set[str], check: Callable[..., Any]) -> list[Any] | None:
    """A field of every row, checked, or None if no row has it."""
    if name not in present:
        return None
    checked = []
    for number, row in enumerate(rows, 1):
        value = _given(row, name, number)
        if check is str:
            if not isinstance(value, str):
                raise _bad(number, name, "be text", value)
            checked.append(value)
        else:
            checked.append(check(value, number, name))
    return checked


def _given(row: Row, name: str, number: int) -> Any:
    if row.get(name) is None:
        raise _bad(number, name, "be in every row (or in none, if it is optional)", row.get(name, "nothing"))
    return row[name]


def _label(value: Any, number: int = 0, name: str = "group") -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise _bad(number, name, "be text or an integer", value)
    return str(value)


def _list(value: Any, number: int, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise _bad(number, name, "be a list", value)
    return value


def _integer(value: Any, number: int, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _bad(number, name, "be an integer", value)
    return value


def _number(value: Any, number: int, name: str) -> float:
    if isinstance(value, bool):
        return float(value)
    try:
        as_float = float(value) if isinstance(value, (int, float)) else math.nan
    except OverflowError:  # an integer beyond any float
        as_float = math.inf
    if not abs(as_float) < LARGEST:
        raise _bad(number, name, f"be a finite number, smaller than {LARGEST:g}", value)
    return as_float


def _bool(value: Any, number: int, name: str) -> bool:
    if not isinstance(value, bool):
        raise _bad(number, name, "be true or false", value)
    return value


def _numbers(value: Any, number: int, name: str) -> list[float]:
    return [_number(x, number, name) for x in _list(value, number, name)]


def _bools(value: Any, number: int, name: str) -> list[bool]:
    return [_bool(x, number, name) for x in _list(value, number, name)]


def _offsets(value: Any, number: int, name: str) -> list[tuple[int, int]]:
    pairs = _list(value, number, name)
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or not all(type(x) is int for x in pair):
            raise _bad(number, name, "be a list of [start, end] integers", pair)
    return [(pair[0], pair[1]) for pair in pairs]


def _names(row: Row) -> str:
    names = ", ".join(row)
    return f"fields {names if len(names) <= 120 else names[:117] + '...'}"


def _bad(number: int, name: str, rule: str, fact: Any) -> InputError:
    shown = repr(fact) if not isinstance(fact, int) or abs(fact) < 10**60 else "an integer of over 60 digits"
    return InputError(f"row {number}: `{name}` must {rule}; got {shown if len(shown) <= 60 else shown[:57] + '...'}.")
