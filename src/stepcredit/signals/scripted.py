"""A signal that says what it is told to: for tests, and for trying a scheme before there is a real one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from stepcredit.batch import Rollouts, ScoredSpan
from stepcredit.errors import InputError
from stepcredit.options import Options

Line = Sequence[float | None]


@dataclass(frozen=True)
class Scripted(Options):
    r"""Scores each completion's steps from a script.

    Attributes:
        name: What this signal is called in configurations and records.
        unit: What its scores mean.
        requires: The fields of `Rollouts` that it reads beside prompts and completions.
        script: What the steps of a completion score, by its text: a mapping, or a function of it. One number a step;
            None leaves a step without a score.
        default: What every step of a completion scores for which the script has nothing; None: that is an error.

    Raises:
        InputError: Neither a script nor a default.

    Example:
        >>> from stepcredit import Span
        >>> rollouts = Rollouts(["1+2*3?"], ["2*3=6\n7"], group_ids=[0], steps=[[Span(0, 6), Span(6, 7)]])
        >>> Scripted({"2*3=6\n7": [1.0, 0.5]}).score(rollouts)
        [[ScoredSpan(start=0, end=6, score=1.0), ScoredSpan(start=6, end=7, score=0.5)]]
    """

    name: ClassVar[str] = "scripted"
    unit: ClassVar[str] = "whatever the script says"
    requires: ClassVar[frozenset[str]] = frozenset({"steps"})
    script: Mapping[str, Line] | Callable[[str], Line | None] | None = None
    default: float | None = None

    def __post_init__(self) -> None:
        """Checks that there is something to say."""
        super().__post_init__()
        if self.script is None and self.default is None:
            raise InputError("`script` must be given for Scripted where there is no `default`; got None.")

    def score(self, rollouts: Rollouts) -> list[list[ScoredSpan]]:
        """What the script says, step by step.

        Raises:
            InputError: The rollouts have no steps, a completion has no line and there is no default, or a line has
                another number of scores than there are steps.
        """
        if rollouts.steps is None:
            raise InputError("`rollouts` must have steps; got none. Segment the completions first.")
        rows = []
        for row, (text, spans) in enumerate(zip(rollouts.completions, rollouts.steps, strict=True)):
            line = self._line(row, text, len(spans))
            if len(line) != len(spans):
                raise InputError(
                    f"`script` must have one score a step; got {len(line)} for {len(spans)} steps in row {row}."
                )
            rows.append([ScoredSpan(*span, x) for span, x in zip(spans, line, strict=True) if x is not None])
        return rows

    def _line(self, row: int, text: str, n_steps: int) -> Line:
        line = self.script(text) if callable(self.script) else (self.script or {}).get(text)
        if line is not None:
            return line
        if self.default is None:
            raise InputError(f"`script` must have a line for every completion; got none for {text!r:.60} in row {row}.")
        return [self.default] * n_steps
