"""The advantage functions of others, each behind `RolloutBatch` -> [batch, time].

Those of engines are the installed engines' own code, called as their trainers call it; nothing of a formula is here.
PRIME's recipe is in no package and is written out. What one cannot be given is refused as `UnsupportedError`, never
bent. Each has ``ready(batch)``: the call with its arguments made, to be timed.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import Tensor

from stepcredit.batch import RolloutBatch
from stepcredit.errors import InputError
from stepcredit.lab.peers.unsupported import UnsupportedError

Peer = Callable[[RolloutBatch], Tensor]

PEERS: dict[str, tuple[str, ...]] = {
    "verl": (
        "grpo", "grpo:dense", "grpo_vectorized", "rloo", "rloo_vectorized", "reinforce_plus_plus",
        "reinforce_plus_plus:dense", "reinforce_plus_plus_baseline", "gdpo", "grpo_passk", "opo", "gpg", "gae",
        "gae:dense", "optimal_token_baseline", "optimal_token_baseline:dense", "tir_optimal_token_baseline",
        "tir_optimal_token_baseline:dense",
    ),
    "trl": ("grpo", "grpo_batch", "grpo_none", "gdpo", "gdpo_none", "rloo", "rloo_normalized"),
    "prime": ("rloo",),
}  # fmt: skip
"""The names of each one's estimators; ``:dense`` hands verl the process signal too, as rewards of tokens."""


def peer(name: str) -> Any:
    """An engine's estimator by name, as ``verl:grpo``: callable on a batch, with `exempt` and a docstring.

    Raises:
        InputError: There is no such engine or estimator.
        MissingExtraError: The engine is not installed.
    """
    engine, _, estimator = name.partition(":")
    if estimator not in PEERS.get(engine, ()):
        known = ", ".join(f"{one}:{each}" for one, names in PEERS.items() for each in names)
        raise InputError(f"`peer` must be one of {known}; got {name!r}.")
    return import_module(f"stepcredit.lab.peers.{engine}").estimator(estimator)


__all__ = ["PEERS", "Peer", "UnsupportedError", "peer"]
