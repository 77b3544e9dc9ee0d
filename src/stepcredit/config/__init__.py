"""From names and ``option=value`` texts to frozen objects."""

from stepcredit.config.build import build_estimator, build_signal, build_task, parse_overrides

__all__ = ["build_estimator", "build_signal", "build_task", "parse_overrides"]
