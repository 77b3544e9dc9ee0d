"""Process signals: what says which steps or tokens deserve the credit, and how texts reach the policy's tokens."""

from stepcredit.signals.calculator import Calculator
from stepcredit.signals.causal import sequence_logprobs
from stepcredit.signals.causal_lm import CausalLM
from stepcredit.signals.guard import Guard
from stepcredit.signals.implicit import ImplicitPRM
from stepcredit.signals.log_prob import GOPD, OPD, LogProbSignal, LogRatio
from stepcredit.signals.offsets import token_offsets
from stepcredit.signals.prm import PRM
from stepcredit.signals.prm.refreshed import RefreshedPRM
from stepcredit.signals.protocol import LearningSignal, LogProbSource, Scores, Signal, TensorSignal
from stepcredit.signals.remote import RemotePRM, RemoteTeacher
from stepcredit.signals.scored_spans import ProjectedScores, project_scores
from stepcredit.signals.scores import are_token_values, place_scores, place_steps
from stepcredit.signals.scripted import Scripted
from stepcredit.signals.spans import Projection, project, token_spans

SIGNALS: dict[str, type[Signal]] = {
    signal.name: signal
    for signal in (Scripted, Calculator, PRM, RefreshedPRM, RemotePRM, ImplicitPRM, OPD, GOPD, LogRatio)
}
"""The built-in signals by the name that configs and the command line use."""

__all__ = [
    "GOPD",
    "OPD",
    "PRM",
    "SIGNALS",
    "Calculator",
    "CausalLM",
    "Guard",
    "ImplicitPRM",
    "LearningSignal",
    "LogProbSignal",
    "LogProbSource",
    "LogRatio",
    "ProjectedScores",
    "Projection",
    "RefreshedPRM",
    "RemotePRM",
    "RemoteTeacher",
    "Scores",
    "Scripted",
    "Signal",
    "TensorSignal",
    "are_token_values",
    "place_scores",
    "place_steps",
    "project",
    "project_scores",
    "sequence_logprobs",
    "token_offsets",
    "token_spans",
]
