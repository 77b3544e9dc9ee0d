"""A task inside a trainer: its grades as reward functions, as a process signal and as metrics, each made once."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain, repeat, takewhile
from typing import Any, ClassVar
from weakref import ref

from stepcredit.batch import Rollouts, ScoredSpan, Span
from stepcredit.errors import InputError
from stepcredit.signals.decoding import decoded
from stepcredit.signals.offsets import decoded_offsets, policy_turns
from stepcredit.tasks import Grade, SearchTask, Task

Turns = tuple[Span, ...] | None
Row = tuple[str, str, bool, Turns]


def grade_rollout(task: Task, reference: str, text: str, *, finished: bool, turns: Turns = None) -> Grade:
    """A task's grade; a task that searches is told which spans the policy wrote.

    Args:
        task: The task.
        reference: The example's.
        text: The completion.
        finished: It was not cut.
        turns: The policy's turns; None where it wrote everything.

    Raises:
        InputError: The grade lacks one of the measures that the task names, or has another.
    """
    if turns is not None and isinstance(task, SearchTask):
        grade = task.grade(reference, text, finished=finished, turns=turns)
    else:
        grade = task.grade(reference, text, finished=finished)
    if grade.measures.keys() != {*task.measures}:
        raise InputError(
            f"`task` must give each of its measures, {task.measures}, in every grade; got {tuple(grade.measures)}."
        )
    return grade


class TaskGrader:
    """Grades completions by a task, for a trainer's reward functions and for its process signal.

    Args:
        task: The task.
        tokenizer: The policy's; the graded text is what it decodes the sampled ids to, special tokens left out.
        eos_ids: The ids that end a completion; one that ends otherwise was cut by the length limit.
        asks: Whether a turn asks an environment for something (`TurnProtocol.asks`). A completion whose last turn does
            got no answer, and is unfinished even where it ends in one of ``eos_ids``.
    """

    name: ClassVar[str] = "task_steps"
    unit: ClassVar[str] = (
        "the task's own score of a step, 1 or 0: that the prefix is right, or that a search found something new"
    )
    requires: ClassVar[frozenset[str]] = frozenset({"references", "token_ids"})

    def __init__(
        self,
        task: Task,
        tokenizer: Any,
        eos_ids: Collection[int],
        asks: Callable[[Sequence[int]], bool] | None = None,
    ) -> None:
        self.task, self.tokenizer, self.eos_ids, self.asks = task, tokenizer, frozenset(eos_ids), asks
        self._known: tuple[dict[Row, Grade], dict[Row, Grade]] = {}, {}  # of the last two batches
        self._latest: tuple[list[Row], list[Grade]] = [], []  # the last batch, which several ask for
        self._read: tuple[Callable[[], Rollouts | None], list[Row]] = (lambda: None), []  # the last rollouts' rows

    def outcome(self, completion_ids: Sequence[Sequence[int]], reference: Sequence[str], **row: Any) -> list[float]:
        """A reward function: is the answer right, or how much of it?"""
        return [grade.outcome for grade in self._graded(completion_ids, reference, row.get("policy_mask"))]

    def format(self, completion_ids: Sequence[Sequence[int]], reference: Sequence[str], **row: Any) -> list[float]:
        """A reward function: is the form the one that the task asks for?"""
        return [float(grade.format_ok) for grade in self._graded(completion_ids, reference, row.get("policy_mask"))]

    def correct(self, rollouts: Rollouts) -> list[bool]:
        """Whether each rollout's answer is right, whatever its reward."""
        return [grade.correct for grade in self.grades(rollouts)]

    def score(self, rollouts: Rollouts) -> list[Sequence[ScoredSpan]]:
        """A text signal: the task's ground truth for every step."""
        return [grade.steps for grade in self.grades(rollouts)]

    def grades(self, rollouts: Rollouts) -> list[Grade]:
        """The grade of each rollout."""
        return self._grades(self._rows(rollouts))

    def counts(self, rollouts: Rollouts) -> Mapping[str, float]:
        """Sums over the rollouts of what the task knows.

        Right, well formed, finished, unparsed, steps of each kind, and the task's measures. ``repeated_lines`` are
        those of the policy that stood in the same completion before, in the policy's words: what a policy writes that
        games a signal.

        Raises:
            InputError: A grade has a kind of step that the task does not name.
        """
        rows = self._rows(rollouts)
        grades = self._grades(rows)
        totals: dict[str, float] = {
            "accuracy": sum(grade.correct for grade in grades),
            "format_ok": sum(grade.format_ok for grade in grades),
            "truncated": sum(not finished for _, _, finished, _ in rows),
            "unparsed": sum(not grade.parsed for grade in grades),
            "repeated_lines": sum(_repeated_lines(text, turns) for _, text, _, turns in rows),
            **{name: sum(grade.measures[name] for grade in grades) for name in self.task.measures},
        }
        kinds = Counter(chain.from_iterable(grade.kinds for grade in grades))
        if not kinds.keys() <= {*self.task.kinds}:
            raise InputError(f"`task` must give steps of its own kinds, {self.task.kinds}; got {tuple(kinds)}.")
        totals |= {f"steps_{kind}": kinds[kind] for kind in self.task.kinds}
        return {name: float(total) for name, total in totals.items()}

    def _graded(
        self,
        completion_ids: Sequence[Sequence[int]],
        references: Sequence[str],
        masks: Sequence[Sequence[int]] | None,
    ) -> list[Grade]:
        ids, texts = decoded(self.tokenizer, completion_ids)
        turns: list[Turns] = [None] * len(ids)
        several = {i: mask for i, mask in enumerate(masks or ()) if mask is not None and not all(mask)}
        if several:
            ranges = decoded_offsets(self.tokenizer, [ids[i] for i in several], [texts[i] for i in several])
            for (i, mask), own in zip(several.items(), ranges, strict=True):
                turns[i] = tuple(policy_turns(own, mask))
        finished = self._all_finished(ids, masks)
        return self._grades(list(zip(references, texts, finished, turns, strict=True)))

    def _rows(self, rollouts: Rollouts) -> list[Row]:
        rollouts_of, rows = self._read
        if rollouts_of() is not rollouts:
            finished = self._all_finished(rollouts.token_ids or [], rollouts.response_mask)
            rows = list(zip(rollouts.references or [], rollouts.completions, finished, _turns(rollouts), strict=True))
            self._read = ref(rollouts), rows
        return rows

    def _grades(self, rows: list[Row]) -> list[Grade]:
        """The grade of each row: of its reference, its text, whether that is finished, and its turns."""
        if rows != self._latest[0]:
            known, before = self._known
            grades = {
                row: known.get(row) or before.get(row) or self._grade(*row)
                for row in dict.fromkeys(rows)  # the same text twice costs one grade
            }
            self._known = grades, known
            self._latest = rows, [grades[row] for row in rows]
        return self._latest[1]

    def _grade(self, reference: str, text: str, finished: bool, turns: Turns) -> Grade:
        return grade_rollout(self.task, reference, text, finished=finished, turns=turns)

    def _all_finished(self, ids: Sequence[Sequence[int]], masks: Sequence[Any] | None) -> list[bool]:
        ended = [len(row) > 0 and int(row[-1]) in self.eos_ids for row in ids]
        if self.asks is None:
            return ended
        rows = zip(ended, ids, masks or repeat(None, len(ids)), strict=True)
        return [end and not self._is_asking(row, mask) for end, row, mask in rows]

    def _is_asking(self, ids: Sequence[int], mask: Sequence[int | bool] | None) -> bool:
        """Whether a completion's last turn asks the environment for something, or there is none."""
        assert self.asks is not None
        kept = len(ids) if mask is None or all(mask) else sum(1 for _ in takewhile(bool, reversed(mask)))
        return not kept or self.asks(ids[-kept:])


def _repeated_lines(text: str, turns: Turns) -> int:
    """How many of the policy's lines stood in its words before."""
    mine = (text[start:end] for start, end in turns or ())
    lines = text.splitlines() if turns is None else [line for part in mine for line in part.splitlines()]
    if len({*lines}) == len(lines):
        return 0
    lines = [line for line in lines if line.strip()]  # blank lines are no repetition
    return len(lines) - len({*lines})


def _turns(rollouts: Rollouts) -> list[Turns]:
    """The turns of each rollout; None for one that the policy wrote from start to end, as the reward functions say."""
    if rollouts.turns is None:
        return [None] * len(rollouts)
    whole = [[Span(0, len(text))] for text in rollouts.completions]
    return [
        None if list(row) == all_of_it else tuple(row) for row, all_of_it in zip(rollouts.turns, whole, strict=True)
    ]
