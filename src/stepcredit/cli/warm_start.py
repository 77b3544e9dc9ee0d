"""A small policy from nothing: supervised training on a tutor of a built-in task."""

import argparse
import sys
import time
from dataclasses import asdict
from typing import Any

from stepcredit.errors import InputError
from stepcredit.files import check_new_folder
from stepcredit.tasks import Arithmetic

NAME = "warm-start"
HELP = "train a built-in tiny policy from nothing"

_LINE_EVERY_S = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to make; it must not exist")
    parser.add_argument(
        "--tutor", choices=("noisy", "clean"), default="noisy", help="errs by design (default), or never: for a teacher"
    )
    parser.add_argument(
        "--task", choices=("arithmetic", "multihop"), default="arithmetic", help="what to learn (default arithmetic)"
    )
    parser.add_argument("--operations", type=int, default=10, help="arithmetic: the most operations (default 10)")
    parser.add_argument("--modulus", type=int, default=10, help="arithmetic: totals are taken modulo this (default 10)")
    parser.add_argument("--hops", type=int, default=3, help="multihop: the most hops (default 3)")
    parser.add_argument("--updates", type=int, default=3000, help="optimizer steps (default 3000)")
    parser.add_argument("--batch-size", type=int, default=64, help="solutions an update (default 64)")
    parser.add_argument("--start", metavar="POLICY", help="go on from this policy (default: random weights)")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="the highest one (default 0.003)")
    parser.add_argument("--seed", type=int, default=0, help="chooses weights, problems and noise (default 0)")
    parser.add_argument("--problems", type=int, default=512, help="test problems to measure on (default 512)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; the bits may depend on it (default 1)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Trains, measures on test problems, and writes the folder whole."""
    from stepcredit.runs.courses import ArithmeticCourse, Course, MultiHopCourse
    from stepcredit.runs.provenance import save_warm_start
    from stepcredit.runs.warm_start import measure, warm_start

    check_new_folder(args.out)
    if args.problems < 1:
        raise InputError(f"`--problems` must be at least 1; got {args.problems}.")
    begun = time.perf_counter()
    course: Course
    options: tuple[str, ...] = ("hops",)
    if args.task == "multihop":
        course = MultiHopCourse(args.hops, args.tutor)
    else:
        course, options = (
            ArithmeticCourse(Arithmetic(args.operations, args.modulus), args.tutor),
            ("operations", "modulus"),
        )
    model, tokenizer, report = warm_start(
        course,
        updates=args.updates,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        start=args.start,
        seed=args.seed,
        threads=args.threads,
        progress=_Progress(args.updates),
    )
    accuracy = []
    for exam, task in course.exams.items():
        _say(f"measuring on test problems: {course.difficulty} {exam}")
        accuracy.append(measure(model, tokenizer, exam, task, problems=args.problems, threads=args.threads))
    said = ("task", "tutor", *options, "updates", "batch-size", "learning-rate", "seed", "problems", "threads")
    said = said if args.start is None else ("start", *said)
    flags = [f"--{name} {getattr(args, name.replace('-', '_'))}" for name in said]
    command = " ".join(["stepcredit warm-start --out DIR", *flags])
    digest = save_warm_start(args.out, model, tokenizer, report, accuracy, command=command)
    return {
        "out": args.out,
        "difficulty": course.difficulty,
        "command": command,
        "parameters": model.num_parameters(),
        "loss": report.final_loss,
        "accuracy": [asdict(row) for row in accuracy],
        "sha256": digest,
        "training_seconds": round(report.seconds, 1),
        "seconds": round(time.perf_counter() - begun, 1),
    }


def show(result: dict[str, Any]) -> str:
    """The accuracy by difficulty, as lines of text."""
    width = len(result["difficulty"])
    lines = [f"{result['difficulty']} {'sampled':>8} {'greedy':>8} {'finished':>9} {'length':>7}"]
    for row in result["accuracy"]:
        shares = f"{row['sampled']:>8.3f} {row['greedy']:>8.3f} {row['finished']:>9.3f}"
        lines.append(f"{row['exam']:>{width}} {shares} {row['length']:>7.1f}")
    lines.append(f"{result['parameters']} parameters, loss {result['loss']:.4f}, sha256 {result['sha256']}")
    lines.append(f"wrote {result['out']} in {result['seconds']:.0f} s ({result['training_seconds']:.0f} s of training)")
    return "\n".join(lines)


class _Progress:
    """A line on stderr every few seconds: updates, loss, speed and the time left."""

    def __init__(self, updates: int) -> None:
        self._updates = updates
        self._begun = self._last = 0.0

    def __call__(self, done: int, loss: float) -> None:
        now = time.perf_counter()
        if done == 1:  # the first update takes longest: the clock starts after it
            self._begun = self._last = now
        elif now - self._last >= _LINE_EVERY_S or done == self._updates:
            self._last = now
            speed = (done - 1) / max(now - self._begun, 1e-9)
            left = (self._updates - done) / speed
            _say(f"{done} of {self._updates} updates, loss {loss:.3f}, {speed:.1f} updates/s, {left:.0f} s left")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
