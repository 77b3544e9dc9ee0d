"""How much memory a piece of work takes at its peak, as the operating system counts it: in a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stepcredit.errors import StepCreditError

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_SACRIFICE = Path("/proc/self/oom_score_adj")


def peak_memory(module: str, work: str, options: dict[str, Any]) -> int:
    """The bytes that a piece of work adds to its process at the peak.

    Args:
        module: The module that has it.
        work: A function there that takes ``options`` by name, prepares, and gives the function to be measured.
        options: Plain values.

    Returns:
        The peak of the resident memory during the work less what the process had before it, in bytes.

    Raises:
        StepCreditError: The process failed, or the system does not count (it must be Linux).
    """
    seen = watched(module, work, options)
    return int(seen["peak_bytes"] - seen["before_bytes"])


def peak_memories(module: str, works: Sequence[tuple[str, dict[str, Any]]]) -> list[int]:
    """`peak_memory` of several pieces of work, each in a process of its own that begins with the module imported.

    Args:
        module: The module that has them.
        works: Functions there, as `peak_memory` takes them, with their options.

    Returns:
        Bytes, in that order.

    Raises:
        StepCreditError: A process failed, or the system does not count (it must be Linux).
    """
    if not works:
        return []
    asked = [{"module": module, "work": work, "options": options} for work, options in works]
    lines = _output(asked, "several works")
    return [int(seen["peak_bytes"] - seen["before_bytes"]) for seen in map(json.loads, lines[-len(works) :])]


def watched(module: str, work: str, options: dict[str, Any]) -> dict[str, Any]:
    """Runs a piece of work in a process of its own and watches its memory.

    Args:
        module: The module that has it.
        work: A function there that takes ``options`` by name, prepares, and gives the function to be measured.
        options: Plain values.

    Returns:
        ``before_bytes``, what the process held before the work; ``peak_bytes``, the most it held during the work;
        ``found``, the dict of plain values that the work returned, or None.

    Raises:
        StepCreditError: The process failed or was killed, or the system does not count (it must be Linux).
    """
    lines = _output([{"module": module, "work": work, "options": options}], work)
    seen: dict[str, Any] = json.loads(lines[-1])
    return seen


def _output(asked: list[dict[str, Any]], what: str) -> list[str]:
    """The lines that a process writes of what it is asked, the last of them one a piece of work."""
    command = [sys.executable, "-c", f"from {__name__} import measured; measured()"]
    given = json.dumps(asked)
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)  # noqa: S603 - our own
    if done.returncode != 0:
        last = [f"the process ended with {done.returncode}", *done.stderr.strip().splitlines()][-1]
        raise StepCreditError(f"measuring {what} failed: {last:.300}")
    return done.stdout.splitlines()


def available_memory() -> int:
    """The bytes that new work may take without pushing out what runs: the system's, and the container's if it has one.

    Raises:
        StepCreditError: The system does not say (it must be Linux).
    """
    if not _STATUS.exists():
        raise StepCreditError("free memory is counted on Linux only")
    free = _kilobytes(Path("/proc/meminfo"), "MemAvailable")
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and limit.read_text().strip().isdigit():
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return free


def measured() -> None:
    """What the process runs: reads what is asked from its input, writes what it saw to its output, a line each.

    One piece of work runs here. Of several each runs in a process that this one forks, before torch has any thread.
    """
    from importlib import import_module

    asked = json.load(sys.stdin)
    if not _STATUS.exists():
        raise StepCreditError("peak memory is counted on Linux only")
    _SACRIFICE.write_text("1000")  # should memory run out, this process goes, not what else runs
    for one in asked:
        import_module(one["module"])
        forked = os.fork() if len(asked) > 1 else 0
        if forked:
            if os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1]) != 0:
                sys.exit(1)  # its own last words are on stderr
            continue
        _measure(**one)
        if len(asked) > 1:
            sys.exit(0)


def _measure(module: str, work: str, options: dict[str, Any]) -> None:
    run = getattr(sys.modules[module], work)(**options)
    before = _kilobytes(_STATUS, "VmRSS")
    _RESET.write_text("5")  # the peak begins anew
    found = run()
    told = found if isinstance(found, dict) else None
    seen = {"before_bytes": before, "peak_bytes": _kilobytes(_STATUS, "VmHWM"), "found": told}
    sys.stdout.write(json.dumps(seen) + "\n")
    sys.stdout.flush()


def _kilobytes(file: Path, field: str) -> int:
    """A line of a file of the system's counts, in bytes."""
    (line,) = (line for line in file.read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024
