"""The signal: scores the steps of rollouts with a published process reward model."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

import torch

from stepcredit.batch import Rollouts, ScoredSpan
from stepcredit.errors import InputError
from stepcredit.options import Options, option
from stepcredit.signals.prm.described import describe
from stepcredit.signals.prm.layouts import Input
from stepcredit.signals.prm.loading import Checkpoint, torch_dtype
from stepcredit.signals.prm.opening import Ratio, open_reader
from stepcredit.signals.prm.presets import PRESETS, Preset, find_preset, find_separator
from stepcredit.signals.prm.reading import Reader

Name = Literal[
    "qwen2.5-math-prm", "math-shepherd", "skywork-o1", "rlhflow", "pure", "eurus-implicit", "trl", "versaprm",
    "reasonflux-prm", "universal-prm",
]  # fmt: skip


@dataclass
class _State:
    """What a signal keeps between calls."""

    reader: Reader | None = None
    unscored: int = 0


@dataclass(frozen=True)
class PRM(Options):
    r"""Scores steps with a published process reward model, fed and read as its authors publish it.

    The model sees the prompt and all the steps, each stripped of the white space around it, in the layout of its
    preset. It is loaded by the first call of `score` that has a step, whole on this process's device, and kept.

    Text of the prompt and the completion never acts as a special token: where it spells one, it is read as characters.

    A checkpoint of a published architecture is read by Transformers' own classes and a head that is known here, not
    with code of the checkpoint. ``trust_remote_code`` runs that code instead.

    Attributes:
        name: What this signal is called in configurations and records.
        unit: What its scores mean; `Preset.unit` says it for each family: in [-1, 1] for "pure", of any size for
            "eurus-implicit", a probability for all others.
        requires: The fields of `Rollouts` that it reads beside prompts and completions.
        model: A local folder or a hub name.
        preset: The family that the model belongs to, a name in `PRESETS`; None: what the model's own file
            ``stepcredit_prm.json`` says.
        batch_tokens: How many tokens, padding included, go through the model at once.
        dtype: Of the weights, by torch's name ("bfloat16"); None: the checkpoint's own.
        device: Where the model runs ("cuda:1"); None: the current CUDA device if there is one, else the CPU.
        trust_remote_code: Run the modeling code that the checkpoint ships.
        max_length: The most tokens of an input that the model is given; None: as many as it has positions.
        separator: For "trl": what ends every step; None: what the model's file says, else a line break.
        answers: For "universal-prm": show it the rollouts' ``references`` as the reference answers.
        reference_model: For "eurus-implicit", which must have one: the model that the log-ratio is taken to, a local
            folder or a hub name. For the published ones it is Qwen/Qwen2.5-Math-7B-Instruct.
        beta: For "eurus-implicit": the factor of the log-ratio.
        boundary: For "eurus-implicit": where a step ends, "published" or "exact"; see `AnswerLayout`.
        cumulative: For "eurus-implicit": a step's score is the sum over all steps up to it, as published; False: over
            the step alone.

    Raises:
        InputError: An empty model name, an unknown preset or dtype, a number out of its range, or an option that is
            not for this preset.

    Example:
        >>> PRM("Qwen/Qwen2.5-Math-PRM-7B", preset="qwen2.5-math-prm", dtype="bfloat16").preset  # loads nothing
        'qwen2.5-math-prm'

    Reference:
        See `PRESETS`.
    """

    name: ClassVar[str] = "prm"
    unit: ClassVar[str] = "the preset's: for most, the probability that the step is correct"
    requires: ClassVar[frozenset[str]] = frozenset({"steps"})
    model: str
    preset: Name | None = None
    batch_tokens: int = option(16384, at_least=1)
    dtype: str | None = None
    device: str | None = None
    trust_remote_code: bool = False
    max_length: int | None = option(None, at_least=1)
    separator: str | None = None
    answers: bool = False
    reference_model: str | None = None
    beta: float = option(0.001, above=0)
    boundary: Literal["published", "exact"] = "published"
    cumulative: bool = True
    _state: _State = field(init=False, repr=False, compare=False, default_factory=_State)

    def __post_init__(self) -> None:
        """Checks every option; touches neither network nor disk."""
        super().__post_init__()
        if not isinstance(self.model, str) or not self.model.strip():
            raise InputError(f"`model` must be a local folder or a hub name for PRM; got {self.model!r}.")
        torch_dtype(self.dtype)
        try:
            torch.device("cpu" if self.device is None else self.device)
        except (RuntimeError, TypeError):
            raise InputError(f"`device` must be a device of torch for PRM, as 'cuda:1'; got {self.device!r}.") from None
        if self.preset is not None:
            self._check_options(find_preset(self.preset))

    @property
    def unscored(self) -> int:
        """The number of steps, over all calls, that have no score because they end beyond ``max_length`` tokens."""
        return self._state.unscored

    @property
    def reader(self) -> Reader:
        """The loaded model with its layout; the first use loads it.

        Raises:
            InputError: The model cannot be loaded, does not fit the preset or needs its own code.
            MissingExtraError: Transformers is not installed.
        """
        if self._state.reader is None:
            self._state.reader = self._load()
        return self._state.reader

    def score(self, rollouts: Rollouts) -> list[list[ScoredSpan]]:
        """Scores every step that fits.

        Args:
            rollouts: The rollouts to score; must have ``steps``. The prompt is the problem, word for word.

        Returns:
            For each rollout its steps in order, as the exact spans given, with scores in the preset's unit.

        Raises:
            InputError: ``rollouts`` has no steps, or no references where ``answers`` asks for them; the model cannot
                be loaded, does not fit the preset or needs its own code; its numbers are not finite.
            MissingExtraError: Transformers is not installed.

        Degenerate cases:
            - A step of white space alone is not in the list, and the model does not see it.
            - A step whose score is read beyond ``max_length`` tokens is not in the list and counts as `unscored`; the
              steps before it keep their scores.
            - No step with content in any rollout: nothing is loaded.
        """
        if rollouts.steps is None:
            raise InputError("`rollouts` must have steps; got none. Segment the completions first.")
        if self.answers and rollouts.references is None:
            raise InputError("`rollouts` must have references for PRM with answers=True; got none.")
        answers = rollouts.references if self.answers and rollouts.references is not None else [None] * len(rollouts)
        kept = [
            [((start, end), words) for start, end in spans if (words := text[start:end].strip())]
            for text, spans in zip(rollouts.completions, rollouts.steps, strict=True)
        ]
        if not any(kept):
            return [[] for _ in kept]
        layout = self.reader.layout
        owners: list[int] = []
        inputs: list[Input] = []
        for row, (problem, steps, answer) in enumerate(zip(rollouts.prompts, kept, answers, strict=True)):
            if steps:
                fitting = self._fitting(layout.inputs(problem, [words for _, words in steps], answer))
                owners += [row] * len(fitting)
                inputs += fitting
        values: list[list[float]] = [[] for _ in kept]
        for row, found in zip(owners, self.reader.read(inputs), strict=True):
            values[row] += found
        return [
            [ScoredSpan(*span, value) for (span, _), value in zip(steps, row, strict=False)]  # what fits is a beginning
            for steps, row in zip(kept, values, strict=True)
        ]

    def _fitting(self, inputs: Sequence[Input]) -> list[Input]:
        """The inputs cut to the length that the model is given; the marks that are lost are counted."""
        length = self.max_length or self.reader.positions
        cut = [Input(ids[:length], [mark for mark in marks if mark < length], first) for ids, marks, first in inputs]
        self._state.unscored += sum(len(one.marks) for one in inputs) - sum(len(one.marks) for one in cut)
        return [one for one in cut if one.marks]

    def _load(self) -> Reader:
        """The model of this signal, checked against its preset."""
        checkpoint = Checkpoint(self.model, self.dtype, self.device, self.trust_remote_code)
        preset, separator = describe(checkpoint, self.preset, self.separator)
        self._check_options(preset)
        ratio = None
        if self.reference_model is not None:
            place = Checkpoint(self.reference_model, self.dtype, self.device, self.trust_remote_code, "reference_model")
            ratio = Ratio(place, self.beta, self.boundary, self.cumulative)
        reader = open_reader(checkpoint, preset, separator, self.batch_tokens, ratio)
        if self.max_length is not None and self.max_length > reader.positions:
            raise InputError(
                f"`max_length` must be <= the {reader.positions} positions of {self.model!r}; got {self.max_length}."
            )
        return reader

    def _check_options(self, preset: Preset) -> None:
        """Refuses options of other presets, and a preset without an option that it must have."""
        own = frozenset[str]().union(*(known.options for known in PRESETS.values())) - preset.options - {"separator"}
        for one in fields(self):
            value: Any = getattr(self, one.name)
            if one.name in own and value != one.default:
                raise InputError(f"`{one.name}` must be {one.default!r} for the preset {preset.name!r}; got {value!r}.")
        find_separator(preset, self.separator)
        if "reference_model" in preset.options and not (self.reference_model or "").strip():
            raise InputError(
                f"`reference_model` must be a local folder or a hub name for the preset {preset.name!r}; "
                f"got {self.reference_model!r}."
            )
