"""Training runs that take turns, a step at a time, in one process: what else the machine does falls on all of them."""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Semaphore, Thread
from typing import Any

import numpy as np
import torch

from stepcredit.lab.bench.step_clock import StepClock, StepTimes, timing


def in_turns(arms: Mapping[str, Callable[[], Any]], steps: int) -> dict[str, list[StepTimes]]:
    """Lets each arm train in a thread of its own, one step of one arm at a time, each round in the other order.

    What trainers share in a process (random states, accelerate's gradient state) each arm finds as it left it, so
    that it trains as it would alone.

    Args:
        arms: What trains, by name, where `seams` are watched.
        steps: Optimizer steps of each arm.

    Returns:
        For each arm its steps: the same index is the same round.

    Raises:
        BaseException: Whatever an arm raised.
    """
    running = [_Arm(name, train) for name, train in arms.items()]
    try:
        for turn in range(steps + 1):  # the first turn ends where the first step begins
            for arm in running if turn % 2 == 0 else reversed(running):
                arm.take_turn()
        return {arm.name: arm.clock.steps for arm in running}
    finally:
        for arm in running:
            arm.stop()


class _Arm(Thread):
    """A training that waits before each step for its turn."""

    def __init__(self, name: str, train: Callable[[], Any]) -> None:
        super().__init__(name=name, daemon=True)
        self.train, self.clock = train, StepClock("trainer")
        self.clock.pause = self._wait
        self._mine, self._over = Semaphore(0), Semaphore(0)
        self._state: dict[str, Any] = {}
        self._error: BaseException | None = None
        self._stopped = self._ended = False

    def take_turn(self) -> None:
        """Trains to the beginning of the next step, or to the end."""
        if self._ended:
            return
        if self.ident is None:
            self.start()
        else:
            _restore(self._state)
        self._mine.release()
        self._over.acquire()
        self._state = _saved()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Ends the thread, wherever it is."""
        self._stopped = True
        self._mine.release()
        if self.ident is not None:
            self.join()

    def run(self) -> None:
        """The thread."""
        self._mine.acquire()
        try:
            if not self._stopped:
                with timing(self.clock):
                    self.train()
        except _Stop:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again where the turn was given
            self._error = error
        finally:
            self._ended = True
            self._over.release()

    def _wait(self) -> None:
        self._over.release()
        self._mine.acquire()
        if self._stopped:
            raise _Stop


class _Stop(BaseException):
    """Ends a training that nobody waits for; nothing catches it on the way."""


def _saved() -> dict[str, Any]:
    from accelerate.state import GradientState

    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "gradients": dict(GradientState._shared_state),
    }


def _restore(state: Mapping[str, Any]) -> None:
    from accelerate.state import GradientState

    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    GradientState._shared_state.clear()
    GradientState._shared_state.update(state["gradients"])


@contextmanager
def plain_trainers() -> Iterator[None]:
    """`make_trainer` makes TRL's own trainer within the block, of the same model, data, rewards and settings."""
    import inspect

    from trl import GRPOTrainer

    from stepcredit.adapters.trl import attach
    from stepcredit.lab.bench.step_clock import replaced
    from stepcredit.runs import trainer

    ours = {*inspect.signature(attach).parameters, "estimator"} - {"trainer"}

    def plain(**arguments: Any) -> Any:
        return GRPOTrainer(**{name: value for name, value in arguments.items() if name not in ours})

    with replaced(trainer, "CreditGRPOTrainer", plain):
        yield
