"""`RolloutBatch`: rollouts as tensors, validated once, in one of two layouts."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from stepcredit.batch import checks
from stepcredit.batch.layout import Layout, Steps
from stepcredit.batch.ragged import list_tensor, mask_rows, pad_lists
from stepcredit.batch.values import check_values
from stepcredit.errors import InputError

ROW_FIELDS = {"rewards": "float", "format_rewards": "float", "format_ok": "bool", "correct": "bool", "row_mask": "bool"}
TOKEN_FIELDS = {
    "response_mask": "bool",
    "process_rewards": "float",
    "step_ids": "int",
    "process_mask": "bool",
    "old_logprobs": "float",
    "ref_logprobs": "float",
    "teacher_logprobs": "float",
    "base_logprobs": "float",
}


@dataclass(frozen=True, eq=False)
class RolloutBatch:
    """B rollouts in groups, with everything that an estimator may read. Validated once; never mutated.

    Token fields are [batch, time], or [tokens] in the packed layout (see `from_packed`). Only response tokens of rows
    that count are ever read: padding, tool output and excluded rows may hold anything, nan included. The tensors are
    the caller's own, not copies: writing to them afterward goes unchecked.

    Attributes:
        response_mask: bool [batch, time]; True = sampled by the policy and trained on. Holes (tool output) and rows
            without a True are allowed.
        group_ids: int [batch]; any labels. Groups may be ragged, unsorted, and split across ranks.
        rewards: float [batch], the outcome reward; None for pure process supervision.
        format_rewards: float [batch].
        format_ok: bool [batch], which responses comply with the format. Default: format_rewards > 0 if all are 0 or 1.
        extra_rewards: dict of name -> float [batch], further reward channels.
        process_rewards: float [batch, time], the process signal; constant within a step when step_ids is given.
        step_ids: int [batch, time], the step of each token: never decreasing along a rollout, -1 = not covered.
            None: the signal is token-level.
        process_mask: bool [batch, time], tokens that the signal covers (default: all response tokens; with step_ids,
            those of a step).
        correct: bool [batch]; default: rewards > 0.
        row_mask: bool [batch], False for rows that count in nothing (padding rows, unscorable, truncated).
        old_logprobs: float [batch, time], nats, under the policy that sampled.
        ref_logprobs: float [batch, time], nats, under the frozen reference.
        teacher_logprobs: float [batch, time], nats, under the teacher.
        base_logprobs: float [batch, time], nats, under the base model of generalized distillation.
        cu_seqlens: int [batch + 1], packed layout only: rollout i's tokens are cu_seqlens[i]:cu_seqlens[i + 1].

    Raises:
        InputError: A field breaks its rule; the message names the field, the rule and the fact.

    Example:
        >>> batch = RolloutBatch(
        ...     torch.tensor([[True, True, True], [True, True, False]]),
        ...     group_ids=torch.tensor([0, 0]),
        ...     rewards=torch.tensor([1.0, 0.0]),
        ... )
        >>> batch
        RolloutBatch(2 rollouts, 5 response tokens, padded; rewards)
    """

    response_mask: Tensor
    group_ids: Tensor
    rewards: Tensor | None = None
    _: KW_ONLY
    format_rewards: Tensor | None = None
    format_ok: Tensor | None = None
    extra_rewards: Mapping[str, Tensor] | None = None
    process_rewards: Tensor | None = None
    step_ids: Tensor | None = None
    process_mask: Tensor | None = None
    correct: Tensor | None = None
    row_mask: Tensor | None = None
    old_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None
    teacher_logprobs: Tensor | None = None
    base_logprobs: Tensor | None = None
    cu_seqlens: Tensor | None = None

    @classmethod
    def from_lists(
        cls,
        response_mask: Sequence[Sequence[bool]] | Sequence[int],
        group_ids: Sequence[int],
        rewards: Sequence[float] | None = None,
        *,
        dtype: torch.dtype = torch.float64,
        **fields: Any,
    ) -> "RolloutBatch":
        """A padded batch from ragged Python lists.

        Args:
            response_mask: One list of bools a rollout, or simply each rollout's number of response tokens.
            group_ids: One integer a rollout.
            rewards: One number a rollout.
            dtype: The dtype of float fields; Python's own precision by default.
            **fields: Any other field, by name; token fields as one list a rollout, each as long as its mask.

        Raises:
            InputError: A list has the wrong length, or a field breaks its rule.

        Example:
            >>> RolloutBatch.from_lists([2, 1], [0, 0], [1.0, 0.0], step_ids=[[0, 1], [0]],
            ...                         process_rewards=[[0.5, 0.1], [0.2]])
            RolloutBatch(2 rollouts, 3 response tokens, padded; rewards, process_rewards, step_ids)
        """
        if not dtype.is_floating_point:
            raise InputError(f"`dtype` must be a floating point dtype; got {dtype}.")
        checks.check_names(fields, cls.__dataclass_fields__)
        masks = mask_rows(response_mask)
        lengths = [len(row) for row in masks]
        fields = {"response_mask": masks, "group_ids": group_ids, "rewards": rewards, **fields}
        tensors: dict[str, Any] = {}
        for name, value in fields.items():
            if value is None:
                continue
            if name in TOKEN_FIELDS:
                tensors[name] = pad_lists(name, TOKEN_FIELDS[name], value, lengths, dtype)
            elif name == "extra_rewards":
                checks.check_extra(value)
                tensors[name] = {
                    key: list_tensor(f"extra_rewards[{key!r}]", "float", x, dtype) for key, x in value.items()
                }
            else:
                tensors[name] = list_tensor(name, ROW_FIELDS.get(name, "int"), value, dtype)
        return cls(**tensors)

    @classmethod
    def from_packed(
        cls,
        values: Mapping[str, Tensor],
        cu_seqlens: Tensor,
        group_ids: Tensor,
        rewards: Tensor | None = None,
        **row_fields: Any,
    ) -> "RolloutBatch":
        """A batch in the packed layout: all rollouts' tokens in one axis, as flash attention takes them.

        Args:
            values: Token fields by name, each [tokens]. Without "response_mask" every token is a response token.
            cu_seqlens: int [batch + 1], rising from 0: rollout i's tokens are cu_seqlens[i]:cu_seqlens[i + 1].
            group_ids: int [batch].
            rewards: float [batch].
            **row_fields: Any other [batch] field, by name.

        Returns:
            A batch whose credit comes out packed too, [tokens].

        Raises:
            InputError: As for the constructor.

        Example:
            >>> RolloutBatch.from_packed({"process_rewards": torch.tensor([0.5, 0.1, 0.2])},
            ...                          torch.tensor([0, 2, 3]), torch.tensor([0, 0]), torch.tensor([1.0, 0.0]))
            RolloutBatch(2 rollouts, 3 response tokens, packed; rewards, process_rewards)
        """
        unknown = sorted(set(values) - set(TOKEN_FIELDS)) if isinstance(values, Mapping) else [type(values).__name__]
        if unknown:
            raise InputError(f"`values` must hold token fields ({', '.join(TOKEN_FIELDS)}); got {unknown[0]!r}.")
        outside = sorted(set(row_fields) & set(TOKEN_FIELDS))
        if outside:
            raise InputError(
                f"`{outside[0]}` must be given in `values`: it is a token field; got it as a [batch] field."
            )
        cu_seqlens = checks.as_tensor("cu_seqlens", cu_seqlens, "int", None)
        mask = values.get("response_mask")
        if mask is None:
            sizes = [checks.as_tensor(name, x, TOKEN_FIELDS[name], None).numel() for name, x in values.items()]
            n_tokens = sizes[0] if sizes else int(cu_seqlens.flatten()[-1:].sum())
            checks.check_cu_seqlens(cu_seqlens, n_tokens)
            mask = torch.ones(n_tokens, dtype=torch.bool, device=cu_seqlens.device)
        fields = {**values, "response_mask": mask, "group_ids": group_ids, "rewards": rewards, **row_fields}
        checks.check_names(fields, cls.__dataclass_fields__)
        return cls(**fields, cu_seqlens=cu_seqlens)

    @classmethod
    def trusted(
        cls, response_mask: Tensor, group_ids: Tensor, rewards: Tensor | None = None, **fields: Any
    ) -> "RolloutBatch":
        """The batch of fields whose values the caller has checked, or has from a batch that did.

        Names, kinds, shapes, devices, and on the CPU ``cu_seqlens``, are held to their rules; no other value is read,
        no GPU waited for. What the constructor would refuse gives credit that means nothing. `replace` checks values.

        The arguments are the constructor's, ``cu_seqlens`` for the packed layout.

        Raises:
            InputError: A name is no field, or a field has the wrong kind, shape or device.
        """
        given = {"response_mask": response_mask, "group_ids": group_ids, "rewards": rewards, **fields}
        checks.check_names(given, cls.__dataclass_fields__)
        batch = cls._unchecked(given)
        batch._check_forms(trusted=True)
        return batch

    @classmethod
    def _unchecked(cls, fields: Mapping[str, Any]) -> "RolloutBatch":
        batch = object.__new__(cls)
        for name in cls.__dataclass_fields__:
            object.__setattr__(batch, name, fields.get(name))
        return batch

    def __post_init__(self) -> None:
        """Converts and checks every field, once."""
        self._check_forms()
        check_values(self)

    def _check_forms(self, *, trusted: bool = False) -> None:
        mask = self._set("response_mask", "bool", None)
        groups = self._set("group_ids", "int", mask.device)
        if self.cu_seqlens is None:
            if mask.ndim != 2:
                raise InputError(f"`response_mask` must have shape [batch, time]; got {list(mask.shape)}.")
            batch = mask.shape[:1]
        else:
            cu_seqlens = self._set("cu_seqlens", "int", mask.device)
            checks.check_shape("response_mask", mask, torch.Size([mask.numel()]), "[tokens]")
            checks.check_cu_seqlens(cu_seqlens, mask.numel(), trusted=trusted)
            batch = torch.Size([cu_seqlens.numel() - 1])
        checks.check_shape("group_ids", groups, batch, "[batch]")
        for names, shape, axes in ((ROW_FIELDS, batch, "[batch]"), (TOKEN_FIELDS, mask.shape, self._token_axes)):
            for name, kind in names.items():
                if getattr(self, name) is not None:
                    checks.check_shape(name, self._set(name, kind, mask.device), shape, axes)
        if self.extra_rewards is not None:
            checks.check_extra(self.extra_rewards)
            extra = {}
            for name, x in self.extra_rewards.items():
                extra[name] = checks.as_tensor(f"extra_rewards[{name!r}]", x, "float", mask.device)
                checks.check_shape(f"extra_rewards[{name!r}]", extra[name], batch, "[batch]")
            object.__setattr__(self, "extra_rewards", extra)

    def _set(self, name: str, kind: str, device: torch.device | None) -> Tensor:
        x = checks.as_tensor(name, getattr(self, name), kind, device)
        object.__setattr__(self, name, x)
        return x

    @cached_property
    def layout(self) -> Layout:
        """Where the response tokens that count stand."""
        return Layout(self.response_mask, self.row_mask, self.cu_seqlens)

    @cached_property
    def covered(self) -> Tensor:
        """Which response tokens the process signal covers, bool [N]."""
        covered = torch.ones_like(self.layout.tokens, dtype=torch.bool)
        if self.step_ids is not None:
            covered &= self.layout.pack(self.step_ids) >= 0
        if self.process_mask is not None:
            covered &= self.layout.pack(self.process_mask)
        return covered

    @cached_property
    def steps(self) -> Steps:
        """The steps of the process signal, on packed tokens."""
        step_ids = None if self.step_ids is None else self.layout.pack(self.step_ids)
        return Steps.of(self.layout.rows, self.covered, step_ids)

    @property
    def dtype(self) -> torch.dtype:
        """What credit comes out as: float64 if any float field is float64, else float32."""
        candidates = [getattr(self, name) for name, kind in (ROW_FIELDS | TOKEN_FIELDS).items() if kind == "float"]
        candidates += list((self.extra_rewards or {}).values())
        wide = any(x is not None and x.dtype == torch.float64 for x in candidates)
        return torch.float64 if wide else torch.float32

    @property
    def present(self) -> list[str]:
        """The names of the optional fields that the batch has."""
        names = [name for name in (*ROW_FIELDS, *TOKEN_FIELDS) if name != "response_mask"]
        extra = [f"extra_rewards[{name!r}]" for name in sorted(self.extra_rewards or {})]
        return [name for name in names if getattr(self, name) is not None] + extra

    def __len__(self) -> int:
        """The number of rollouts, B, with those that do not count."""
        return self.group_ids.numel()

    def __repr__(self) -> str:
        given = ", ".join(self.present)
        layout = "padded" if self.cu_seqlens is None else "packed"
        return f"RolloutBatch({len(self)} rollouts, {self.layout.rows.size} response tokens, {layout}; {given})"

    def replace(self, **changes: Any) -> "RolloutBatch":
        """A copy with some fields changed, validated again.

        Raises:
            InputError: A name is no field, or a field breaks its rule.
        """
        checks.check_names(changes, self.__dataclass_fields__)
        batch = self._unchecked({**{name: getattr(self, name) for name in self.__dataclass_fields__}, **changes})
        if not changes.keys() & {"response_mask", "row_mask", "cu_seqlens"}:
            object.__setattr__(batch, "layout", self.layout)  # the checks below need not ask where tokens stand
        batch.__post_init__()
        return batch

    @property
    def _token_axes(self) -> str:
        return "[batch, time]" if self.cu_seqlens is None else "[tokens]"
