"""Per-token credit for a file of rollouts: texts and rewards in, tokens with their credit out."""

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stepcredit.batch import Credit, RolloutBatch, Rollouts
from stepcredit.errors import InputError, MissingExtraError, StepCreditWarning
from stepcredit.estimators import Estimator
from stepcredit.lab.rollout_files import RolloutFile
from stepcredit.signals import Signal, TextSignal
from stepcredit.signals.spans import project_scores
from stepcredit.tasks.segmentation import segment

Offsets = list[tuple[int, int]]
Tokenize = Callable[[str], Offsets]


@dataclass(frozen=True)
class Scored:
    """Credit for a file of rollouts.

    Attributes:
        file: What was read, with token offsets filled in.
        batch: The same as tensors.
        estimator: The scheme.
        credit: Its result.
        counts: What was left out or came to nothing, by name.
        notes: What the user should know: data that was not read, warnings of the scheme; one line each.
    """

    file: RolloutFile
    batch: RolloutBatch
    estimator: Estimator
    credit: Credit
    counts: dict[str, int]
    notes: list[str]

    @property
    def name(self) -> str:
        """The scheme's `type`."""
        return self.estimator.type

    def rows(self, only: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """One row a rollout (or for those in ``only``): its texts, and per token the characters, credit and terms."""
        places = list(range(len(self.batch))) if only is None else list(only)
        advantages, segments = self.credit.advantages[places].tolist(), self.credit.segment_ids()[places].tolist()
        terms = {name: term[places].tolist() for name, term in self.credit.terms().items()}
        rollouts, table = self.file.rollouts, []
        for place, i in enumerate(places):
            offsets = (rollouts.offsets or [])[i]
            n = len(offsets)
            table.append(
                {
                    "row": i + 1,
                    "group": self.file.groups[i],
                    "prompt": rollouts.prompts[i],
                    "completion": rollouts.completions[i],
                    "reward": self.file.columns["rewards"][i] if "rewards" in self.file.columns else None,
                    "counted": self.file.columns["row_mask"][i] if "row_mask" in self.file.columns else True,
                    "estimator": self.name,
                    "offsets": [list(span) for span in offsets],
                    "advantages": advantages[place][:n],
                    "segment_ids": segments[place][:n],
                    "terms": {name: term[place][:n] for name, term in terms.items()},
                }
            )
        return table


def score_rollouts(
    file: RolloutFile,
    estimators: Sequence[Estimator],
    *,
    signal: Signal | None = None,
    by: str = "lines",
    marker: str | None = None,
    tokenize: Tokenize | None = None,
) -> list[Scored]:
    """Assigns credit to a file of rollouts under each estimator.

    Args:
        file: What `read_rollouts` gave.
        estimators: The schemes.
        signal: The process signal; without one, the file's own scored steps if it has any.
        by: How a text signal's steps are cut where the file has none: a scheme of `stepcredit.tasks.segmentation`.
        marker: What ends a step, with ``by="marker"``.
        tokenize: Text -> character offsets of its tokens, where the file has none; words by default.

    Returns:
        One result an estimator, over one batch.

    Raises:
        InputError: A signal or an estimator needs what the file does not have.
    """
    rollouts = file.rollouts
    if rollouts.offsets is None:
        rollouts = rollouts.replace(offsets=[(tokenize or words)(text) for text in rollouts.completions])
    fields: dict[str, Any] = dict(file.columns)
    for name in ("old_logprobs", "ref_logprobs", "teacher_logprobs", "base_logprobs"):
        fields[name] = getattr(rollouts, name)
    counts: dict[str, int] = {}
    scores: Any = file.scores
    if isinstance(signal, TextSignal):
        if rollouts.steps is None:
            rollouts = rollouts.replace(steps=[segment(text, by, marker=marker) for text in rollouts.completions])  # type: ignore[arg-type]
        scores = signal.score(rollouts)
    if scores is not None and (signal is None or isinstance(signal, TextSignal)):
        projected = project_scores(rollouts, scores)
        fields |= {"process_rewards": projected.process_rewards, "step_ids": projected.step_ids}
        counts = {"uncovered_tokens": projected.uncovered_count, "steps_without_tokens": projected.empty_span_count}
    batch = RolloutBatch.from_lists(_masks(rollouts), rollouts.group_ids, **fields)
    notes = []
    if signal is not None and not isinstance(signal, TextSignal):
        batch = signal(batch)
        if file.scores is not None:
            notes.append(f"the file's step scores are not read: signal {signal.name} scores tokens")
    scored_file = replace(file, rollouts=rollouts)
    return [_score(scored_file, batch, estimator, counts, notes) for estimator in estimators]


def words(text: str) -> Offsets:
    """Tokens without a tokenizer: each word or mark with the white space before it; trailing white space is one more.

    Example:
        >>> words("a bc, ")
        [(0, 1), (1, 4), (4, 5), (5, 6)]
    """
    return [match.span() for match in re.finditer(r"\s*(?:\w+|[^\w\s])|\s+$", text)]


def load_tokenizer(name_or_path: str) -> Tokenize:
    """The offsets of a Hugging Face tokenizer, by hub name or local folder.

    Raises:
        MissingExtraError: Transformers is not installed.
        InputError: There is no such tokenizer, or it cannot give offsets.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise MissingExtraError("transformers", "data", "load a tokenizer") from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"`--tokenizer` must be a hub name or a local folder; got {name_or_path!r}: {_line(error)}"
        ) from None
    if not tokenizer.is_fast:
        raise InputError(
            f"`--tokenizer` must be a fast tokenizer, which knows offsets; got {type(tokenizer).__name__}."
        )

    def tokenize(text: str) -> Offsets:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return [(start, end) for start, end in encoded["offset_mapping"]]

    return tokenize


def _masks(rollouts: Rollouts) -> list[list[bool]]:
    if rollouts.response_mask is not None:
        return [list(row) for row in rollouts.response_mask]
    return [[True] * len(row) for row in rollouts.offsets or ()]


def _score(
    file: RolloutFile, batch: RolloutBatch, estimator: Estimator, counts: dict[str, int], notes: list[str]
) -> Scored:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", StepCreditWarning)
        credit = estimator(batch)
    notes = [*notes, *(str(warning.message) for warning in caught)]
    return Scored(file, batch, estimator, credit, {**credit.counts(), **counts}, notes)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
