"""What an estimator reads: the batch's response tokens and live rollouts, packed, in float64."""

import warnings
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from stepcredit.batch import RolloutBatch
from stepcredit.batch.layout import Steps
from stepcredit.errors import InputError, StepCreditWarning
from stepcredit.ops.groups import Pool, ProcessGroup
from stepcredit.ops.segments import Segments
from stepcredit.shaping.chunks import change_points


@dataclass(frozen=True, eq=False)
class Compacted:
    """A batch without what does not count: R live rollouts, N response tokens, M steps of the process signal.

    Per-rollout tensors are float64 [R], per-token ones float64 [N], per-step ones float64 [M]. The pools reach over
    all ranks of the process group.

    Attributes:
        batch: The validated batch.
        process_group: The ranks that share groups, or None.
        quiet: Give no warnings: they were given.
    """

    batch: RolloutBatch
    process_group: ProcessGroup | None = None
    quiet: bool = False

    @property
    def rows(self) -> Segments:
        """Cuts the N tokens into R rollouts."""
        return self.batch.layout.rows

    @property
    def steps(self) -> Steps:
        """The M steps of the process signal."""
        return self.batch.steps

    @cached_property
    def groups(self) -> Pool:
        """The group of each of the R rollouts."""
        return Pool.of(self.batch.group_ids[self.batch.layout.live], self.process_group)

    @cached_property
    def token_groups(self) -> Pool:
        """The group of each of the N tokens."""
        return self.groups.select(self.rows.ids)

    @cached_property
    def step_groups(self) -> Pool:
        """The group of each of the M steps."""
        return self.groups.select(self.step_rows)

    @cached_property
    def positions(self) -> Pool:
        """Pools of the tokens of one group at one position: as many a group as its longest rollout has tokens."""
        longest = self.groups.max(self.rows.lengths.double()).long()
        return self.token_groups.split(self.rows.positions, longest, count_dtype=torch.int32)

    @cached_property
    def step_rows(self) -> Tensor:
        """int64 [M]: the rollout of each step."""
        return self.rows.ids[self.steps.ends]

    def per_token(self, name: str) -> Tensor:
        """The token field as float64 [N]; the batch must have it."""
        return self.batch.layout.pack(getattr(self.batch, name)).double()

    @cached_property
    def channels(self) -> dict[str, Tensor]:
        """The reward channels that the batch has: "outcome", "format", the extra ones by name; float64 [R] each.

        Extra ones are sorted, so that ranks whose dicts were filled in another order reduce the same things.
        """
        batch = self.batch
        extra = sorted((batch.extra_rewards or {}).items())
        named = {"outcome": batch.rewards, "format": batch.format_rewards, **dict(extra)}
        return {name: self._live(x) for name, x in named.items() if x is not None}

    @cached_property
    def signal(self) -> Tensor:
        """float64 [N]: the process signal, 0 on the tokens that it does not cover."""
        return torch.where(self.batch.covered, self.per_token("process_rewards"), 0.0)

    @cached_property
    def step_signal(self) -> Tensor:
        """float64 [M]: the process signal, each step once."""
        return self.signal[self.steps.ends]

    @property
    def step_ids(self) -> Tensor:
        """int64 [N]: the batch's step ids, -1 where uncovered; 0 everywhere when the signal is token-level."""
        if self.batch.step_ids is None:
            return torch.zeros_like(self.rows.ids)
        return torch.where(self.batch.covered, self.batch.layout.pack(self.batch.step_ids), -1)

    def warn_if_piecewise_constant(self) -> None:
        """Warns when a token-level signal looks like step scores spread over tokens."""
        if self.quiet or self.batch.step_ids is not None or self.rows.size == 0:
            return
        if bool((self.signal == self.signal[0]).all()):
            return
        warn_of_pieces(int(change_points(self.signal, self.rows).sum()) - len(self.rows), self.rows)

    @cached_property
    def correct(self) -> Tensor:
        """Which rollouts are correct, bool [R]; by default those with a positive outcome reward."""
        live = self.batch.layout.live
        if self.batch.correct is not None:
            return self.batch.correct[live]
        if self.batch.rewards is None:
            raise InputError("`correct` must be given when the batch has no `rewards` to read it from; got None.")
        return self.batch.rewards[live] > 0

    @cached_property
    def violates(self) -> Tensor | None:
        """Which rollouts break the format, bool [R]; None if the batch does not say."""
        if self.batch.format_ok is not None:
            return ~self.batch.format_ok[self.batch.layout.live]
        return None if self.batch.format_rewards is None else ~(self.channels["format"] > 0)

    def at_last_token(self, x: Tensor) -> Tensor:
        """[R] -> [N]: each rollout's value on its last token, 0 elsewhere."""
        return x.new_zeros(self.rows.size).index_copy_(0, self.rows.last, x)

    def _live(self, x: Tensor) -> Tensor:
        return x[self.batch.layout.live].double()


def warn_of_pieces(changes: int, rows: Segments) -> None:
    """Warns of a token-level signal that varies, but changes within the rows only so many times."""
    pairs = rows.size - len(rows)
    if changes < pairs / 2:
        warnings.warn(
            f"`process_rewards` changes at {changes} of {pairs} token boundaries, like step scores spread "
            "over tokens, but `step_ids` is None: every token counts as a step of its own. "
            "Pass `step_ids` for step scores.",
            StepCreditWarning,
            stacklevel=5,
        )
