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

_MEMORY = 10_000  # grades kept where no batch follows another

Turns = tuple[Span, ...] | None


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
    if hasattr(task, "environment") and isinstance(task, SearchTask):  # the first is cheap, and settles most
        grade = task.grade(reference, text, finished=finished, turns=turns)
    else:
        grade = task.grade(reference, text, finished=finished)
    if set(grade.measures) != set(task.measures):
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
        self._grades: dict[tuple[str, str, bool, Turns], Grade] = {}
        self._batch: list[list[int]] | None = None
        self._last: tuple[Callable[[], Rollouts | None], list[Grade]] = (lambda: None), []

    def outcome(self, completion_ids: Sequence[Sequence[int]], reference: Sequence[str], **row: Any) -> list[float]:
        """A reward function: is the answer right, or how much of it?"""
        return [grade.outcome for grade in self._graded(completion_ids, reference, row.get("policy_mask"))]

    def format(self, completion_ids: Sequence[Sequence[int]], reference: Sequence[str], **row: Any) -> list[float]:
        """A reward function: is the form the one that the task asks for?"""
        return [float(grade.format_ok) for grade in self._graded(completion_ids, reference, row.get("policy_mask"))]

    def correct(self, rollouts: Rollouts) -> list[bool]:
        """Whether each rollout's answer is right, whatever its reward."""
        return [grade.correct for grade in self.grades(rollouts)]

    def score(self, rollouts: Rollouts) -> list[tuple[ScoredSpan, ...]]:
        """A text signal: the task's ground truth for every step."""
        return [grade.steps for grade in self.grades(rollouts)]

    def grades(self, rollouts: Rollouts) -> list[Grade]:
        """The grade of each rollout; those of the last rollouts are kept, which several ask for."""
        rollouts_of, found = self._last
        if rollouts_of() is not rollouts:
            rows = zip(rollouts.references or [], rollouts.completions, self._finished_of(rollouts), _turns(rollouts),
                       strict=True)  # fmt: skip
            found = [self._grade(*row) for row in rows]
            self._last = ref(rollouts), found
        return found

    def counts(self, rollouts: Rollouts) -> Mapping[str, float]:
        """Sums over the rollouts of what the task knows.

        Right, well formed, finished, unparsed, steps of each kind, and the task's measures. ``repeated_lines`` are
        those of the policy that stood in the same completion before, in the policy's words: what a policy writes that
        games a signal.

        Raises:
            InputError: A grade has a kind of step that the task does not name.
        """
        named = ("accuracy", "format_ok", "truncated", "unparsed", "repeated_lines")
        totals: dict[str, float] = dict.fromkeys((*named, *self.task.measures), 0.0)
        rows = zip(self.grades(rollouts), self._finished_of(rollouts), rollouts.completions, _turns(rollouts),
                   strict=True)  # fmt: skip
        for grade, finished, text, turns in rows:
            totals["accuracy"] += grade.correct
            totals["format_ok"] += grade.format_ok
            totals["truncated"] += not finished
            totals["unparsed"] += not grade.parsed
            mine = [text] if turns is None else [text[start:end] for start, end in turns]
            lines = [line for part in mine for line in part.splitlines()]
            if len(set(lines)) < len(lines):  # rare; blank lines are no repetition
                lines = [line for line in lines if line.strip()]
                totals["repeated_lines"] += len(lines) - len(set(lines))
            for name, value in grade.measures.items():
                totals[name] += value
        kinds = Counter(chain.from_iterable(grade.kinds for grade in self.grades(rollouts)))
        if not kinds.keys() <= {*self.task.kinds}:
            raise InputError(f"`task` must give steps of its own kinds, {self.task.kinds}; got {tuple(kinds)}.")
        return totals | {f"steps_{kind}": float(kinds[kind]) for kind in self.task.kinds}

    def _graded(
        self,
        completion_ids: Sequence[Sequence[int]],
        references: Sequence[str],
        masks: Sequence[Sequence[int]] | None,
    ) -> list[Grade]:
        ids, texts = decoded(self.tokenizer, completion_ids)
        if ids is not self._batch:  # its grades are read several times, by text and as rollouts; earlier ones never
            self._batch = ids
            self._grades.clear()
        grades = []
        for row, text, reference, mask in zip(ids, texts, references, masks or repeat(None, len(ids)), strict=True):
            turns = None
            if mask is not None and not all(mask):
                turns = tuple(policy_turns(decoded_offsets(self.tokenizer, [row], [text])[0], mask))
            grades.append(self._grade(reference, text, self._finished(row, mask), turns))
        return grades

    def _grade(self, reference: str, text: str, finished: bool, turns: Turns) -> Grade:
        key = (reference, text, finished, turns)
        if key not in self._grades:
            if len(self._grades) >= _MEMORY:
                self._grades.clear()
            self._grades[key] = grade_rollout(self.task, reference, text, finished=finished, turns=turns)
        return self._grades[key]

    def _finished_of(self, rollouts: Rollouts) -> list[bool]:
        ids = rollouts.token_ids or []
        return [self._finished(*row) for row in zip(ids, rollouts.response_mask or repeat(None, len(ids)), strict=True)]

    def _finished(self, ids: Sequence[int], mask: Sequence[int | bool] | None) -> bool:
        if not ids or int(ids[-1]) not in self.eos_ids:
            return False
        if self.asks is None:
            return True
        kept = len(ids) if mask is None or all(mask) else sum(1 for _ in takewhile(bool, reversed(mask)))
        return bool(kept) and not self.asks(ids[-kept:])


def _turns(rollouts: Rollouts) -> list[Turns]:
    """The turns of each rollout; None for one that the policy wrote from start to end, as the reward functions say."""
    if rollouts.turns is None:
        return [None] * len(rollouts)
    whole = [[Span(0, len(text))] for text in rollouts.completions]
    return [
        None if list(row) == all_of_it else tuple(row) for row, all_of_it in zip(rollouts.turns, whole, strict=True)
    ]
