"""Guards between a learned signal and the policy that would learn to please it."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from stepcredit.batch import RolloutBatch
from stepcredit.errors import InputError
from stepcredit.ops.segments import Segments
from stepcredit.options import Options, option


@dataclass(frozen=True)
class Guard(Options):
    """Changes the scores of a signal's steps so that saying more, or again, what it likes is worth less.

    In this order, each off by default:

    Attributes:
        ceiling: Scores become ``min(score - ceiling, 0)``: steps can lose and none can win; None: off.
        differences: "gain": a step has its score minus the score before it (``start`` before the first), so that a
            response's scores sum to the last one, however many there are. "delta": its score minus the *next* one,
            the last but one keeps its own and the last step has 0, so that what still comes sums to a step's own
            score. "none": off.
        start: The score of having written nothing, for "gain"; 1 for the probability that all is right so far.
        gate: "outcome": no step of a rollout whose outcome is wrong has more than 0; "none": off.

    Example:
        >>> batch = RolloutBatch.from_lists(
        ...     [3], [0], [1.0], process_rewards=[[0.75, 0.75, 0.25]], step_ids=[[0, 0, 1]]
        ... )
        >>> Guard(differences="gain")(batch).process_rewards.tolist()
        [[-0.25, -0.25, -0.5]]

    Reference:
        "ceiling" and "delta": the clipping and delta of Gao et al., arXiv 2410.15115; "gain" is potential-based
        shaping, Ng, Harada and Russell, 1999; the gate is ours.
    """

    ceiling: float | None = option(None)
    differences: Literal["none", "gain", "delta"] = "none"
    start: float = option(1.0)
    gate: Literal["none", "outcome"] = "none"

    def __call__(self, batch: RolloutBatch) -> RolloutBatch:
        """The batch with guarded process rewards; whatever else it holds stays.

        Raises:
            InputError: The batch has no process rewards, or for the gate no outcome.

        Degenerate cases:
            Uncovered tokens take no part: the step before one is the covered one before it.
        """
        if batch.process_rewards is None:
            raise InputError("`process_rewards` must be in the batch for Guard; got None.")
        layout, steps = batch.layout, batch.steps
        scores = layout.pack(batch.process_rewards)[steps.ends].double()
        rows = layout.rows.ids[steps.ends]
        if self.ceiling is not None:
            scores = (scores - self.ceiling).clamp(max=0)
        if self.differences != "none":
            of_row = Segments.from_starts(torch.cat([rows.new_ones(1), rows.diff()])[: len(rows)] != 0)
            scores = gains(scores, of_row, self.start) if self.differences == "gain" else deltas(scores, of_row)
        if self.gate == "outcome":
            scores = torch.where(_correct(batch)[rows], scores, scores.clamp(max=0))
        out = layout.unpack(steps.spread(scores), fill=0.0, out=layout.empty(batch.process_rewards.dtype))
        return batch.replace(process_rewards=out)


def gains(scores: Tensor, rows: Segments, start: float) -> Tensor:
    """Each score minus the one before it in its row, ``start`` before the first.

    Args:
        scores: float [steps].
        rows: Cuts the steps into rollouts.
        start: The score before the first step.

    Returns:
        float [steps]; a row sums to its last score minus ``start``.
    """
    before = torch.cat([scores.new_full((1,), start), scores[:-1]]) if len(scores) else scores
    return scores - torch.where(rows.positions == 0, start, before)


def deltas(scores: Tensor, rows: Segments) -> Tensor:
    """Each score minus the next one in its row; the last but one stays, the last is 0.

    Args:
        scores: float [steps].
        rows: Cuts the steps into rollouts.

    Returns:
        float [steps]; from each step but the last, the rest of its row sums to its score.

    Degenerate cases:
        A row of one step has 0.
    """
    after = torch.cat([scores[1:], scores.new_zeros(1)]) if len(scores) else scores
    left = rows.lengths[rows.ids] - 1 - rows.positions  # steps that still come
    return torch.where(left == 0, 0, scores - torch.where(left == 1, 0, after))


def _correct(batch: RolloutBatch) -> Tensor:
    """Whether each live rollout's outcome is right, bool [live]."""
    live = batch.layout.live
    if batch.correct is not None:
        return batch.correct[live]
    if batch.rewards is None:
        raise InputError("`rewards` must be in the batch for a Guard with gate 'outcome'; got None.")
    return batch.rewards[live] > 0
