"""Per-token credit for a file of rollouts: texts and rewards in, tokens with their credit out."""

import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stepcredit.batch import Credit, RolloutBatch, Rollouts
from stepcredit.errors import InputError, MissingExtraError, StepCreditWarning
from stepcredit.estimators import Estimator
from stepcredit.lab.rollout_files import RolloutFile
from stepcredit.signals import Signal, TensorSignal, are_token_values
from stepcredit.signals.scored_spans import project_scores
from stepcredit.tasks.segmentation import Scheme, segment

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
        rollouts, columns = self.file.rollouts, self.file.columns
        advantages, segment_ids, terms = self.credit.advantages, self.credit.segment_ids(), self.credit.terms()
        ends = [0] if self.batch.cu_seqlens is None else self.batch.cu_seqlens.tolist()
        live, table = set(self.batch.layout.live.tolist()), []
        for i in range(len(self.batch)) if only is None else only:
            tokens = slice(ends[i], ends[i + 1])
            table.append(
                {
                    "row": i + 1,
                    "group": self.file.groups[i],
                    "prompt": rollouts.prompts[i],
                    "completion": rollouts.completions[i],
                    "reward": columns["rewards"][i] if "rewards" in columns else None,
                    "counted": i in live,
                    "estimator": self.name,
                    "offsets": [list(span) for span in (rollouts.offsets or [])[i]],
                    "advantages": advantages[tokens].tolist(),
                    "segment_ids": segment_ids[tokens].tolist(),
                    "terms": {name: term[tokens].tolist() for name, term in terms.items()},
                }
            )
        return table


def score_rollouts(
    file: RolloutFile,
    estimators: Sequence[Estimator],
    *,
    signal: Signal | None = None,
    by: Scheme = "lines",
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
    tokens: dict[str, Any] = {name: getattr(rollouts, name) for name in _TOKEN_FIELDS}
    counts: dict[str, int] = {}
    notes = _notes(file, signal)
    scores: Any = file.scores
    if signal is not None and not isinstance(signal, TensorSignal):
        if rollouts.steps is None:
            rollouts = rollouts.replace(steps=[segment(text, by, marker=marker) for text in rollouts.completions])
        scores = signal.score(rollouts)
    if scores is not None and are_token_values(scores):
        tokens["process_rewards"] = scores
    elif scores is not None and not isinstance(signal, TensorSignal):
        projected = project_scores(rollouts, scores)
        tokens |= {"process_rewards": projected.process_rewards, "step_ids": projected.step_ids}
        counts = {"uncovered_tokens": projected.uncovered_count, "steps_without_tokens": projected.empty_span_count}
    batch = _packed(rollouts, tokens, file.columns)
    if isinstance(signal, TensorSignal):
        batch = signal(batch)
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
    if name_or_path.startswith((".", "~", "/")) and not Path(name_or_path).expanduser().is_dir():
        raise InputError(
            f"`--tokenizer` must be a hub name or a local folder; got {name_or_path!r}, which is no folder."
        )
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


def _notes(file: RolloutFile, signal: Signal | None) -> list[str]:
    """What looks like a mistake in the file but need not be one."""
    notes = []
    if signal is not None and file.scores is not None:
        notes.append(f"the file's step scores are not read: the signal is {signal.name}")
    prompts: dict[str, set[str]] = {}
    for group, prompt in zip(file.groups, file.rollouts.prompts, strict=True):
        prompts.setdefault(group, set()).add(prompt)
    mixed = [group for group, found in prompts.items() if len(found) > 1]
    if mixed:
        notes.append(f"{len(mixed)} groups hold different prompts, {mixed[0]!r:.40} first: their rollouts are compared")
    logprobs = [x for name in _TOKEN_FIELDS[1:] for row in getattr(file.rollouts, name) or () for x in row if x > 0]
    if logprobs:
        notes.append(f"{len(logprobs)} log-probabilities are positive, {logprobs[0]} first: was a minus sign lost?")
    return notes


_TOKEN_FIELDS = ("response_mask", "old_logprobs", "ref_logprobs", "teacher_logprobs", "base_logprobs")


def _packed(rollouts: Rollouts, tokens: dict[str, Any], columns: dict[str, Any]) -> RolloutBatch:
    """The batch, packed: one very long completion among many short ones costs its own tokens only."""
    values = {name: _flat(name, chain.from_iterable(rows)) for name, rows in tokens.items() if rows is not None}
    ends = torch.tensor([0, *accumulate(len(row) for row in rollouts.offsets or ())])
    values.setdefault("response_mask", torch.ones(int(ends[-1]), dtype=torch.bool))
    fields: dict[str, Any] = {name: _flat(name, x) for name, x in columns.items() if name != "extra_rewards"}
    if "extra_rewards" in columns:
        fields["extra_rewards"] = {name: _flat("", x) for name, x in columns["extra_rewards"].items()}
    return RolloutBatch.from_packed(values, ends, torch.tensor(list(rollouts.group_ids)), **fields)


def _flat(name: str, values: Iterable[Any]) -> Tensor:
    kinds = {"response_mask": torch.bool, "format_ok": torch.bool, "correct": torch.bool, "row_mask": torch.bool}
    return torch.tensor(list(values), dtype=torch.int64 if name == "step_ids" else kinds.get(name, torch.float64))


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
