"""Say what is installed; of verl also what is registered, in which process, and which columns a config brings."""

import argparse
from typing import Any

from stepcredit.errors import InputError

NAME = "doctor"
HELP = "say what is installed, registered and brought along"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("engine", nargs="?", choices=("verl",), help="the engine to look at; default: the machine")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="of verl's config, as its command line takes them"
    )
    parser.add_argument("--no-workers", action="store_true", help="do not start Ray to ask one of its workers")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Looks, and gives the findings."""
    from stepcredit.lab.doctor import examine_machine, examine_verl, plain

    if args.engine is None:
        return plain(examine_machine())
    for word in args.overrides:
        if "=" not in word:
            raise InputError(f"`KEY=VALUE` must be an override of verl's config; got {word!r}.")
    return plain(examine_verl(args.overrides, workers=not args.no_workers))


def failed(result: dict[str, Any]) -> bool:
    """Whether something is not as it should be."""
    return not result["ok"]


def show(result: dict[str, Any]) -> str:
    """The findings as lines."""
    marks = {True: "ok", False: "NO", None: ""}
    return "\n".join(f"{marks[one['ok']]:<3} {one['name']:<16} {one['fact']}" for one in result["findings"])
