"""Process signals: what says which steps or tokens deserve the credit."""

from stepcredit.signals.calculator import Calculator
from stepcredit.signals.log_prob import GOPD, OPD, LogProbSignal, LogRatio
from stepcredit.signals.protocol import Signal, TensorSignal, TextSignal

SIGNALS: dict[str, type[Signal]] = {signal.name: signal for signal in (Calculator, OPD, GOPD, LogRatio)}
"""The built-in signals by the name that configs and the command line use."""

__all__ = ["GOPD", "OPD", "SIGNALS", "Calculator", "LogProbSignal", "LogRatio", "Signal", "TensorSignal", "TextSignal"]
