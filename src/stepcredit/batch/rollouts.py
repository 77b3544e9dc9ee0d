"""Rollouts as text and token ids: what tasks grade and signals score, before anything is a tensor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from operator import le
from typing import Any

from stepcredit.batch.ranges import Ranges, Span
from stepcredit.errors import InputError


@dataclass(frozen=True, eq=False)
class Rollouts:
    """A batch of rollouts as text: B prompts with one completion each, in groups.

    Every field is a sequence of length B. Nested sequences are ragged, one entry a token (or span) of that
    rollout's completion. All character positions count Python characters of the exact completion text.

    Attributes:
        prompts: The prompt texts.
        completions: The completion texts, byte for byte as sampled (tool output included, where there is any).
        group_ids: An integer label a rollout; rollouts that share a label answer the same prompt.
        token_ids: The policy's sampled token ids.
        offsets: For each token its characters ``(start, end)`` in the completion; ``start == end`` for a token
            without characters (end of sequence, say). In order: neither bound ever decreases.
        response_mask: For each token, True where the policy sampled it and trains on it (False: tool output).
        references: The gold answer a rollout, in whatever form its task grades against.
        steps: The reasoning steps of each completion, as character spans in order (what a text signal scores).
        turns: The policy's turns of each completion, as character spans in order (None: one turn, all of it).
        old_logprobs: For each token its log-probability under the policy that sampled it, in nats.
        ref_logprobs: The same under the frozen reference policy.
        teacher_logprobs: The same under a distillation teacher.
        base_logprobs: The same under the base model of generalized distillation.
        prompt_ids: The token ids that the policy was given, its chat template's included. Ragged, any lengths.
        messages: The chat messages that the prompt was rendered from; None for a prompt that is plain text.

    Raises:
        InputError: A field's length is not B, a ragged row's length is not its rollout's token count, or a span
            is out of its completion or out of order.

    Example:
        >>> rollouts = Rollouts(["1+1="], ["2"], group_ids=[0], offsets=[[(0, 1)]])
        >>> len(rollouts), rollouts.token_counts
        (1, [1])
    """

    prompts: Sequence[str]
    completions: Sequence[str]
    group_ids: Sequence[int]
    token_ids: Sequence[Sequence[int]] | None = None
    offsets: Sequence[Sequence[tuple[int, int]]] | None = None
    response_mask: Sequence[Sequence[bool]] | None = None
    references: Sequence[str] | None = None
    steps: Sequence[Sequence[Span]] | None = None
    turns: Sequence[Sequence[Span]] | None = None
    old_logprobs: Sequence[Sequence[float]] | None = None
    ref_logprobs: Sequence[Sequence[float]] | None = None
    teacher_logprobs: Sequence[Sequence[float]] | None = None
    base_logprobs: Sequence[Sequence[float]] | None = None
    prompt_ids: Sequence[Sequence[int]] | None = None
    messages: Sequence[Sequence[Mapping[str, Any]] | None] | None = None

    def __post_init__(self) -> None:
        """Checks every length and span once."""
        for name, kind in (("prompts", str), ("completions", str), ("group_ids", int)):
            values = getattr(self, name)
            if isinstance(values, str):
                raise InputError(
                    f"`{name}` must be a sequence with one entry a rollout; got one {type(values).__name__}."
                )
            for row, value in enumerate(values) if {*map(type, values)} - {kind} else ():
                if not isinstance(value, kind) or isinstance(value, bool):
                    raise InputError(f"`{name}` must hold {kind.__name__}; got {value!r:.40} in row {row}.")
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and len(value) != len(self.prompts):
                raise InputError(
                    f"`{field.name}` must have one entry a rollout; got {len(value)} for {len(self.prompts)} prompts."
                )
        counts = self.token_counts or []
        for name in _TOKEN_FIELDS:
            lengths = [*map(len, getattr(self, name) or ())]
            if lengths and lengths != counts:
                row = next(row for row, n in enumerate(lengths) if n != counts[row])
                raise InputError(
                    f"`{name}` must have one entry a token; got {lengths[row]} for {counts[row]} tokens, row {row}."
                )
        for name in ("offsets", "steps", "turns"):
            for row, spans in enumerate(getattr(self, name) or ()):
                check_spans(name, row, spans, self.completions[row])

    def __len__(self) -> int:
        """The number of rollouts, B."""
        return len(self.prompts)

    def __repr__(self) -> str:
        given = [field.name for field in fields(self)[3:] if getattr(self, field.name) is not None]
        return f"Rollouts({len(self)} rollouts in {len(set(self.group_ids))} groups; {', '.join(given)})"

    @property
    def token_counts(self) -> list[int] | None:
        """The number of tokens of each completion, from the first token field present; None without any."""
        for name in _TOKEN_FIELDS:
            rows = getattr(self, name)
            if rows is not None:
                return [len(row) for row in rows]
        return None

    def replace(self, **changes: Any) -> "Rollouts":
        """A copy with some fields changed, checked again."""
        return replace(self, **changes)


_TOKEN_FIELDS = (
    "token_ids", "offsets", "response_mask", "old_logprobs", "ref_logprobs", "teacher_logprobs", "base_logprobs",
)  # fmt: skip


def check_spans(name: str, row: int, spans: Sequence[tuple[int, int]], text: str) -> None:
    """Refuses spans that leave the text or run backward.

    Token offsets may overlap (two tokens that share one multi-byte character); steps and turns may not.

    Raises:
        InputError: Names the field, the row, the span and what is wrong with it.
    """
    if _in_order(spans, len(text)):
        return
    previous = (0, 0)
    for span in spans:
        try:
            start, end = span[0], span[1]
        except (TypeError, IndexError):
            start = end = None  # type: ignore[assignment]
        if type(start) is not int or type(end) is not int:
            raise InputError(f"`{name}` must hold (start, end) pairs of integers; got {span!r:.40} in row {row}.")
        if not 0 <= start <= end <= len(text):
            raise InputError(
                f"`{name}` must lie inside the completion; got ({start}, {end}) of {len(text)} characters, row {row}."
            )
        overlap = start < previous[0] or end < previous[1] if name == "offsets" else start < previous[1]
        if overlap:
            raise InputError(
                f"`{name}` must be in order; got ({start}, {end}) after ({previous[0]}, {previous[1]}) in row {row}."
            )
        previous = (start, end)


def _in_order(spans: Sequence[tuple[int, int]], length: int) -> bool:
    """Whether spans are surely right: pairs of integers that never decrease. What is left is looked at one by one."""
    if type(spans) is Ranges:
        return int(spans.bounds[-1]) <= length
    try:
        starts, ends = zip(*spans, strict=True) if spans else ((), ())
    except (TypeError, ValueError):
        return False
    if not starts:
        return True
    whole = {*map(type, starts), *map(type, ends)} == {int} and starts[0] >= 0 and ends[-1] <= length
    return whole and all(map(le, starts, ends)) and all(map(le, ends, starts[1:]))


def prompt_text(prompt: Any) -> str:
    """A prompt's own words: the text itself, or the last message of a user.

    Example:
        >>> prompt_text([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}])
        '1+1?'
    """
    if isinstance(prompt, str):
        return prompt
    contents = [message.get("content") for message in prompt if message.get("role") == "user"] or [""]
    parts = contents[-1] if isinstance(contents[-1], list) else [{"text": contents[-1] or ""}]
    return "".join(str(part.get("text", "")) for part in parts)
