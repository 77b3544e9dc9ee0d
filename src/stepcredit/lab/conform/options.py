"""The law of options: none is there for nothing."""

import dataclasses
import random
from typing import Any, Literal, get_args, get_origin, get_type_hints

from stepcredit.batch import RolloutBatch
from stepcredit.errors import InputError
from stepcredit.lab.conform.golden import in_float32
from stepcredit.lab.conform.law import Trial, Verdict
from stepcredit.lab.conform.target import Target
from stepcredit.lab.peers import UnsupportedError


def options(trial: Trial) -> Verdict:
    """Every option changes credit: for some batch and some setting of the others."""
    estimator = trial.target.estimator
    names = [f.name for f in dataclasses.fields(estimator)] if estimator is not None else []
    if not names:
        return Verdict("options", "n.a.", "has no options that could be set")
    hints = get_type_hints(type(estimator))
    fields = {f.name: f for f in dataclasses.fields(estimator)} if estimator is not None else {}
    values = {name: _values(hints[name], getattr(estimator, name), fields[name].metadata) for name in names}
    silent = [name for name in names if values[name] and not _has_effect(trial, name, values)]
    if silent:
        return Verdict("options", "BROKEN", f"`{silent[0]}` changes nothing" + _others(silent), 0.0, None, len(names))
    untried = [name for name in names if not values[name]]
    note = f"; not tried: {', '.join(untried)}" if untried else ""
    return Verdict("options", "holds", f"{len(names) - len(untried)} options change credit{note}", tried=len(names))


def _others(silent: list[str]) -> str:
    return f", nor do {', '.join(silent[1:])}" if len(silent) > 1 else ""


def _values(hint: Any, now: Any, limits: Any) -> list[Any]:
    """Other values of an option, by its annotation; none where that says too little."""
    kinds = get_args(hint) if type(None) in get_args(hint) else (hint,)
    found: list[Any] = [None] if len(kinds) > 1 else []
    for kind in kinds:
        if get_origin(kind) is Literal:
            found += get_args(kind)
        elif kind is bool:
            found += [True, False]
        elif kind is int:
            found += [now + 2, now - 1] if isinstance(now, int) else [1]
        elif kind is float:
            found += [0.3, 0.05, 2.0] if now is None else [now + 0.1, now + 1, now / 2, now - 0.3]
        elif get_origin(kind) is not None and now == {}:
            found += [{"length": 3.0}]
    low, high = limits.get("at_least"), limits.get("at_most")

    def inside(x: Any) -> bool:
        return not isinstance(x, (int, float)) or ((low is None or x >= low) and (high is None or x <= high))

    return [x for x in found if x != now and inside(x)]


def _has_effect(trial: Trial, name: str, values: dict[str, list[Any]], contexts: int = 40) -> bool:
    """Whether an option changes credit, with the others as they are or drawn at random."""
    rng = random.Random(name)  # noqa: S311
    goldens = trial.goldens if len(trial.goldens) < 16 else trial.goldens[:16]
    single = [golden.batch for golden in goldens]
    single += [in_float32(golden.batch) for golden in goldens if golden.batch.step_ids is None]
    for number in range(contexts):
        others = {}
        if number:
            chosen = [one for one in values if one != name and values[one] and rng.random() < 0.5]
            others = {one: rng.choice(values[one]) for one in chosen}
        try:
            now = trial.target.but(**others)
            then = [now.but(**{name: value}) for value in values[name]]
        except InputError:
            continue
        for batch in single if number < 2 else rng.sample(single, 4):
            if name.startswith("w_extra") and not batch.extra_rewards:
                continue
            if _differ(now, then, batch):
                return True
    return False


def _differ(now: Target, then: list[Target], batch: RolloutBatch) -> bool:
    try:
        base = now(batch)
        return any(float((one(batch) - base).abs().max()) > 1e-7 for one in then)
    except (InputError, UnsupportedError):  # a setting that this batch does not allow
        return False
