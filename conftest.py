"""Docstring examples are collected from every module; what subclasses verl's classes is imported beside verl alone."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("verl") else [
    "src/stepcredit/adapters/verl_cpu/platform.py",
    "src/stepcredit/adapters/verl_cpu/rollout.py",
    "src/stepcredit/runs/verl/loop.py",
    "tests/on_verl/shaped.py",
]  # fmt: skip
