"""Times parts of this package on this machine; without a subject: the advantage stage, as ``bench advantages`` does."""

import argparse
from typing import Any

from stepcredit.cli.benches import advantages, scale, signals, step

NAME = "bench"
HELP = "time parts of this package on this machine"
SUBJECTS: dict[str, Any] = {subject.NAME: subject for subject in (advantages, signals, scale, step)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subjects and their arguments."""
    subjects = parser.add_subparsers(dest="subject", metavar="|".join(SUBJECTS))
    for name, subject in SUBJECTS.items():
        sub = subjects.add_parser(name, help=subject.HELP, description=subject.__doc__)
        subject.add_arguments(sub)
        sub.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help="print the result as one JSON object"
        )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Times the subject."""
    if args.subject is None:
        defaults = argparse.ArgumentParser()
        advantages.add_arguments(defaults)
        args = defaults.parse_args([], argparse.Namespace(subject=advantages.NAME))
    return {"subject": args.subject, **SUBJECTS[args.subject].run(args)}


def show(result: dict[str, Any]) -> str:
    """The result as its subject shows it."""
    shown: str = SUBJECTS[result["subject"]].show(result)
    return shown


def failed(result: dict[str, Any]) -> bool:
    """The verdict of a subject that has one."""
    verdict = getattr(SUBJECTS[result["subject"]], "failed", None)
    return verdict is not None and bool(verdict(result))
