"""Where the time of a training step goes: seams of TRL's trainer and of ours, timed, each second in one part alone."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from threading import get_ident
from typing import Any

OVERRIDES = "ours/overrides"
"""The part of methods that stand around TRL's own."""

Part = str | Callable[..., str]
Seam = tuple[Any, str, Part]


@dataclass
class StepTimes:
    """What one optimizer step took.

    Attributes:
        seconds: By the wall clock.
        cpu_seconds: Of this process, all its threads.
        parts: Wall seconds by part; they sum to ``seconds``.
        cpu_parts: CPU seconds by part.
        seams: How often a part was entered, which is what the clock itself costs.
        tokens: Completion tokens of the batch of rollouts that the step began with; 0 where it used an older one.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    parts: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    cpu_parts: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    seams: int = 0
    tokens: int = 0


class StepClock:
    """Tells every moment between two starts of optimizer steps to the innermost part that is entered then.

    Args:
        base: The part of what is in no other.

    Attributes:
        steps: The finished steps.
        roles: The trainer's models, by identity.
    """

    def __init__(self, base: str) -> None:
        self.base, self.steps, self.roles = base, list[StepTimes](), dict[int, str]()
        self.pause: Callable[[], None] | None = None  # called between two steps, outside of both
        self._open: list[str] = []
        self._step: StepTimes | None = None
        self._since = self._cpu_since = self._begun = self._cpu_begun = 0.0

    @property
    def asked_by_us(self) -> bool:
        """Whether what runs now was called by a part of ours; an override that TRL's method runs in asks nothing."""
        return any(part.startswith("ours/") and part != OVERRIDES for part in self._open)

    @property
    def is_closed(self) -> bool:
        """Whether no further part is entered: a sampler's forward passes are generation, a model is one whole."""
        return bool(self._open) and self._open[-1].startswith(("generation", "forward/"))

    def cut(self) -> None:
        """Ends a step, pauses and begins the next."""
        self.end()
        if self.pause is not None:
            self.pause()
        self._step = StepTimes()
        self._since = self._begun = time.perf_counter()
        self._cpu_since = self._cpu_begun = time.process_time()

    def end(self) -> None:
        """Ends a step, if one has begun."""
        if self._step is not None:
            self._tell()
            self._step.seconds, self._step.cpu_seconds = self._since - self._begun, self._cpu_since - self._cpu_begun
            self.steps.append(self._step)
        self._step = None

    def enter(self, part: str) -> None:
        """From here on time is the part's."""
        self._tell()
        self._open.append(part)
        if self._step is not None:
            self._step.seams += 1

    def leave(self) -> None:
        """From here on time is again that of the part before."""
        self._tell()
        self._open.pop()

    def saw(self, tokens: int) -> None:
        """The completion tokens of a batch of rollouts."""
        if self._step is not None:
            self._step.tokens += tokens

    def _tell(self) -> None:
        now, cpu = time.perf_counter(), time.process_time()
        if self._step is not None:
            part = self._open[-1] if self._open else self.base
            self._step.parts[part] += now - self._since
            self._step.cpu_parts[part] += cpu - self._cpu_since
        self._since, self._cpu_since = now, cpu


_clocks: dict[int, StepClock] = {}  # by thread: arms of a comparison train in threads of their own


@contextmanager
def timing(clock: StepClock) -> Iterator[StepClock]:
    """What this thread trains within the block is told to the clock, where `watching` seams."""
    _clocks[get_ident()] = clock
    try:
        yield clock
    finally:
        del _clocks[get_ident()]


def current() -> StepClock | None:
    """The clock of this thread."""
    return _clocks.get(get_ident())


@contextmanager
def watching(seams: list[Seam]) -> Iterator[None]:
    """Puts timers around functions for a while.

    Args:
        seams: Where each function is found (a class or a module), its name, and the part that its time belongs to,
            or a function of the call's arguments that says so.
    """
    with ExitStack() as stack:
        for owner, name, part in seams:
            stack.enter_context(replaced(owner, name, _timed(getattr(owner, name), part)))
        yield


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Another attribute of a class or a module for a while; one that was inherited is inherited again."""
    own, before = name in vars(owner), vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


def seconds_a_seam(calls: int = 20_000) -> float:
    """What entering and leaving a part costs on this machine."""
    clock = StepClock("")
    clock.cut()

    def nothing() -> None:
        """What is timed."""

    called = _timed(nothing, "one")
    with timing(clock):
        begun = time.perf_counter()
        for _ in range(calls):
            called()
        took = time.perf_counter() - begun
    begun = time.perf_counter()
    for _ in range(calls):
        nothing()
    return max(took - (time.perf_counter() - begun), 0.0) / calls


def _timed(function: Any, part: Part) -> Any:
    @wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:
        clock = _clocks.get(get_ident())
        if clock is None or clock.is_closed:
            return function(*args, **kwargs)
        clock.enter(part if isinstance(part, str) else part(clock, *args))
        try:
            return function(*args, **kwargs)
        finally:
            clock.leave()

    return timed
