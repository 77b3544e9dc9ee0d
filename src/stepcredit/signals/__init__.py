"""Process signals: what says which steps or tokens deserve the credit."""

from stepcredit.signals.log_prob import GOPD, OPD, LogRatio

__all__ = ["GOPD", "OPD", "LogRatio"]
