"""What flows through the house: rollouts as text, the same rollouts as tensors, and the credit that comes out."""

from stepcredit.batch.credit import Credit
from stepcredit.batch.ranges import ScoredSpan, Span
from stepcredit.batch.rollout_batch import RolloutBatch
from stepcredit.batch.rollouts import Rollouts

__all__ = ["Credit", "RolloutBatch", "Rollouts", "ScoredSpan", "Span"]
