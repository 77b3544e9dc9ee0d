"""Process signals: what says which steps or tokens deserve the credit, and how texts reach the policy's tokens."""

from stepcredit.signals.calculator import Calculator
from stepcredit.signals.log_prob import GOPD, OPD, LogProbSignal, LogRatio
from stepcredit.signals.offsets import token_offsets
from stepcredit.signals.prm import PRM
from stepcredit.signals.protocol import Signal, TensorSignal, TextSignal
from stepcredit.signals.spans import ProjectedScores, Projection, project, project_scores, token_spans

SIGNALS: dict[str, type[Signal]] = {signal.name: signal for signal in (Calculator, PRM, OPD, GOPD, LogRatio)}
"""The built-in signals by the name that configs and the command line use."""

__all__ = [
    "GOPD",
    "OPD",
    "PRM",
    "SIGNALS",
    "Calculator",
    "LogProbSignal",
    "LogRatio",
    "ProjectedScores",
    "Projection",
    "Signal",
    "TensorSignal",
    "TextSignal",
    "project",
    "project_scores",
    "token_offsets",
    "token_spans",
]
