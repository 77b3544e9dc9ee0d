"""What a law is, what a verdict is, and a target on its trial."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from stepcredit.batch import RolloutBatch
from stepcredit.lab.conform.golden import Golden, counted
from stepcredit.lab.conform.target import Target, tolerance
from stepcredit.lab.peers import UnsupportedError

Outcome = Literal["holds", "BROKEN", "exempt", "n.a."]


@dataclass(frozen=True)
class Verdict:
    """What came of one law.

    Attributes:
        law: Its name.
        outcome: "holds", "BROKEN", "exempt" (the target says why it need not hold) or "n.a." (nothing to say of it).
        fact: What was seen: the largest difference and where, or the reason.
        apart: The largest difference where two credits should agree, or where they should differ.
        where: The batch of that difference: name, seed and shape.
        tried: On how many batches.
    """

    law: str
    outcome: Outcome
    fact: str
    apart: float | None = None
    where: str | None = None
    tried: int = 0

    def plain(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Law:
    """A property that credit should have whatever the scheme.

    Attributes:
        name: A word.
        says: The property, in a sentence.
        check: Trial -> verdict; what it raises is a broken law.
        bugs: Real ones that it catches: project and issue, pull request or file, and what happened.
    """

    name: str
    says: str
    check: Callable[["Trial"], Verdict]
    bugs: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Twin:
    """A changed batch, and which of its tokens should have which credit of the batch that it was made of.

    Attributes:
        batch: The changed one.
        read: Its credit -> the numbers to compare.
        expect: The original's credit -> what they should be.
    """

    batch: RolloutBatch
    read: Callable[[Tensor], Tensor]
    expect: Callable[[Tensor], Tensor]


@dataclass(eq=False)
class Trial:
    """A target and the batches it is tried on; the credit of each is computed once.

    Attributes:
        target: What is tried.
        goldens: The batches that have what it requires.
    """

    target: Target
    goldens: list[Golden]
    _credit: dict[int, Tensor | Exception] = field(default_factory=dict)
    _reads: dict[str, bool] = field(default_factory=dict)

    def on(self, batch: RolloutBatch) -> Tensor:
        """The target's credit on a batch, 0 off the mask: that it is, is a law of its own.

        Raises:
            UnsupportedError: What runs the target can never have such a batch.
            Exception: Whatever it raises.
        """
        credit = self.target(batch)
        return torch.where(counted(batch), credit, 0.0) if batch.cu_seqlens is None else credit

    def credit(self, golden: Golden) -> Tensor | Exception:
        """The target's credit on one of the batches, likewise, or what it raised."""
        if id(golden) not in self._credit:
            try:
                self._credit[id(golden)] = self.on(golden.batch)
            except Exception as error:  # noqa: BLE001 - a target's own code may raise anything
                self._credit[id(golden)] = error
        return self._credit[id(golden)]

    def credited(self) -> Iterable[tuple[Golden, Tensor]]:
        """The batches that have credit, with it."""
        for golden in self.goldens:
            found = self.credit(golden)
            if isinstance(found, Tensor):
                yield golden, found

    def answered(self) -> Iterable[tuple[Golden, Tensor]]:
        """Those whose credit is finite, with it: that it is, is a law of its own, and no number agrees with a nan."""
        return ((golden, credit) for golden, credit in self.credited() if bool(credit.isfinite().all()))

    def moved(self, golden: Golden, batch: RolloutBatch) -> Tensor | None:
        """Where and how much a change of the batch changes credit, [batch, time]; None where neither can be had."""
        before = self.credit(golden)
        if not isinstance(before, Tensor) or not bool(before.isfinite().all()):
            return None
        try:
            after = self.on(batch)
        except UnsupportedError:
            return None
        apart = (after - before).abs()
        return torch.where(apart > max(tolerance(before), tolerance(after)), apart, 0.0)

    def reads(self, name: str) -> bool:
        """Whether credit depends on a field, on any batch that has it."""
        if name not in self._reads:
            self._reads[name] = any(
                moved is not None and bool(moved.any())
                for golden in self.goldens
                for moved in [self._without_order(golden, name)]
            )
        return self._reads[name]

    def _without_order(self, golden: Golden, name: str) -> Tensor | None:
        x = getattr(golden.batch, name)
        if not isinstance(x, Tensor):
            return None
        changed = torch.where(golden.batch.response_mask, 0.5 - 2 * x, x) if x.ndim == 2 else 0.5 - 2 * x
        return self.moved(golden, golden.batch.replace(**{name: changed}))


def invariance(name: str, twins: Callable[[Golden], Iterable[Twin]]) -> Callable[[Trial], Verdict]:
    """A check that each twin of each batch gets the credit it should."""

    def check(trial: Trial) -> Verdict:
        apart, where, worst, tried = 0.0, "", 0.0, 0
        reason = "no batch has what it is about"
        for golden, credit in trial.answered():
            for twin in twins(golden):
                try:
                    got = twin.read(trial.on(twin.batch))
                except UnsupportedError as refusal:
                    reason = str(refusal)
                    continue
                want, tried = twin.expect(credit), tried + 1
                difference = greatest(got - want)
                share = difference / max(tolerance(credit), tolerance(want))
                if share > worst:
                    apart, where, worst = difference, str(golden), share
        if not tried:
            return Verdict(name, "n.a.", reason)
        return agreement(name, apart, where, tried, broken=worst > 1)

    return check


def greatest(x: Tensor) -> float:
    """The greatest absolute value, 0 of none; a nan is infinitely great."""
    return float(torch.where(x.isnan(), torch.inf, x.abs()).max()) if x.numel() else 0.0


def agreement(name: str, apart: float, where: str, tried: int, *, broken: bool) -> Verdict:
    """The verdict on numbers that should have agreed."""
    size = "not finite" if apart == float("inf") else f"{apart:.2g} apart"
    fact = f"{size} in {where}" if broken or apart else f"nothing apart in {tried} comparisons"
    return Verdict(name, "BROKEN" if broken else "holds", fact, apart, where or None, tried)


def one_line(error: Exception) -> str:
    """An error as its type and its message, in one line of bounded length."""
    return f"{type(error).__name__}: {' '.join(str(error).split()):.160}"
