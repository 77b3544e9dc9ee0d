"""Try a served model on a sample: shapes, determinism, tokenizer, agreement with a local model, speed."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from stepcredit.errors import InputError
from stepcredit.runs.policies import source_of

NAME = "serve-check"
HELP = "try a served model and say whether it can be trusted"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("url", metavar="URL", help="of the server, as http://127.0.0.1:8000")
    parser.add_argument("--model", required=True, help="the name under which the server lists the model")
    parser.add_argument(
        "--tokenizer", metavar="NAME", help="the model's tokenizer: folder or hub name (default: --model)"
    )
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--preset", help="a process reward model of this family")
    kind.add_argument("--teacher", action="store_true", help="a language model's log-probabilities")
    parser.add_argument("--separator", help="what ends a step, where the preset leaves it open")
    parser.add_argument("--outputs", default="probabilities", help="probabilities (default) or logits")
    parser.add_argument("--max-length", type=int, help="most tokens of an input to a PRM (default: the server's)")
    parser.add_argument("--against", metavar="MODEL", help="the same model on this machine, to compare with")
    parser.add_argument("--size", type=int, default=16, help="inputs in the sample (default 16)")
    parser.add_argument("--repeats", type=int, default=3, help="repetitions of the sample (default 3)")
    parser.add_argument("--tolerance", type=float, default=0.05, help="how far numbers may be apart (default 0.05)")
    parser.add_argument("--concurrency", type=int, default=4, help="requests at once (default 4)")
    parser.add_argument("--patience", type=float, default=120.0, help="seconds for one request (default 120)")
    parser.add_argument("--token-env", metavar="VARIABLE", help="environment variable with the bearer token")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Asks, compares and gives the findings."""
    from stepcredit.runs.policies import no_progress_bars
    from stepcredit.signals.remote.check import check

    for option in ("size", "repeats"):
        if getattr(args, option) < 1:
            raise InputError(f"`--{option}` must be at least 1; got {getattr(args, option)}.")
    make = _teacher if args.teacher else _prm
    session, inputs, local = make(args)
    with no_progress_bars():
        report = check(session, inputs, local=local if args.against else None, repeats=args.repeats)
    session.client.close()
    return report.plain()


def _options(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "url": args.url, "model": args.model, "tokenizer": source_of(args.tokenizer or args.model),
        "token_env": args.token_env, "tolerance": args.tolerance, "concurrency": args.concurrency,
        "patience": args.patience,
    }  # fmt: skip


Parts = tuple[Any, list[Any], Callable[[Sequence[Any]], list[list[float]]]]


def _prm(args: argparse.Namespace) -> Parts:
    from stepcredit.signals.prm import PRM, Input
    from stepcredit.signals.remote import RemotePRM
    from stepcredit.signals.remote.check import sample

    separator = None if args.separator is None else args.separator.replace("\\n", "\n")
    remote = RemotePRM(
        **_options(args), preset=args.preset, separator=separator, outputs=args.outputs, max_length=args.max_length
    )
    inputs = [pair for problem, steps in sample(args.size) for pair, _ in remote.inputs(problem, steps)]

    def local(inputs: Sequence[Any]) -> list[list[float]]:
        reader = PRM(source_of(args.against), preset=args.preset, separator=separator).reader
        return reader.read([Input(list(ids), list(marks)) for ids, marks in inputs])

    return remote.session(), inputs, local


def _teacher(args: argparse.Namespace) -> Parts:
    from stepcredit.signals.remote import RemoteTeacher
    from stepcredit.signals.remote.check import sample

    session = RemoteTeacher(**_options(args)).session()
    inputs = []
    for problem, steps in sample(args.size):
        prompt, completion = session.encode(problem + "\n"), session.encode("\n".join(steps))
        inputs.append(([*prompt, *completion], range(len(prompt), len(prompt) + len(completion))))

    def local(inputs: Sequence[Any]) -> list[list[float]]:
        from stepcredit.signals.server.models import ServedTeacher

        rows = ServedTeacher(source_of(args.against), args.model).run([ids for ids, _ in inputs])
        return [[float(row[mark - 1]) for mark in marks] for row, (_, marks) in zip(rows, inputs, strict=True)]

    return session, inputs, local


def failed(result: dict[str, Any]) -> bool:
    """Whether the model cannot be trusted."""
    return not result["trusted"]


def show(result: dict[str, Any]) -> str:
    """The findings as lines, the verdict last."""
    lines = [f"{result['model']} at {result['url']}: {result['inputs']} inputs, {result['tokens']} tokens"]
    lines += [f"{'ok' if one['ok'] else 'NO':<3} {one['name']:<12} {one['fact']}" for one in result["findings"]]
    if result["latency"] is not None:
        lines.append(
            f"    speed        {result['latency'] * 1000:.0f} ms for one input, median; "
            f"{result['tokens_per_second']:,.0f} tokens/s with all at once"
        )
    lines.append("can be trusted" if result["trusted"] else "CANNOT be trusted")
    return "\n".join(lines)
