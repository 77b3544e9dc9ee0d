"""Random options for every estimator, and the reference loop that it is held to."""

import random
from collections.abc import Callable
from typing import Any

import references

Options = dict[str, Any]


def _scale(rng: random.Random) -> Options:
    return {
        "std_eps": rng.choice([1e-6, 1e-4, 0.1]),
        "correction": rng.choice([0, 1]),
        "singletons": rng.choice(["zero", "raw"]),
    }


def _weight(rng: random.Random) -> float:
    return rng.choice([1.0, 0.0, 0.5, 2.0, -0.7])


def _sum(rng: random.Random) -> Options:
    return {"w_outcome": _weight(rng), "w_format": _weight(rng), "singletons": rng.choice(["zero", "raw"])}


def _streams(rng: random.Random) -> Options:
    weights = {name: _weight(rng) for name in ("w_process", "w_outcome", "w_format")}
    norms = {"norm": rng.choice(["masked_norm", "abs_max"]), "norm_scope": rng.choice(["process", "all"])}
    return {**weights, **norms, **_scale(rng)}


def _pass(rng: random.Random) -> Options:
    return {
        **_streams(rng),
        "k": rng.choice([0.0, 0.3, 0.7, 1.0, 2.0]),
        "fusion": rng.choice(["separate", "separate", "summed"]),
        "chunking": rng.choice(["value", "value", "token"]),
        "chunk_value": rng.choice(["last", "mean", "sum"]),
        "dl_scope": rng.choice(["fused", "process"]),
        "eta": rng.choice([1e-8, 0.05, 0.5]),
        "min_chunk": rng.choice([1, 1, 2, 3]),
    }


def _spro(rng: random.Random) -> Options:
    return {
        **_scale(rng),
        "beta": rng.choice([0.05, 0.5, 1.0]),
        "attribution": rng.choice(["prefix", "token", "return_to_go"]),
        "column_std": rng.random() < 0.3,
        "clip": rng.choice([None, 0.1]),
    }


SCHEMES: dict[str, tuple[Callable[..., Any], Callable[[random.Random], Options]]] = {
    "grpo": (references.grpo, lambda rng: {**_sum(rng), **_scale(rng)}),
    "dr_grpo": (references.dr_grpo, _sum),
    "rloo": (references.rloo, _sum),
    "reinforce_pp": (
        references.reinforce_pp,
        lambda rng: {
            **_sum(rng),
            "gamma": rng.choice([1.0, 0.9, 0.0]),
            "w_process": _weight(rng),
            "baseline": rng.random() < 0.3,
        },
    ),
    "gdpo": (
        references.gdpo,
        lambda rng: {**_sum(rng), **_scale(rng), "whiten_over": rng.choice(["rollouts", "tokens"])},
    ),
    "papo": (references.papo, lambda rng: {**_scale(rng), "w_process": _weight(rng)}),
    "grpo_process": (
        references.grpo_process,
        lambda rng: {**_streams(rng), "fusion": rng.choice(["process", "pooled", "summed", "separate"])},
    ),
    "pass": (references.pass_, _pass),
    "spro": (references.spro, _spro),
    "prime": (
        references.prime,
        lambda rng: {
            "token_baseline": rng.choice(["code", "paper"]),
            "process_norm": rng.choice(["batch_max", None]),
        },
    ),
}
