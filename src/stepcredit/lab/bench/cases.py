"""Batches of chosen shapes to time the advantage stage on: what is usual, and what breaks code that is tuned to it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from stepcredit.errors import InputError
from stepcredit.ops.segments import Segments

STEP, TURN = 64, 96  # tokens of a step; of a stretch that the policy wrote, and of one that a tool wrote, with holes
PROMPT = 512  # places in front of a rollout, of tensors that hold it with its prompt
LAYOUTS = {
    "padded": "[batch, time]",
    "packed": "the same rollouts, from each one's first to its last place, in one axis",
    "sliced": "padded, cut out of wider tensors as completions are out of prompts and completions",
}
RAGGED = "lengths between T/4 and T"


@dataclass(frozen=True)
class Case:
    """A kind of batch.

    Attributes:
        says: What it is, in a line.
        rows: B, unless a shape is asked for.
        width: T, likewise.
        group: Rollouts a group, unless asked for; 0: all are one group.
    """

    says: str
    rows: int
    width: int
    group: int = 8


CASES: dict[str, Case] = {
    "ragged": Case(RAGGED, 512, 2048),
    "full": Case("every rollout T tokens long", 512, 2048),
    "holes": Case(f"{RAGGED}, every other {TURN} tokens a tool's", 512, 2048),
    "scattered": Case(f"{RAGGED}, every place a response token or not by a coin", 512, 2048),
    "tiny-groups": Case(f"groups of 2; {RAGGED}", 16_384, 64, 2),
    "one-group": Case(f"all rollouts in one group; {RAGGED}", 512, 2048, 0),
    "length-one": Case("every rollout one token long", 1 << 17, 1),
    "long": Case(RAGGED, 16, 65_536),
    "one-left": Case("one response token in the batch, all others masked", 512, 2048),
    "one-row": Case(f"one rollout that counts, all others masked out by row; {RAGGED}", 512, 2048),
}
"""What can be asked for; B and T of each are modest."""


@dataclass(frozen=True)
class Shape:
    """The rollouts of a case, at a size.

    Attributes:
        case: One of `CASES`.
        rows: B.
        width: T; what rows are padded to, however long the longest is.
        group: Rollouts a group; the last group may have fewer.
        dtype: Of float fields.
        step_dtype: Of step ids.
        device: Of all fields.
        seed: Chooses lengths and numbers.

    Raises:
        InputError: A name or number out of its range.
    """

    case: str
    rows: int
    width: int
    group: int
    dtype: torch.dtype = torch.float32
    step_dtype: torch.dtype = torch.int64
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        """Holds names and numbers to their ranges."""
        if self.case not in CASES:
            raise InputError(f"`case` must be one of {', '.join(CASES)}; got {self.case!r}.")
        for name in ("rows", "width", "group"):
            if getattr(self, name) < 1:
                raise InputError(f"`{name}` must be at least 1; got {getattr(self, name)}.")

    @cached_property
    def lengths(self) -> Tensor:
        """The places of each rollout, from its first to its last response token: int64 [B]."""
        if self.case == "length-one":
            return torch.ones(self.rows, dtype=torch.int64)
        if self.case == "full":
            return torch.full((self.rows,), self.width)
        return torch.randint(max(1, self.width // 4), self.width + 1, (self.rows,), generator=self._generator(0))

    @cached_property
    def response_mask(self) -> Tensor:
        """Which places are response tokens, bool [B, T]."""
        place = torch.arange(self.width)
        mask = place < self.lengths[:, None]
        if self.case == "holes":
            mask &= place // TURN % 2 == 0
        if self.case == "scattered":
            mask &= torch.rand(self.rows, self.width, generator=self._generator(6)) < 0.5
        if self.case == "one-left":
            row = self.rows // 2
            mask[:] = False
            mask[row, self.lengths[row] // 2] = True
        return mask.to(self.device)

    @property
    def tokens(self) -> int:
        """Response tokens of the rows that count."""
        mask = self.response_mask
        return int(mask[self.rows // 2].sum() if self.case == "one-row" else mask.sum())

    def field(self, name: str) -> Tensor:
        """A field of the padded batch, by the names of `RolloutBatch`; "step_rewards" is a signal constant in a step.

        Every call draws the same numbers anew: a float tensor is the largest thing there is.
        """
        made: dict[str, Callable[[], Tensor]] = {
            "response_mask": lambda: self.response_mask,
            "group_ids": lambda: torch.arange(self.rows) // self.group,
            "rewards": lambda: (torch.rand(self.rows, generator=self._generator(1)) < 0.5).float(),
            "row_mask": lambda: torch.arange(self.rows) == self.rows // 2,
            "process_rewards": lambda: self._tokens(2).sub_(0.5),
            "step_rewards": self._step_rewards,
            "step_ids": self._step_ids,
            "old_logprobs": lambda: self._tokens(3).add_(1e-6).log_(),
            "ref_logprobs": lambda: self._tokens(4).add_(1e-6).log_(),
        }
        x = made[name]()
        return x.to(self.device, self.dtype if x.is_floating_point() else x.dtype)

    def fields(self, *names: str, layout: str = "padded") -> dict[str, Tensor]:
        """The fields of a `RolloutBatch`, with those that every batch has.

        Args:
            *names: Further ones; "step_rewards" stands for process rewards, with the step ids that they need.
            layout: One of `LAYOUTS`.

        Raises:
            InputError: There is no such layout.
        """
        if layout not in LAYOUTS:
            raise InputError(f"`layout` must be of {', '.join(LAYOUTS)}; got {layout!r}.")
        always = ["response_mask", "group_ids", "rewards", *(["row_mask"] if self.case == "one-row" else [])]
        steps = ["step_ids"] if "step_rewards" in names else []
        found: dict[str, Tensor] = {}
        if layout == "packed":
            rows = Segments.from_lengths(self.lengths)
            found["cu_seqlens"] = rows.offsets.to(self.device)
            inside = (torch.arange(self.width) < self.lengths[:, None]).to(self.device)
        for name in (*always, *names, *steps):
            x = self.field(name)
            key = "process_rewards" if name == "step_rewards" else name
            if x.ndim == 2 and layout == "packed":
                x = x[inside]
            elif x.ndim == 2 and layout == "sliced":
                x = torch.cat([x.new_zeros(self.rows, PROMPT), x], dim=1)[:, PROMPT:]
            found[key] = x
        return found

    def _generator(self, stream: int) -> torch.Generator:
        return torch.Generator().manual_seed(16 * self.seed + stream)

    def _tokens(self, stream: int) -> Tensor:
        return torch.rand(self.rows, self.width, generator=self._generator(stream), dtype=self._drawn)

    @property
    def _drawn(self) -> torch.dtype:
        """What is drawn before it is rounded."""
        return self.dtype if self.dtype in (torch.float32, torch.float64) else torch.float32

    def _step_ids(self) -> Tensor:
        return (torch.arange(self.width) // STEP).to(self.step_dtype).repeat(self.rows, 1)

    def _step_rewards(self) -> Tensor:
        shades = torch.rand(self.rows, 1 + self.width // STEP, generator=self._generator(5), dtype=self._drawn)
        return shades.repeat_interleave(STEP, dim=1)[:, : self.width].contiguous()
