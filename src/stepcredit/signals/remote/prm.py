"""A process reward model that is served elsewhere, as a signal."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from stepcredit.batch import Rollouts, ScoredSpan
from stepcredit.errors import InputError
from stepcredit.options import option
from stepcredit.signals.prm import PRESETS, Layout, make_layout
from stepcredit.signals.prm.presets import find_preset, find_separator
from stepcredit.signals.remote.served import Marked, Served

if TYPE_CHECKING:  # what asks is loaded when something is asked
    from stepcredit.signals.remote.session import Session

PROBES = (("What is 2+3?", ["Add 2 and 3.", "The answer is 5."]), ("What is 7*6?", ["7*6 is 42, so it is 42."]))
READABLE = ("labels", "vocabulary")  # what a row of numbers for each token can hold


@dataclass
class _State:
    """What a signal keeps between calls."""

    layout: Layout | None = None
    session: "Session | None" = None
    unscored: int = 0


@dataclass(frozen=True)
class RemotePRM(Served):
    """Scores steps with a process reward model behind HTTP, fed and read as `PRM` feeds and reads it.

    The input is made here, with the model's tokenizer and the preset's layout, and sent as token ids. The server is
    vLLM with the model as a pooling model, or ``stepcredit serve --prm``. Before its first number is used the server
    must list the model, agree with the tokenizer, and answer the same wherever an input stands in a request; every
    answer after that is checked to be whole, finite and of the input that was sent.

    Attributes:
        name: What this signal is called in configurations and records.
        requires: The fields of `Rollouts` that it reads beside prompts and completions.
        preset: The family that the model belongs to, a name in `PRESETS`.
        separator: What ends every step, where the preset leaves it open; None: the preset's own.
        outputs: What the server gives of the labels: "probabilities", vLLM's default, or "logits".
        max_length: The most tokens of an input that the model is given; None: as many as the server says it takes.

    The other options are those of `Served`.

    Raises:
        InputError: An unknown preset, one that no server can answer for, or an option out of its range.

    Example:
        >>> RemotePRM("http://127.0.0.1:8000", "Qwen/Qwen2.5-Math-PRM-7B", "Qwen/Qwen2.5-Math-PRM-7B").unscored
        0

    Reference:
        vLLM's pooling API; see `PRM` for the models.
    """

    name: ClassVar[str] = "remote_prm"
    unit: ClassVar[str] = "the score of its preset"
    requires: ClassVar[frozenset[str]] = frozenset({"steps"})
    preset: str = "qwen2.5-math-prm"
    separator: str | None = None
    outputs: Literal["probabilities", "logits"] = "probabilities"
    max_length: int | None = option(None, at_least=1)
    _state: _State = field(init=False, repr=False, compare=False, default_factory=_State)

    def __post_init__(self) -> None:
        """Checks every option; touches neither network nor disk."""
        super().__post_init__()
        preset = find_preset(self.preset)
        find_separator(preset, self.separator)
        if preset.output not in READABLE:
            names = ", ".join(name for name, one in PRESETS.items() if one.output in READABLE)
            raise InputError(f"`preset` must be one that a served model can answer for: {names}; got {self.preset!r}.")

    @property
    def unscored(self) -> int:
        """The number of steps, over all calls, that have no score because they end beyond ``max_length`` tokens."""
        return self._state.unscored

    def score(self, rollouts: Rollouts) -> list[list[ScoredSpan]]:
        """Scores every step that fits.

        Args:
            rollouts: The rollouts to score; must have ``steps``. The prompt is the problem, word for word.

        Returns:
            For each rollout its steps in order, as the exact spans given, with scores in the preset's unit.

        Raises:
            RemoteError: The server does not answer, or its answer cannot be trusted.
            InputError: ``rollouts`` has no steps; the tokenizer cannot be loaded or does not fit the preset;
                ``max_length`` is more than the server takes.
            MissingExtraError: httpx or Transformers is not installed.

        Degenerate cases:
            - A step of white space alone is not in the list, and the model does not see it.
            - A step whose score stands beyond ``max_length`` tokens is not in the list and counts as `unscored`.
            - No step with content in any rollout: nothing is asked.
        """
        if rollouts.steps is None:
            raise InputError("`rollouts` must have steps; got none. Segment the completions first.")
        kept = [
            [((start, end), words) for start, end in spans if (words := text[start:end].strip())]
            for text, spans in zip(rollouts.completions, rollouts.steps, strict=True)
        ]
        if not any(kept):
            return [[] for _ in kept]
        session = self.session()
        inputs: list[Marked] = []
        owners: list[tuple[int, int]] = []  # the rollout and the step of each number that is asked for
        for row, (problem, steps) in enumerate(zip(rollouts.prompts, kept, strict=True)):
            for pair, wanted in self.inputs(problem, [words for _, words in steps]):
                inputs.append(pair)
                owners += [(row, step) for step in wanted]
        found = [value for values in session.numbers(inputs) for value in values]
        scores: list[list[ScoredSpan]] = [[] for _ in kept]
        for (row, step), value in zip(owners, found, strict=True):
            scores[row].append(ScoredSpan(*kept[row][step][0], value))
        return scores

    def session(self) -> "Session":
        """The connection to the server, opened at the first call; nothing is asked yet."""
        from stepcredit.signals.remote.questions import StepScores
        from stepcredit.signals.remote.session import Session
        from stepcredit.signals.remote.tokenizers import load_tokenizer

        state = self._state
        if state.session is None:
            tokenizer = load_tokenizer(self.tokenizer)
            state.layout = make_layout(self.preset, tokenizer, separator=self.separator)
            probes = [self._layout().inputs(*probe)[-1] for probe in PROBES]
            preset = find_preset(self.preset)
            question = StepScores(self.model, preset, find_separator(preset, self.separator), self.outputs)
            state.session = Session(
                self, question, ((probes[0].ids, probes[0].marks), (probes[1].ids, probes[1].marks)),
                encode=lambda text: tokenizer.encode(text, add_special_tokens=False), longest=self.max_length,
            )  # fmt: skip
        return state.session

    def _layout(self) -> Any:
        return self._state.layout

    def inputs(self, problem: str, steps: list[str]) -> list[tuple[Marked, list[int]]]:
        """What is sent for a rollout, with the steps that each input's marks belong to; what doesn't fit is counted."""
        session = self.session()
        length = session.longest_input()
        found: list[tuple[Marked, list[int]]] = []
        begun = 0
        for part in self._layout().inputs(problem, steps) if steps else ():
            fitting = [mark for mark in part.marks if length is None or mark < length]
            self._state.unscored += len(part.marks) - len(fitting)
            if fitting:
                found.append(((part.ids[:length], fitting), list(range(begun, begun + len(fitting)))))
            begun += len(part.marks)
        return found
