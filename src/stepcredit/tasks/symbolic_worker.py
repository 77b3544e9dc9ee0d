"""The child process in which math-verify runs: one JSON job a line in, one verdict a line out.

Started by path, not as a module, so that it imports math-verify alone and not this package (and torch with it).
A parse may run away in C code, where no Python signal handler fires, or take all memory; here that costs a process.
"""

import json
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

MEMORY_LIMIT_BYTES = 4 << 30


def main() -> None:
    """Serves jobs ``{"gold", "answer", "marked", "seconds"}`` until the input ends."""
    jobs, verdicts = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints must not pass for a verdict
    try:
        compare = _comparison()
    except ImportError as error:
        print(json.dumps(f"failed: {error}"), file=verdicts)
        return
    print(json.dumps("ready"), file=verdicts)
    for line in jobs:
        job = json.loads(line)
        _end_after(job["seconds"])
        try:
            verdict = compare(job["gold"], job["answer"], job["marked"])
        except Exception:  # noqa: BLE001 - whatever a parser does with model text, the answer was not read
            verdict = "unparsed"
        _end_after(0)
        print(json.dumps(verdict), file=verdicts)


def _comparison() -> Callable[[str, str, bool], str]:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    whole: list[Any] = [LatexExtractionConfig(boxed_match_priority=0)]
    anywhere: list[Any] = [LatexExtractionConfig(), ExprExtractionConfig()]

    def read(text: str, marked: bool) -> list[Any]:
        # The marked text is one expression, except where it is a sentence around math in dollars.
        has_math = "$" in text.replace("\\$", "") or "\\(" in text
        source = f"\\boxed{{{text}}}" if marked and not has_math else text
        config = whole if marked else anywhere
        parsed: list[Any] = parse(source, config, fallback_mode="no_fallback", parsing_timeout=None)
        return parsed

    def compare(gold: str, answer: str, marked: bool) -> str:
        right = read(gold, True)
        if not right:
            return "gold unparsed"
        given = read(answer, marked)
        if not given:
            return "unparsed"
        return "equal" if verify(right, given, timeout_seconds=None) else "different"

    return compare


def _end_after(seconds: float) -> None:
    """Ends this process should a job outlive its parent; the parent's own kill comes a second earlier. 0: no end."""
    if sys.platform != "win32":
        import signal

        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds and seconds + 1.0)


def _limit_memory() -> None:
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))


if __name__ == "__main__":
    _limit_memory()
    main()
