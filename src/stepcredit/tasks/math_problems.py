"""Loads word and competition problems, and GSM8K's published model solutions, from files or the Hugging Face hub."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepcredit.batch import Rollouts
from stepcredit.errors import InputError
from stepcredit.tasks.rows import Row, read_rows
from stepcredit.tasks.sources import source_rows

QUESTION_FIELDS = ("question", "problem", "prompt", "input")
ANSWER_FIELDS = ("answer", "final_answer", "target", "gold")
_ID_FIELDS = ("id", "unique_id", "ID")
_SAMPLERS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


@dataclass(frozen=True)
class MathProblem:
    """One problem with its gold answer.

    Attributes:
        id: The row's own id where it has one, else the source's name and the row number, from 1.
        question: The text to solve.
        answer: The gold final answer: a number without thousands separators, or LaTeX.
        solution: A worked gold solution, where the source has one.
    """

    id: str
    question: str
    answer: str
    solution: str | None = None


def load_problems(
    name_or_path: str | Path,
    *,
    split: str = "test",
    limit: int | None = None,
    question_field: str | None = None,
    answer_field: str | None = None,
    config: str | None = None,
) -> list[MathProblem]:
    r"""Loads problems from a local file or folder, or by name from the Hugging Face hub.

    Recognized rows: GSM8K (the answer after the last ``####``, commas removed, the text before it the solution),
    SVAMP (``Body`` and ``Question``, a numeric ``Answer``), MATH (``problem``, ``answer``, ``solution``), and any
    row with one of the fields question | problem | prompt | input and one of answer | final_answer | target | gold.

    Args:
        name_or_path: A file (JSON Lines, JSON array, Parquet; plain or gzipped), a folder that
            ``datasets.load_dataset`` reads, or a hub name such as ``"openai/gsm8k"``.
        split: The split of a folder or hub dataset; a file is one split and ignores it.
        limit: At most this many problems, the first ones.
        question_field: The field of the question, for rows that name it otherwise or have several.
        answer_field: The field of the answer, likewise.
        config: The hub dataset's configuration; GSM8K's is known.

    Returns:
        The problems in the source's order; never empty. No row is dropped.

    Raises:
        InputError: A missing, damaged or empty source; a row whose question or answer is absent, ambiguous or
            of a type that is no answer. Names the source, the row and the fields found.
        MissingExtraError: A hub name or folder without ``datasets``; Parquet without pyarrow.

    Degenerate cases:
        A whole-number answer such as ``51.0`` reads "51".

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "one.jsonl"
        ...     _ = path.write_text('{"question": "How much is 40 * 30?", "answer": "40 * 30 = 1200\\n#### 1,200"}')
        ...     load_problems(path)[0].answer
        '1200'
    """
    rows, source = source_rows(name_or_path, split, limit, config)
    name = Path(name_or_path).name
    return [_problem(row, f"{source}, row {n}", f"{name}-{n}", question_field, answer_field)
            for n, row in enumerate(rows, 1)]  # fmt: skip


def gsm8k_solutions(path: str | Path, *, limit: int | None = None) -> tuple[Rollouts, list[float]]:
    """Loads GSM8K's published model solutions (``example_model_solutions.jsonl``) as graded rollouts.

    Each question is one group of four rollouts, in the file's order of models: 6b_finetuning, 6b_verification,
    175b_finetuning, 175b_verification.

    Args:
        path: The file, plain or gzipped.
        limit: At most this many questions.

    Returns:
        The rollouts (prompt: the question; completion: the solution; reference: the gold final answer, without
        thousands separators) and the published outcome of each, 1.0 or 0.0.

    Raises:
        InputError: A damaged file, or a row without the published fields.

    Example:
        >>> rollouts, rewards = gsm8k_solutions("example_model_solutions.jsonl.gz", limit=1)  # doctest: +SKIP
        >>> len(rollouts), list(rollouts.group_ids), rewards  # doctest: +SKIP
        (4, [0, 0, 0, 0], [0.0, 0.0, 0.0, 1.0])
    """
    prompts, completions, group_ids, references, rewards = [], [], [], [], []
    for number, row in enumerate(read_rows(path, limit), 1):
        try:
            answer = re.findall(r"^A:(.*)$", row["ground_truth"], re.MULTILINE)[-1]
            for name in _SAMPLERS:
                completions.append(str(row[name]["solution"]))
                rewards.append(float(bool(row[name]["is_correct"])))
                prompts.append(str(row["question"]))
                references.append(_without_commas(answer))
                group_ids.append(number - 1)
        except (KeyError, IndexError, TypeError) as error:
            raise InputError(
                f"`path` must hold GSM8K's example model solutions; {path}, row {number} has fields "
                f"{', '.join(row)} and lacks {error}. Use load_problems for question and answer files."
            ) from error
    return Rollouts(prompts, completions, group_ids, references=references), rewards


def _problem(row: Row, where: str, name: str, question_field: str | None, answer_field: str | None) -> MathProblem:
    if question_field is None and {"Body", "Question"} <= row.keys():
        question: Any = f"{str(row['Body']).strip()} {str(row['Question']).strip()}"
        answer_field = answer_field or "Answer"
    else:
        question = row[_field(row, where, "question", question_field, QUESTION_FIELDS)]
    answer = row[_field(row, where, "answer", answer_field, ANSWER_FIELDS)]
    if not isinstance(question, str) or not question.strip():
        raise InputError(f"The question must be a non-empty text; got {question!r:.80} in {where}.")
    text, solution = _answer_text(answer), row.get("solution")
    if "####" in text:
        solution, text = text, _without_commas(text.rpartition("####")[2])
    if not text:
        raise InputError(f"The answer must be a non-empty text or a finite number; got {answer!r:.80} in {where}.")
    identity = next((str(row[key]) for key in _ID_FIELDS if row.get(key) not in (None, "")), name)
    return MathProblem(identity, question, text, solution if isinstance(solution, str) else None)


def _field(row: Row, where: str, role: str, asked: str | None, known: tuple[str, ...]) -> str:
    found = [key for key in ([asked] if asked else known) if key in row]
    if len(found) == 1:
        return found[0]
    rule = f"have the field {asked!r}" if asked else f"have exactly one of the fields {' | '.join(known)}"
    raise InputError(
        f"A row must {rule} for the {role}; got the fields {', '.join(map(str, row)) or 'none'} in {where}. "
        f"Name it with {role}_field=."
    )


def _answer_text(answer: Any) -> str:
    if isinstance(answer, str):
        return answer.strip()
    if isinstance(answer, float) and math.isfinite(answer):
        return str(int(answer)) if answer == int(answer) else repr(answer)
    return str(answer) if isinstance(answer, int) and not isinstance(answer, bool) else ""


def _without_commas(number: str) -> str:
    return number.replace(",", "").strip()
