"""``stepcredit VERB ...``: exit codes 0 ok, 1 a named error in one line on stderr, 2 usage."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from stepcredit.cli import (
    bench,
    conform,
    demo,
    doctor,
    eval,
    prm,
    retrieve,
    score,
    segment,
    serve,
    serve_check,
    train,
    warm_start,
)
from stepcredit.errors import StepCreditError

VERBS = (demo, train, eval, score, segment, prm, warm_start, serve, serve_check, retrieve, conform, bench, doctor)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb.

    Args:
        argv: The words after the program's name; the process's own by default.

    Returns:
        The exit code. (Usage errors and ``--help`` leave through argparse, with 2 and 0.)
    """
    parser = argparse.ArgumentParser(prog="stepcredit", description="Process-level credit assignment for RL of LLMs.")
    parser.add_argument("--version", action="version", version=f"stepcredit {version('stepcredit')}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb in VERBS:
        sub = verbs.add_parser(verb.NAME, help=verb.HELP, description=verb.__doc__)
        verb.add_arguments(sub)
        sub.add_argument("--json", action="store_true", help="print the result as one JSON object")
        sub.set_defaults(run=verb.run, show=verb.show, failed=getattr(verb, "failed", lambda _: False))
    args = parser.parse_args(argv)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # model text may hold what the terminal cannot show
    try:
        result = args.run(args)
        print(json.dumps(result) if args.json else args.show(result), flush=True)
        if args.failed(result):  # a verdict: told in full, and in the exit code
            return 1
    except BrokenPipeError:  # the reader of our output left; that is its right
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (StepCreditError, OSError) as error:
        print(f"stepcredit {args.verb}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate" not in str(error):
            raise
        less = "try --limit" if hasattr(args, "limit") else "ask for less of it"
        print(f"stepcredit {args.verb}: the data does not fit into memory; {less}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"stepcredit {args.verb}: interrupted; nothing was left half-written", file=sys.stderr)
        return 130
    return 0
