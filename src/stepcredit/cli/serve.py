"""Serve a process reward model, or a teacher's log-probabilities, over HTTP as vLLM would."""

import argparse
import sys
from typing import Any

from stepcredit.errors import InputError

NAME = "serve"
HELP = "serve a process reward model or a teacher over HTTP"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--prm", metavar="MODEL", help="a process reward model: folder or hub name")
    kind.add_argument("--teacher", metavar="MODEL", help="a causal language model: folder or hub name")
    parser.add_argument("--preset", help="how the process reward model is fed and read (default: as its folder says)")
    parser.add_argument("--separator", help="what ends a step, where the preset leaves it open")
    parser.add_argument("--name", help="what requests call the model (default: MODEL as given)")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve at (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="port; 0 for any that is free (default 8000)")
    parser.add_argument("--token-env", metavar="VARIABLE", help="environment variable with the bearer token")
    parser.add_argument("--dtype", help="of the weights, as bfloat16 (default: the checkpoint's own)")
    parser.add_argument("--device", help="as cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--max-length", type=int, help="most tokens of an input (default: the model's positions)")
    parser.add_argument("--batch-tokens", type=int, default=16384, help="tokens in one pass (default 16384)")
    parser.add_argument("--trust-remote-code", action="store_true", help="run modeling code that the checkpoint ships")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Serves until told to stop."""
    from stepcredit.runs.policies import no_progress_bars
    from stepcredit.signals.server.app import make_app
    from stepcredit.signals.server.running import address, bind, run, token_of

    name = args.name or args.prm or args.teacher
    _check(args)
    token = token_of(args.token_env)
    bound = bind(args.host, args.port, token)
    try:
        with no_progress_bars():
            model = _model(args, name)
        app = make_app(model, token=token)
        url = address(bound)

        def ready() -> None:
            print(f"serving {name} ({model.kind}, up to {model.longest} tokens) at {url}", file=sys.stderr, flush=True)

        run(app, bound, ready)
    finally:
        bound.close()
    return {"model": name, "kind": model.kind, "url": url}


def _check(args: argparse.Namespace) -> None:
    if args.teacher and (args.preset or args.separator or args.trust_remote_code):
        raise InputError("`--preset`, `--separator` and `--trust-remote-code` must come with --prm; got --teacher.")
    for option in ("max_length", "batch_tokens"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise InputError(f"`--{option.replace('_', '-')}` must be at least 1; got {value}.")


def _model(args: argparse.Namespace, name: str) -> Any:
    from stepcredit.runs.policies import source_of
    from stepcredit.signals.prm import PRM
    from stepcredit.signals.server.models import ServedPRM, ServedTeacher

    if args.teacher:
        return ServedTeacher(source_of(args.teacher), name, args.dtype, args.device, args.batch_tokens, args.max_length)
    prm = PRM(
        source_of(args.prm),
        preset=args.preset,
        separator=_separator(args.separator),
        batch_tokens=args.batch_tokens,
        dtype=args.dtype,
        device=args.device,
        trust_remote_code=args.trust_remote_code,
        max_length=args.max_length,
    )
    return ServedPRM(prm, name)


def _separator(given: str | None) -> str | None:
    r"""A separator as typed in a shell: ``\n`` is a line break."""
    return None if given is None else given.replace("\\n", "\n")


def show(result: dict[str, Any]) -> str:
    """The last line."""
    return f"served {result['model']} at {result['url']}; stopped"
