"""A task inside a trainer: its grades as reward functions, as a process signal and as metrics, each made once."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

from stepcredit.batch import Rollouts, ScoredSpan
from stepcredit.tasks import Grade, Task

_MEMORY = 10_000  # grades kept: a generation batch is graded once and read four times


class TaskGrader:
    """Grades completions by a task, for a trainer's reward functions and for its process signal.

    Args:
        task: The task.
        tokenizer: The policy's; the graded text is what it decodes the sampled ids to, special tokens left out.
        eos_ids: The ids that end a completion; one that ends otherwise was cut by the length limit.
    """

    name: ClassVar[str] = "task_steps"
    unit: ClassVar[str] = "1 while the prefix is right, 0 from the first error on"
    requires: ClassVar[frozenset[str]] = frozenset({"references", "token_ids"})

    def __init__(self, task: Task, tokenizer: Any, eos_ids: Collection[int]) -> None:
        self.task, self.tokenizer, self.eos_ids = task, tokenizer, frozenset(eos_ids)
        self._grades: dict[tuple[str, str, bool], Grade] = {}

    def outcome(self, completion_ids: Sequence[Sequence[int]], reference: Sequence[str], **_: Any) -> list[float]:
        """A reward function: is the answer right?"""
        return [grade.outcome for grade in self._graded(completion_ids, reference)]

    def format(self, completion_ids: Sequence[Sequence[int]], reference: Sequence[str], **_: Any) -> list[float]:
        """A reward function: is the form the one that the task asks for?"""
        return [float(grade.format_ok) for grade in self._graded(completion_ids, reference)]

    def score(self, rollouts: Rollouts) -> list[tuple[ScoredSpan, ...]]:
        """A text signal: the task's ground truth for every step."""
        return [grade.steps for grade in self.grades(rollouts)]

    def grades(self, rollouts: Rollouts) -> list[Grade]:
        """The grade of each rollout."""
        ids, references = rollouts.token_ids or [], rollouts.references or []
        rows = zip(references, rollouts.completions, ids, strict=True)
        return [self._grade(reference, text, self._finished(row)) for reference, text, row in rows]

    def counts(self, rollouts: Rollouts) -> Mapping[str, float]:
        """Sums over the rollouts of what the task knows: right, well formed, finished, unparsed, steps of each kind.

        ``repeated_lines`` are those that stood in the same completion before: what a policy writes that games a signal.
        """
        totals: dict[str, float] = dict.fromkeys(
            ("accuracy", "format_ok", "truncated", "unparsed", "repeated_lines"), 0.0
        )
        totals |= dict.fromkeys((f"steps_{kind}" for kind in self.task.kinds), 0.0)
        rows = zip(self.grades(rollouts), rollouts.token_ids or [], rollouts.completions, strict=True)
        for grade, ids, text in rows:
            totals["accuracy"] += grade.outcome
            totals["format_ok"] += grade.format_ok
            totals["truncated"] += not self._finished(ids)
            totals["unparsed"] += not grade.parsed
            lines = [line for line in text.splitlines() if line.strip()]
            totals["repeated_lines"] += len(lines) - len(set(lines))
            for kind in grade.kinds:
                totals[f"steps_{kind}"] += 1
        return totals

    def _graded(self, completion_ids: Sequence[Sequence[int]], references: Sequence[str]) -> list[Grade]:
        ids = [list(map(int, row)) for row in completion_ids]
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        rows = zip(references, texts, ids, strict=True)
        return [self._grade(reference, text, self._finished(row)) for reference, text, row in rows]

    def _grade(self, reference: str, text: str, finished: bool) -> Grade:
        key = (reference, text, finished)
        if key not in self._grades:
            if len(self._grades) >= _MEMORY:
                self._grades.clear()
            self._grades[key] = self.task.grade(reference, text, finished=finished)
        return self._grades[key]

    def _finished(self, ids: Sequence[int]) -> bool:
        return bool(ids) and int(ids[-1]) in self.eos_ids
