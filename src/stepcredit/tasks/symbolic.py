"""Symbolic comparison of two answers with math-verify, under a time limit that holds in any thread.

math-verify limits its time with SIGALRM: only on the main thread, only in whole seconds, and not inside C code
(a tower of powers, say). So it runs in a child process, which is started once, reused, and killed at the limit.
"""

import contextlib
import importlib.util
import json
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Literal, get_args

from stepcredit.errors import InputError, MissingExtraError, StepCreditError

Verdict = Literal["equal", "different", "unparsed", "gold unparsed", "stopped"]

_WORKER = Path(__file__).with_name("symbolic_worker.py")
_STARTUP_S = 120.0  # importing sympy takes a second, or many on a busy machine; not charged to any answer


class SymbolicComparer:
    r"""Compares a gold answer and a given one; holds a child process from the first comparison on.

    Safe to call from any thread (one comparison at a time), after a fork (the new process starts its own child)
    and to pickle. The child ends with this object, with `close`, or with the interpreter.

    Args:
        timeout_s: Seconds that one comparison may take.

    Raises:
        InputError: ``timeout_s`` is not positive.
        MissingExtraError: math-verify is not installed.

    Example:
        >>> comparer = SymbolicComparer()
        >>> comparer.compare(r"\frac{1}{2}", "0.5"), comparer.compare("x+1", "x-1")
        ('equal', 'different')
        >>> comparer.close()
    """

    def __init__(self, timeout_s: float = 5.0) -> None:
        if not timeout_s > 0:
            raise InputError(f"`timeout_s` must be above 0; got {timeout_s}.")
        if importlib.util.find_spec("math_verify") is None:
            raise MissingExtraError("math-verify", "data", "grade mathematical answers")
        self.timeout_s = timeout_s
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None
        self._end: weakref.finalize[[subprocess.Popen[str]], SymbolicComparer] | None = None

    def __reduce__(self) -> tuple[type["SymbolicComparer"], tuple[float]]:
        """Pickles the setting; the copy starts its own child."""
        return type(self), (self.timeout_s,)

    def compare(self, gold: str, answer: str, *, marked: bool = True) -> Verdict:
        """Compares two answers.

        Args:
            gold: The gold answer, one expression.
            answer: The given answer.
            marked: True where ``answer`` is one expression; False where it is text to find the last one in.

        Returns:
            ``"equal"`` or ``"different"``; ``"unparsed"`` (the answer) or ``"gold unparsed"`` where there was
            nothing to compare; ``"stopped"`` where the limit of time or memory ended it.

        Raises:
            StepCreditError: The child process cannot start (never for any text).
        """
        with self._lock:
            child = self._running()
            job = {"gold": gold, "answer": answer, "marked": marked, "seconds": self.timeout_s}
            reply = self._exchange(child, json.dumps(job) + "\n", self.timeout_s)
            if reply is None or child.poll() is not None:
                self._stop()
        return reply if reply in get_args(Verdict) else "stopped"  # type: ignore[return-value]

    def close(self) -> None:
        """Ends the child; a later comparison starts another."""
        with self._lock:
            self._stop()

    def _running(self) -> "subprocess.Popen[str]":
        if self._child is not None and self._child.poll() is not None:
            self._stop()  # ended while idle by the system; or, after a fork, the child of another process
        if self._child is None:
            self._child = subprocess.Popen(  # noqa: S603 - our own script, no text of others on the command line
                [sys.executable, "-P", "-W", "ignore", str(_WORKER)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8",
            )  # fmt: skip
            self._end = weakref.finalize(self, _end, self._child)
            greeting = self._exchange(self._child, "", _STARTUP_S)
            if greeting != "ready":
                self._stop()
                raise StepCreditError(f"The grading process must start; got {greeting!r}. Try: {sys.executable} "
                                      "-c 'import math_verify'")  # fmt: skip
        return self._child

    @staticmethod
    def _exchange(child: "subprocess.Popen[str]", line: str, seconds: float) -> str | None:
        """Sends a line and reads one; None where the child ended, or was ended at the limit, without an answer."""
        assert child.stdin is not None
        assert child.stdout is not None
        late = threading.Event()

        def end_late() -> None:
            late.set()
            child.kill()

        timer = threading.Timer(seconds, end_late)
        timer.daemon = True
        timer.start()
        try:
            child.stdin.write(line)
            child.stdin.flush()
            answer = child.stdout.readline()
        except OSError:
            return None
        except BaseException:  # an interrupt: the reply that is under way must not answer the next question
            child.kill()
            child.wait()
            raise
        finally:
            timer.cancel()
            timer.join()  # after this the child is either killed or safe from this timer
            if late.is_set():
                child.wait()  # an answer may have come just before the kill: do not mistake the child for alive
        return str(json.loads(answer)) if answer.endswith("\n") else None

    def _stop(self) -> None:
        if self._end is not None:
            self._end()
        self._end, self._child = None, None


def _end(child: "subprocess.Popen[str]") -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # bytes that the child never read
                pipe.close()
