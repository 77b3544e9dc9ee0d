"""Process-level credit assignment for reinforcement learning of LLM reasoners.

A trainer samples rollouts; this package turns their outcome rewards, format rewards and any step- or token-level
process signal into per-token advantages; the trainer's clipped surrogate consumes them.
"""

from stepcredit import functional
from stepcredit.batch import Credit, RolloutBatch, Rollouts, ScoredSpan, Span
from stepcredit.errors import InputError, MissingExtraError, StepCreditError, StepCreditWarning
from stepcredit.estimators import (
    ESTIMATORS,
    GDPO,
    GRPO,
    PAPO,
    PASS,
    PRIME,
    RLOO,
    SPRO,
    DrGRPO,
    Estimator,
    GRPOProcess,
    REINFORCEpp,
)
from stepcredit.signals import GOPD, OPD, Guard, LogRatio

__all__ = [
    "ESTIMATORS",
    "GDPO",
    "GOPD",
    "GRPO",
    "OPD",
    "PAPO",
    "PASS",
    "PRIME",
    "RLOO",
    "SPRO",
    "Credit",
    "DrGRPO",
    "Estimator",
    "GRPOProcess",
    "Guard",
    "InputError",
    "LogRatio",
    "MissingExtraError",
    "REINFORCEpp",
    "RolloutBatch",
    "Rollouts",
    "ScoredSpan",
    "Span",
    "StepCreditError",
    "StepCreditWarning",
    "functional",
]
