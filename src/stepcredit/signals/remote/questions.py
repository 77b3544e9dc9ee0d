"""The two things that a served model is asked: scores of steps, and log-probabilities of tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from stepcredit.signals.prm import Preset
from stepcredit.signals.remote import wire
from stepcredit.signals.remote.served import Marked, RemoteError

SUM_SLACK = 0.02  # by which probabilities of two bytes each may miss 1


@dataclass(frozen=True)
class StepScores:
    """A score at each mark, from ``/pooling``.

    Attributes:
        model: The served model.
        preset: How its rows of labels are read.
        separator: What ends every step in its inputs.
        outputs: What the server gives of the labels.
    """

    model: str
    preset: Preset
    separator: str
    outputs: Literal["probabilities", "logits"]
    path = "/pooling"

    @property
    def labels(self) -> int:
        """How many numbers a row has."""
        return self.preset.labels if isinstance(self.preset.labels, int) else len(self.preset.labels)

    @property
    def identity(self) -> Mapping[str, Any]:
        """See `Question.identity`."""
        return {"model": self.model, "kind": "steps", "preset": self.preset.name, "separator": self.separator}

    def body(self, inputs: Sequence[Marked]) -> dict[str, Any]:
        """See `Question.body`."""
        return {
            "model": self.model,
            "input": [list(ids) for ids, _ in inputs],
            "task": "token_classify",
            "encoding_format": "float",
            "use_activation": self.outputs == "probabilities",
            "add_special_tokens": False,
        }

    def read(self, answer: dict[str, Any], inputs: Sequence[Marked], where: str) -> list[list[float]]:
        """See `Question.read`."""
        pooled = wire.pooled_rows(answer, self.model, [ids for ids, _ in inputs], where)
        at_marks = [rows_at_marks(rows, *pair, where) for rows, pair in zip(pooled, inputs, strict=True)]
        rows = [row for some in at_marks for row in some]
        widths = {len(row) for row in rows}
        if widths != {self.labels}:
            raise RemoteError(
                f"`preset` must fit the served model: {self.preset.name!r} has {self.labels} labels; got rows of "
                f"{', '.join(map(str, sorted(widths)))} numbers from {where}."
            )
        scores = iter(self.preset.read(self._logits(torch.tensor(rows, dtype=torch.float64), where)).tolist())
        return [[next(scores) for _ in marks] for _, marks in inputs]

    def _logits(self, rows: torch.Tensor, where: str) -> torch.Tensor:
        """Logits that stand for the rows, [marks, labels]: a probability's are its logarithm, or its log-odds."""
        inside = bool(((rows >= 0) & (rows <= 1)).all())
        off = (rows.sum(-1) - 1).abs()
        if self.outputs == "logits":
            if self.labels > 1 and len(rows) > 1 and inside and bool((off < 1e-5).all()):
                raise RemoteError(
                    f"`outputs` must be what the server gives; got probabilities, not logits, from {where}. "
                    "Leave it at 'probabilities'."
                )
            return rows
        if not inside or (self.labels > 1 and bool((off > SUM_SLACK).any())):
            fact = ", ".join(f"{value:.4g}" for value in rows[int(off.argmax())].tolist())
            raise RemoteError(
                f"`outputs` must be what the server gives; got the row ({fact}), no probabilities, from {where}. "
                "Set it to 'logits' for a server without the activation."
            )
        return rows.logit() if self.labels == 1 else rows.log()


def rows_at_marks(rows: wire.Rows, ids: Sequence[int], marks: Sequence[int], where: str) -> wire.Rows:
    """The rows at the marks of an input, whether the server gave one a token or one a step marker.

    Args:
        rows: What the server gave, one row a token, or one for each token that is the marker. Shape: [rows][labels].
        ids: The input. Shape: [tokens].
        marks: The positions to read, at least one. Shape: [marks].
        where: The URL, for messages.

    Raises:
        RemoteError: Another number of rows.
    """
    if len(rows) == len(ids):
        return [rows[mark] for mark in marks]
    marker = ids[marks[0]]
    places = {position: row for row, position in enumerate(p for p, token in enumerate(ids) if token == marker)}
    if len(rows) != len(places) or not places.keys() >= set(marks):
        raise RemoteError(
            f"`url` must answer with a row for each of {len(ids)} tokens or {len(marks)} steps; got {len(rows)} from "
            f"{where}."
        )
    return [rows[places[mark]] for mark in marks]


@dataclass(frozen=True)
class TokenLogProbs:
    """The log-probability of the token at each mark, from the ``prompt_logprobs`` of ``/v1/completions``.

    Attributes:
        model: The served model.
    """

    model: str
    path = "/v1/completions"

    @property
    def identity(self) -> Mapping[str, Any]:
        """See `Question.identity`."""
        return {"model": self.model, "kind": "logprobs"}

    def body(self, inputs: Sequence[Marked]) -> dict[str, Any]:
        """See `Question.body`; every option that could bend the distribution is set to leave it alone."""
        straight = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
        return {
            "model": self.model,
            "prompt": [list(ids) for ids, _ in inputs],
            "max_tokens": 1,
            "prompt_logprobs": 0,
            "add_special_tokens": False,
            **straight,
        }

    def read(self, answer: dict[str, Any], inputs: Sequence[Marked], where: str) -> list[list[float]]:
        """See `Question.read`."""
        rows = wire.prompt_logprobs(answer, self.model, [ids for ids, _ in inputs], where)
        return [[row[mark - 1] for mark in marks] for row, (_, marks) in zip(rows, inputs, strict=True)]
