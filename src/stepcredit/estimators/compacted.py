"""What an estimator reads: the batch's response tokens and live rollouts, packed, in float64."""

import warnings
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from stepcredit.batch.layout import Steps
from stepcredit.errors import StepCreditWarning
from stepcredit.estimators.rollout_view import RolloutView
from stepcredit.ops.groups import Pool
from stepcredit.ops.segments import Segments
from stepcredit.shaping.chunks import change_points


@dataclass(frozen=True, eq=False)
class Compacted(RolloutView):
    """A batch without what does not count: R live rollouts, N response tokens, M steps of the process signal.

    Per-rollout tensors are float64 [R], per-token ones float64 [N], per-step ones float64 [M]. The pools reach over
    all ranks of the process group.

    Attributes:
        batch: The validated batch.
        process_group: The ranks that share groups, or None.
        quiet: Give no warnings: they were given.
    """

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
        return Pool.of(self.of_rollouts(self.batch.group_ids), self.process_group)

    def of_rollouts(self, x: Tensor) -> Tensor:
        """[batch] -> [R]: the rows that count."""
        return x[self.batch.layout.live]

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
        changes = int(change_points(self.signal, self.rows).sum()) - len(self.rows)
        warn_of_pieces(changes, self.rows.size - len(self.rows))

    def at_last_token(self, x: Tensor) -> Tensor:
        """[R] -> [N]: each rollout's value on its last token, 0 elsewhere."""
        return x.new_zeros(self.rows.size).index_copy_(0, self.rows.last, x)


def warn_of_pieces(changes: int, pairs: int, stacklevel: int = 5) -> None:
    """Warns of a token-level signal that varies, but changes only so many times at so many boundaries within rows.

    Args:
        changes: How often.
        pairs: At how many boundaries.
        stacklevel: How many calls away whoever called the estimator is.
    """
    if changes < pairs / 2:
        warnings.warn(
            f"`process_rewards` changes at {changes} of {pairs} token boundaries, like step scores spread "
            "over tokens, but `step_ids` is None: every token counts as a step of its own. "
            "Pass `step_ids` for step scores.",
            StepCreditWarning,
            stacklevel=stacklevel,
        )
