"""One thread that owns a model: what requests ask for is put together, so that the model gets large batches."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from stepcredit.errors import StepCreditError

Run = Callable[[Sequence[Sequence[int]]], Sequence[Any]]


class BusyError(StepCreditError):
    """More tokens are waiting than the worker will hold."""


class Worker:
    """Runs a model over token ids, first come first served, several requests at a time.

    Args:
        run: From the ids of inputs to a result each; called by one thread only.
        tokens: How many tokens are taken from the queue at once, at least one input.
        most_waiting: How many tokens may wait; beyond that nothing is taken in until some are done.
    """

    def __init__(self, run: Run, *, tokens: int = 32768, most_waiting: int = 2**22) -> None:
        self._run, self._tokens, self._most = run, tokens, most_waiting
        self._waiting: deque[tuple[Sequence[int], Future[Any]]] = deque()
        self._held = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._loop, name="stepcredit-model", daemon=True)
        self._thread.start()

    def submit(self, inputs: Sequence[Sequence[int]]) -> list[Future[Any]]:
        """A result to come for each input, all of them or none.

        Raises:
            BusyError: Too much is waiting, or the worker is closed.
        """
        size = sum(map(len, inputs))
        with self._changed:
            if self._closed or (self._waiting and self._held + size > self._most):
                raise BusyError("The server is shutting down." if self._closed else f"{self._held} tokens are waiting.")
            futures: list[Future[Any]] = [Future() for _ in inputs]
            self._waiting.extend(zip(inputs, futures, strict=True))
            self._held += size
            self._changed.notify()
        return futures

    def close(self) -> None:
        """Takes nothing more in, and returns when what was taken in is done."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _loop(self) -> None:
        while jobs := self._next():
            live = [(ids, future) for ids, future in jobs if future.set_running_or_notify_cancel()]
            if not live:
                continue
            try:
                results = self._run([ids for ids, _ in live])
                if len(results) != len(live):
                    raise RuntimeError(f"{len(results)} results for {len(live)} inputs")
            except Exception as error:  # noqa: BLE001  # whoever asked is told; the thread goes on for the others
                for _, future in live:
                    future.set_exception(error)
            else:
                for (_, future), result in zip(live, results, strict=True):
                    future.set_result(result)

    def _next(self) -> list[tuple[Sequence[int], Future[Any]]]:
        """What the model does next; nothing when the worker is closed and all is done."""
        with self._changed:
            while not (self._waiting or self._closed):
                self._changed.wait()
            jobs: list[tuple[Sequence[int], Future[Any]]] = []
            room = self._tokens
            while self._waiting and (not jobs or len(self._waiting[0][0]) <= room):
                job = self._waiting.popleft()
                room -= len(job[0])
                self._held -= len(job[0])
                jobs.append(job)
            return jobs
