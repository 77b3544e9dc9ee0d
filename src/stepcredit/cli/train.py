"""Train a policy with token-level credit, from one config file; a killed run resumes to the same numbers."""

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from stepcredit.config import parse_overrides
from stepcredit.config.run import RunConfig, load_config, run_config
from stepcredit.config.tables import recipes
from stepcredit.errors import InputError

NAME = "train"
HELP = "train a policy with token-level credit"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("config", nargs="?", metavar="CONFIG", help=f"a TOML file, or a recipe: {', '.join(recipes())}")
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE", help="override a setting")
    parser.add_argument("--engine", choices=("trl", "verl"), help="whose trainer; as --set run.engine=...")
    parser.add_argument("--out", metavar="DIR", help="the run directory; new (default runs/NAME-SEED)")
    parser.add_argument("--resume", metavar="DIR", help="go on with a killed run; nothing else is given")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config and stop")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Resolves the config, then trains or resumes on its engine."""
    if args.resume:
        if args.config or args.set or args.out or args.dry_run or args.engine:
            raise InputError("`--resume` must come alone: the run keeps its own config.")
        return _first_rank(_engine(run_config(args.resume)).resume(args.resume, say=_say))
    if not args.config:
        raise InputError(f"`CONFIG` must be a TOML file or a recipe ({', '.join(recipes())}); got none.")
    overrides = parse_overrides(args.set)
    if args.engine:
        overrides["run.engine"] = args.engine
    config = load_config(args.config, overrides)
    engine = _engine(config)
    folder = Path(args.out or Path("runs") / f"{Path(args.config).name.removesuffix('.toml')}-{config.run.seed}")
    if args.dry_run:
        return {"config": config.tables(), "text": engine.dry_run(config, folder)}
    return _first_rank(engine.start(config, folder, say=_say))


def _engine(config: RunConfig) -> ModuleType:
    """The module that runs a config; only its engine's library is imported."""
    return import_module("stepcredit.runs.verl.run" if config.run.engine == "verl" else "stepcredit.runs.train")


def _first_rank(result: dict[str, Any]) -> dict[str, Any]:
    """The result, to be printed by one rank of a launcher's."""
    if os.environ.get("RANK", "0") != "0":
        raise SystemExit(0)
    return result


def show(result: dict[str, Any]) -> str:
    """The resolved config, or what the run came to."""
    if "text" in result:
        return str(result["text"]).rstrip()
    lines = [f"{result['run']}: {result['status']} after {result['steps']} steps"]
    for name, evaluation in result["evaluations"].items():
        cells = {key: _cell(value) for key, value in evaluation["metrics"].items()}
        lines.append(f"{name}: " + ", ".join(f"{key} {cell}" for key, cell in cells.items() if cell))
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, dict) and "mean" in value:
        return f"{value['mean']:.3g} [{value['low']:.3g}, {value['high']:.3g}]"
    return ""


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
