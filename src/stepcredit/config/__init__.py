"""From names and ``option=value`` texts to frozen objects."""

from stepcredit.config.build import build_estimator, build_signal, build_task, hint, parse_overrides
from stepcredit.config.run import RunConfig, dump_config, load_config, parse_config
from stepcredit.config.tables import recipes

__all__ = [
    "RunConfig",
    "build_estimator",
    "build_signal",
    "build_task",
    "dump_config",
    "hint",
    "load_config",
    "parse_config",
    "parse_overrides",
    "recipes",
]
