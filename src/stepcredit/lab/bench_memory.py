"""How much memory a piece of work takes at its peak, as the operating system counts it: in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from stepcredit.errors import StepCreditError

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


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
    code = f"from {__name__} import measured; measured()"
    asked = json.dumps({"module": module, "work": work, "options": options})
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=False)  # noqa: S603 - our own
    if done.returncode != 0:
        raise StepCreditError(f"measuring {work} failed: {done.stderr.strip().splitlines()[-1]:.300}")
    return int(json.loads(done.stdout.splitlines()[-1])["bytes"])


def measured() -> None:
    """What the process runs: reads what is asked from its input, writes the bytes to its output."""
    from importlib import import_module

    asked = json.load(sys.stdin)
    run = getattr(import_module(asked["module"]), asked["work"])(**asked["options"])
    if not _STATUS.exists():
        raise StepCreditError("peak memory is counted on Linux only")
    before = _resident("VmRSS")
    _RESET.write_text("5")  # the peak begins anew
    run()
    sys.stdout.write(json.dumps({"bytes": _resident("VmHWM") - before}) + "\n")


def _resident(field: str) -> int:
    """A line of the process's status, in bytes."""
    lines = _STATUS.read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024
