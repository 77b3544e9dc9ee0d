"""Puts a target to all laws."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stepcredit.errors import InputError
from stepcredit.lab.conform.golden import golden_batches
from stepcredit.lab.conform.law import Law, Trial, Verdict, one_line
from stepcredit.lab.conform.laws import ADAPTER_LAWS, LAWS
from stepcredit.lab.conform.target import MalformedError, Target
from stepcredit.lab.peers import UnsupportedError


@dataclass(frozen=True)
class Report:
    """What came of a target's trial.

    Attributes:
        target: Its name, and its options where it has some.
        verdicts: One a law, in order.
        batches: On how many batches it was tried.
        seconds: How long that took.
    """

    target: str
    verdicts: Sequence[Verdict]
    batches: int
    seconds: float

    @property
    def conforms(self) -> bool:
        """Whether no law is broken."""
        return not any(one.outcome == "BROKEN" for one in self.verdicts)

    def plain(self) -> dict[str, Any]:
        """All of it as plain values, with what each law says and the bugs it is for."""
        named = {law.name: (law.says, law.bugs) for law in LAWS} | ADAPTER_LAWS
        rows = []
        for one in self.verdicts:
            says, bugs = named[one.law.split()[0]]
            rows.append({**one.plain(), "says": says, "bugs": list(bugs)})
        return {
            "target": self.target, "conforms": self.conforms, "batches": self.batches, "seconds": self.seconds,
            "laws": rows,
        }  # fmt: skip


def conform(thing: Any, *, laws: Sequence[Law] = LAWS, random_ones: int = 6) -> Report:
    """Tries an estimator, or any function from a `RolloutBatch` to credit, on golden batches and random ones.

    Args:
        thing: An `Estimator` class or instance, or a callable that returns `Credit` or a tensor [batch, time]. Its
            attributes ``requires`` (fields that a batch must have) and ``exempt`` (law -> reason) are read.
        laws: Which.
        random_ones: How many random batches beside the golden ones.

    Returns:
        A verdict a law. What raises breaks the law at hand.

    Raises:
        InputError: What is given cannot be called on a batch, returns no credit of the batch's shape, or is exempt from
            a law that there is none of.

    Example:
        >>> from stepcredit import GRPO
        >>> conform(GRPO()).conforms
        True
        >>> def of_the_batch(batch):
        ...     r = batch.rewards
        ...     return ((r - r.mean()) / (r.std(correction=0) + 1e-6))[:, None] * batch.response_mask
        >>> [one.law for one in conform(of_the_batch).verdicts if one.outcome == "BROKEN"]
        ['zero', 'unread', 'alone', 'leak', 'excluded']
    """
    begun, target = time.perf_counter(), Target.of(thing)
    unknown = sorted(set(target.exempt) - {law.name for law in LAWS})
    if unknown:
        names = ", ".join(law.name for law in LAWS)
        raise InputError(f"`exempt` must name laws of {target.name}; got {unknown[0]!r}. There are {names}.")
    trial = Trial(target, golden_batches(target.requires, random_ones=random_ones))
    if not trial.goldens:
        raise InputError(f"`requires` must name fields of a RolloutBatch; got {sorted(target.requires)}.")
    _first_call(trial)
    verdicts = [verdict_on(law, trial) for law in laws]
    name = target.name if target.estimator is None else repr(target.estimator)
    return Report(name, verdicts, len(list(trial.answered())), time.perf_counter() - begun)


def _first_call(trial: Trial) -> None:
    """One error for what returns no credit at all; what it raises is left to the laws."""
    for golden in trial.goldens:
        found = trial.credit(golden)
        if isinstance(found, MalformedError):
            raise InputError(str(found)) from None


def _nothing_answered(law: str) -> Verdict:
    return Verdict(law, "n.a.", "gives finite credit on no batch")


def verdict_on(law: Law, trial: Trial) -> Verdict:
    """One law on one trial: what raises breaks it, and what the target is exempt from is tried all the same."""
    try:
        found = (
            law.check(trial)
            if law.name in ("answers", "form") or any(trial.answered())
            else _nothing_answered(law.name)
        )
    except UnsupportedError as refusal:
        found = Verdict(law.name, "n.a.", str(refusal))
    except Exception as error:  # noqa: BLE001 - a target's own code may raise anything
        found = Verdict(law.name, "BROKEN", f"raised {one_line(error)}")
    reason = trial.target.exempt.get(law.name)
    if reason is None or found.outcome == "n.a.":
        return found
    seen = "it holds all the same" if found.outcome == "holds" else found.fact
    return Verdict(law.name, "exempt", f"{reason} ({seen})", found.apart, found.where, found.tried)
