"""Reads files of labeled solutions: PRMBench, ProcessBench, MR-GSM8K, TRL's form and one's own."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from stepcredit.errors import InputError
from stepcredit.tasks.labeled_steps import LabeledSteps
from stepcredit.tasks.rows import Row, read_rows

Form = Literal["prmbench", "processbench", "mr_gsm8k", "trl", "steps"]
Origin = Literal["train", "test"]
_T = TypeVar("_T")


@dataclass(frozen=True)
class LabeledData:
    """What a file of labeled solutions holds.

    Attributes:
        solutions: In the file's order; ids are unique.
        form: The format that was found.
        left_out: How many rows or solutions are not among them, by reason; only reasons that occurred.
    """

    solutions: tuple[LabeledSteps, ...]
    form: Form
    left_out: dict[str, int]


def read_labeled_steps(
    path: str | Path, *, origin: Origin | None = None, originals: bool = True, limit: int | None = None
) -> LabeledData:
    r"""Reads labeled solutions from .jsonl, .json or .parquet, each also gzipped; the fields tell the format.

    - PRMBench (``modified_process``, ``error_steps`` from 1): each row's modified solution, 0 at the error steps and
      1 elsewhere as published; then each distinct ``original_process``, all 1.
    - ProcessBench (``steps``, ``label`` from 0, -1 for all right): 1 before the error, 0 at it, None after.
    - MR-GSM8K (``model_output_steps``, first error step from 1): the same; a solution that is right has no error.
    - TRL (``prompt``, ``completions``, ``labels``): as given; the row's number is the id unless it has one.
    - One's own (``id``, ``problem``, ``steps``, ``labels``, and ``group`` if need be): as given; labels are numbers in
      [0, 1], booleans or null.

    Args:
        path: The file.
        origin: Of PRMBench, only rows made from PRM800K's "train" or "test" part; None: all.
        originals: Of PRMBench, whether the original solutions come along.
        limit: Read at most this many rows.

    Returns:
        The solutions, the format, and what was left out: PRMBench rows ``"of another origin"``, with an ``"error
        step out of range"``, and original solutions that are a ``"repeated original"``.

    Raises:
        InputError: The file cannot be read, has no known format, or a row breaks it (file and row are named); two
            rows share an id; ``origin`` is given for another format; nothing is left.

    Degenerate cases:
        The group of a PRMBench solution is its ``idx``: one problem's question is spelled in several ways there. Ids
        that it repeats have ``~2``, ``~3`` at the end. An MR-GSM8K solution called right has all labels 1.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "one.json"
        ...     _ = path.write_text('{"id": "a", "problem": "?", "steps": ["x", "y", "z"], "label": 1}')
        ...     data = read_labeled_steps(path)
        >>> data.form, data.solutions[0].labels
        ('processbench', (1.0, 0.0, None))

    Reference:
        Song et al., PRMBench, arXiv 2501.03124; Zheng et al., ProcessBench, arXiv 2412.06559; Zeng et al., MR-GSM8K,
        arXiv 2312.17080.
    """
    rows = read_rows(path, limit)
    form = _form(path, rows[0])
    if origin is not None and form != "prmbench":
        raise InputError(f"`origin` must be None for a file that is not PRMBench; got {origin!r} for {path}.")
    left_out: Counter[str] = Counter()
    if form == "prmbench":
        solutions = list(_prmbench(path, rows, origin, originals, left_out))
    else:
        read = {"processbench": _processbench, "mr_gsm8k": _mr_gsm8k, "trl": _trl, "steps": _own}[form]
        solutions = [_read(path, number, partial(read, row, number)) for number, row in enumerate(rows, 1)]
    if not solutions:
        raise InputError(f"`path` must have a solution that is not left out; got none in {path}: {dict(left_out)}.")
    repeated = [name for name, count in Counter(solution.id for solution in solutions).items() if count > 1]
    if repeated:
        raise InputError(f"`path` must have an id a solution; got {repeated[0]!r} more than once in {path}.")
    return LabeledData(tuple(solutions), form, dict(left_out))


_FIELDS: dict[Form, tuple[str, ...]] = {
    "prmbench": ("idx", "question", "original_process", "modified_process", "error_steps"),
    "processbench": ("id", "problem", "steps", "label"),
    "mr_gsm8k": ("uuid", "question", "model_output_steps", "model_output_solution_first_error_step"),
    "trl": ("prompt", "completions", "labels"),
    "steps": ("id", "problem", "steps", "labels"),
}


def _form(path: str | Path, row: Row) -> Form:
    for form, fields in _FIELDS.items():
        if all(field in row for field in fields):
            return form
    known = "; ".join(f"{form}: {', '.join(fields)}" for form, fields in _FIELDS.items())
    raise InputError(f"`path` must have the fields of a known format ({known}); got {', '.join(row)} in {path}.")


def _read(path: str | Path, number: int, read: Callable[[], _T]) -> _T:
    """One row; whatever is wrong with it is told with its file and number."""
    try:
        return read()
    except KeyError as error:
        raise InputError(
            f"`path` must have the same fields in every row; {path}, row {number} lacks {error}."
        ) from None
    except InputError as error:
        raise InputError(f"`path` must hold labeled steps; got {path}, row {number}: {error}") from None


def _processbench(row: Row, _: int) -> LabeledSteps:
    steps = _texts(row, "steps")
    return _made(row["id"], row["problem"], steps, _until(_index(row, "label", -1, len(steps) - 1), len(steps)))


def _mr_gsm8k(row: Row, _: int) -> LabeledSteps:
    steps = _texts(row, "model_output_steps")
    right = row.get("model_output_solution_correctness") in ("correct", True)
    first = -1 if right else _index(row, "model_output_solution_first_error_step", 1, len(steps)) - 1
    return _made(row["uuid"], row["question"], steps, _until(first, len(steps)))


def _trl(row: Row, number: int) -> LabeledSteps:
    return _made(row.get("id", number), row["prompt"], _texts(row, "completions"), _labels(row))


def _own(row: Row, _: int) -> LabeledSteps:
    return _made(row["id"], row["problem"], _texts(row, "steps"), _labels(row), str(row.get("group") or ""))


def _prmbench(
    path: str | Path, rows: Sequence[Row], origin: Origin | None, originals: bool, left_out: Counter[str]
) -> Iterator[LabeledSteps]:
    seen: Counter[str] = Counter()
    sources: dict[tuple[str, tuple[str, ...]], str] = {}
    for number, row in enumerate(rows, 1):
        if origin is not None and origin not in str(row.get("source_file", "")):
            left_out["of another origin"] += 1
            continue
        name = f"{row.get('classification', 'modified')}/{row.get('idx')}"
        seen[name] += 1
        name += f"~{seen[name]}" if seen[name] > 1 else ""
        solution = _read(path, number, partial(_modified, row, name))
        if solution is None:
            left_out["error step out of range"] += 1
        else:
            yield solution
        if originals:
            first = _read(path, number, partial(_original, row, name))
            if sources.setdefault((first.group, first.steps), name) == name:
                yield first
            else:
                left_out["repeated original"] += 1


def _modified(row: Row, name: str) -> LabeledSteps | None:
    steps, errors = _texts(row, "modified_process"), row["error_steps"]
    if not isinstance(errors, list) or not all(type(error) is int for error in errors):
        raise InputError(f"`error_steps` must be whole numbers; got {errors!r:.60}.")
    if not all(1 <= error <= len(steps) for error in errors):
        return None
    labels = [0.0 if k in errors else 1.0 for k in range(1, len(steps) + 1)]
    return _made(name, row.get("modified_question") or row["question"], steps, labels, str(row["idx"]))


def _original(row: Row, name: str) -> LabeledSteps:
    steps = _texts(row, "original_process")
    return _made(
        f"original/{name}", row.get("original_question") or row["question"], steps, [1.0] * len(steps), str(row["idx"])
    )


def _made(name: Any, problem: Any, steps: list[str], labels: Sequence[float | None], group: str = "") -> LabeledSteps:
    if isinstance(name, bool) or not isinstance(name, (str, int)) or not isinstance(problem, str):
        raise InputError(f"the id must be text or a whole number and the problem text; got {name!r}, {problem!r:.40}.")
    return LabeledSteps(str(name), problem, tuple(steps), tuple(labels), group)


def _texts(row: Row, field: str) -> list[str]:
    texts = row[field]
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise InputError(f"`{field}` must be a list of texts, one or more; got {texts!r:.60}.")
    return texts


def _labels(row: Row) -> list[float | None]:
    labels = row["labels"]
    if not isinstance(labels, list) or not all(label is None or isinstance(label, (int, float)) for label in labels):
        raise InputError(f"`labels` must be a list of numbers, booleans or nulls; got {labels!r:.60}.")
    return [None if label is None else float(label) for label in labels]


def _index(row: Row, field: str, low: int, high: int) -> int:
    value = row[field]
    if type(value) is not int or not low <= value <= high:
        raise InputError(f"`{field}` must be a whole number from {low} to {high}; got {value!r}.")
    return value


def _until(first: int, count: int) -> list[float | None]:
    """Labels of ``count`` steps by the first error: right before it, nobody knows after it."""
    if first < 0:
        return [1.0] * count
    return [1.0] * first + [0.0] + [None] * (count - first - 1)
