"""How much memory a piece of work takes at its peak, as the operating system counts it: in a process of its own."""

import json
import subprocess
import sys
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
    code = f"from {__name__} import measured; measured()"
    asked = json.dumps({"module": module, "work": work, "options": options})
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=False)  # noqa: S603 - our own
    if done.returncode != 0:
        last = [f"the process ended with {done.returncode}", *done.stderr.strip().splitlines()][-1]
        raise StepCreditError(f"measuring {work} failed: {last:.300}")
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return seen


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
    """What the process runs: reads what is asked from its input, writes what it saw to its output."""
    from importlib import import_module

    asked = json.load(sys.stdin)
    run = getattr(import_module(asked["module"]), asked["work"])(**asked["options"])
    if not _STATUS.exists():
        raise StepCreditError("peak memory is counted on Linux only")
    _SACRIFICE.write_text("1000")  # should memory run out, this process goes, not what else runs
    before = _kilobytes(_STATUS, "VmRSS")
    _RESET.write_text("5")  # the peak begins anew
    found = run()
    told = found if isinstance(found, dict) else None
    seen = {"before_bytes": before, "peak_bytes": _kilobytes(_STATUS, "VmHWM"), "found": told}
    sys.stdout.write(json.dumps(seen) + "\n")


def _kilobytes(file: Path, field: str) -> int:
    """A line of a file of the system's counts, in bytes."""
    (line,) = (line for line in file.read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024
