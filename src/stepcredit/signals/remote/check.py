"""Tries a served model on a sample, and says whether its numbers can be trusted."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from stepcredit.errors import StepCreditError
from stepcredit.signals.remote.served import Marked
from stepcredit.signals.remote.session import Session

Numbers = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Finding:
    """One thing that was tried.

    Attributes:
        name: What.
        ok: Whether it went well.
        fact: What was found.
    """

    name: str
    ok: bool
    fact: str


@dataclass
class Report:
    """What a served model does.

    Attributes:
        url: Where it is.
        model: Its name.
        longest: The most tokens that it takes, by its own word.
        findings: All that was tried, in order; nothing after the first failure of what the rest builds on.
        inputs: How many inputs the sample has.
        tokens: Their tokens.
        latency: Seconds for one input alone, median.
        tokens_per_second: With all inputs at once, as a run would send them.
    """

    url: str
    model: str
    longest: int | None = None
    findings: list[Finding] = field(default_factory=list)
    inputs: int = 0
    tokens: int = 0
    latency: float | None = None
    tokens_per_second: float | None = None

    @property
    def trusted(self) -> bool:
        """Whether everything went well."""
        return all(finding.ok for finding in self.findings)

    def plain(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {**asdict(self), "trusted": self.trusted}


def sample(size: int) -> list[tuple[str, list[str]]]:
    """Problems of adding up, with their steps: some short, some long, every third with a wrong step.

    Example:
        >>> sample(1)
        [('What is 3+5?', ['3+5 = 8.', 'The answer is 8.'])]
    """
    found = []
    for index in range(size):
        terms = [3 + 7 * index % 11, *((5 + 3 * term + index) % 17 for term in range(1 + 2 * index % 9))]
        total, steps = terms[0], []
        for term in terms[1:]:
            steps.append(f"{total}+{term} = {total + term + (index % 3 == 2)}.")
            total += term
        found.append((f"What is {'+'.join(map(str, terms))}?", [*steps, f"The answer is {total}."]))
    return found


def check(
    session: Session,
    inputs: Sequence[Marked],
    *,
    local: Callable[[Sequence[Marked]], Numbers] | None = None,
    repeats: int = 3,
) -> Report:
    """Asks for the same inputs in several ways, and compares what comes.

    Args:
        session: The model; its cache is not used.
        inputs: What to ask for; each with a mark at least.
        local: What the numbers should be, from a model on this machine.
        repeats: How often the sample is asked for as a whole.

    Returns:
        The findings. Numbers agree when they are within the ``tolerance`` of the session.
    """
    report = Report(session.client.url, session.served.model, inputs=len(inputs))
    report.tokens = sum(len(ids) for ids, _ in inputs)
    session.cache = None
    trials = _Trials(session, inputs, report, repeats, local)
    for name, trial in trials.all():
        try:
            fact, apart = trial()
        except StepCreditError as error:
            report.findings.append(Finding(name, False, str(error)))
            break
        report.findings.append(Finding(name, apart <= session.served.tolerance, fact))
    return report


@dataclass
class _Trials:
    """What is tried, each a method that gives what to say and how far apart numbers were."""

    session: Session
    inputs: Sequence[Marked]
    report: Report
    repeats: int
    compare: Callable[[Sequence[Marked]], Numbers] | None
    rows: Numbers = ()

    def all(self) -> list[tuple[str, Callable[[], tuple[str, float]]]]:
        """The trials by name, in an order in which each builds on those before."""
        plain = [("server", self.alive), ("model", self.listed), ("tokenizer", self.tokenizer)]
        compared = [("answers", self.answers), ("repetition", self.repetition), ("position", self.position)]
        return [*plain, *compared, *([("local model", self.local)] if self.compare else [])]

    def alive(self) -> tuple[str, float]:
        self.session.client.alive()
        return "answers", 0.0

    def listed(self) -> tuple[str, float]:
        self.report.longest = self.session.listed()
        return f"is listed, and takes {self.report.longest or 'an unknown number of'} tokens", 0.0

    def tokenizer(self) -> tuple[str, float]:
        self.session.check_tokenizer()
        return "makes the same ids of a text as the local one", 0.0

    def answers(self) -> tuple[str, float]:
        begun = time.perf_counter()
        self.rows = self.session.numbers(self.inputs)
        seconds = time.perf_counter() - begun
        values = [value for row in self.rows for value in row]
        span = f"{min(values):.4g} to {max(values):.4g}"
        return f"{len(values)} finite numbers from {span}, first in {seconds:.2f} s", 0.0

    def repetition(self) -> tuple[str, float]:
        seconds, apart = [], []
        for _ in range(self.repeats):
            begun = time.perf_counter()
            again = self.session.numbers(self.inputs)
            seconds.append(time.perf_counter() - begun)
            apart.append(_apart(self.rows, again))
        self.report.tokens_per_second = self.report.tokens / min(seconds)
        return f"{max(apart):.2g} apart in {self.repeats} repetitions", max(apart)

    def position(self) -> tuple[str, float]:
        seconds: list[float] = []
        alone: list[Sequence[float]] = []
        for one in self.inputs:
            begun = time.perf_counter()
            alone += self.session.ask([one])
            seconds.append(time.perf_counter() - begun)
        self.report.latency = median(seconds)
        backward = self.session.ask(list(reversed(self.inputs)))[::-1]
        apart = max(_apart(self.rows, alone), _apart(self.rows, backward))
        return f"{apart:.2g} apart between inputs alone, together and in reverse", apart

    def local(self) -> tuple[str, float]:
        apart = _apart(self.rows, self.compare(self.inputs)) if self.compare else 0.0
        return f"{apart:.2g} apart from the model on this machine", apart


def _apart(one: Numbers, other: Numbers) -> float:
    pairs = [pair for row, same in zip(one, other, strict=True) for pair in zip(row, same, strict=True)]
    return max((abs(x - y) for x, y in pairs), default=0.0)
