"""How good a policy is at a task: pass@k, greedy accuracy, lengths and more, with intervals; or how two differ."""

import argparse
import json
import sys
import time
import tomllib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stepcredit.config import build_task, parse_overrides
from stepcredit.errors import InputError
from stepcredit.files import check_folder, check_target, dump_rows, replacing
from stepcredit.runs.evaluate import evaluate
from stepcredit.runs.evaluation import Evaluation, compare
from stepcredit.runs.policies import load_policy, no_progress_bars

NAME = "eval"
HELP = "evaluate a policy on a task, or compare two"

MAX_NEW_TOKENS = 256  # where neither the user nor the run says


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("policy", metavar="POLICY", help="built-in name, local folder, hub name, or a run's directory")
    parser.add_argument("--against", metavar="OTHER", help="another policy, on the same problems and random numbers")
    parser.add_argument("--task", metavar="NAME", help="task, or package.module:Class (default: the run's own)")
    parser.add_argument("--task-set", action="append", default=[], metavar="OPTION=VALUE", help="an option of the task")
    parser.add_argument("--problems", type=int, default=512, help="test problems (default 512)")
    parser.add_argument("--samples", type=int, default=8, help="completions a problem besides the greedy (default 8)")
    parser.add_argument("--k", metavar="K,K", help="which pass@k to tell (default 1 and the samples)")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the samples (default 1.0)")
    parser.add_argument("--max-new-tokens", type=int, help=f"limit (default: the run's own, else {MAX_NEW_TOKENS})")
    parser.add_argument("--batch-size", type=int, default=64, help="completions at a time (default 64)")
    parser.add_argument("--seed", type=int, default=0, help="chooses the random numbers (default 0)")
    parser.add_argument(
        "--dtype",
        choices=("float64", "float32", "bfloat16", "auto"),
        help="of the model (default float64 on the CPU, where batches then change nothing; auto elsewhere)",
    )
    parser.add_argument("--device", help="such as cpu or cuda:0 (default: an accelerator if there is one)")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that the policy brings along")
    parser.add_argument("--out", help="also write every completion: .jsonl, .jsonl.gz or .parquet")
    parser.add_argument("--summary", metavar="FILE", help="also write what --json prints")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Loads, samples, grades; nothing is written before everything is computed."""
    begun = time.perf_counter()
    if args.out is not None:
        check_target(args.out)
    if args.summary is not None:
        check_folder("--summary", args.summary)
        if args.out is not None and Path(args.out).resolve() == Path(args.summary).resolve():
            raise InputError(f"`--summary` must not be the same file as --out; got {args.out!r} for both.")
    ks = _ks(args.k, args.samples)
    sources = [_source(name) for name in (args.policy, args.against) if name is not None]
    evaluations = _evaluations(args, sources)
    rows = [
        {"policy": name, **row}
        for name, evaluation in zip((args.policy, args.against), evaluations, strict=False)
        for row in evaluation.table()
    ]
    result: dict[str, Any] = {"policy": args.policy, **evaluations[0].summary(ks)}
    if len(evaluations) == 2:
        result["against"] = {"policy": args.against, **evaluations[1].summary(ks)}
        result["difference"] = compare(evaluations[1], evaluations[0], ks)
    result |= {name: value for name, value in (("out", args.out), ("summary", args.summary)) if value is not None}
    result["seconds"] = round(time.perf_counter() - begun, 3)
    with ExitStack() as files:  # both files are written before either takes its place
        if args.out is not None:
            out = files.enter_context(replacing(args.out))
            dump_rows(out, args.out, rows)
            out.flush()
        if args.summary is not None:
            summary = files.enter_context(replacing(args.summary))
            summary.write((json.dumps(result, indent=2) + "\n").encode())
            summary.flush()
    return result


def show(result: dict[str, Any]) -> str:
    """A table: one line a metric, with its interval; with two policies, both and their paired difference."""
    settings, other = result["settings"], result.get("against")
    drawn = (
        f"{settings['samples']} samples at temperature {settings['temperature']:g} and " if settings["samples"] else ""
    )
    lines = [
        f"{settings['task']}: {result['problems']} problems, {drawn}the greedy completion, up to "
        f"{settings['max_new_tokens']} tokens, seed {settings['seed']}, {settings['dtype']} on {settings['device']}",
        "mean over the problems [95% interval by problem]",
    ]
    columns = [(result["policy"], result["metrics"])]
    if other:
        columns += [(other["policy"], other["metrics"]), ("difference", result["difference"]["metrics"])]
    table = [["metric", *(_short(name) for name, _ in columns)]]
    names = dict.fromkeys(name for _, metrics in columns for name in metrics)
    table += [[name.replace("_", " "), *(_cell(metrics.get(name)) for _, metrics in columns)] for name in names]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    if other:
        for name, d in result["difference"]["metrics"].items():
            if "won" in d:
                lines.append(f"{name} by problem: {d['won']} won, {d['lost']} lost, {d['tied']} tied")
    lines += [f"{_short(source['policy'])}: {_reasons(source)}" for source in (result, other) if source]
    written = " and ".join(result[name] for name in ("out", "summary") if name in result)
    lines.append(f"{f'wrote {written} in' if written else 'took'} {result['seconds']:.1f} s")
    return "\n".join(lines)


@dataclass(frozen=True)
class _Source:
    """Where a policy's weights are, and what its run says of the task."""

    path: str
    task: dict[str, Any] | None = None
    limit: int | None = None


def _source(name: str) -> _Source:
    """A run's directory is read for its policy and config; any other name stands for itself."""
    folder = Path(name)
    if name.startswith((".", "~", "/")) and not folder.expanduser().is_dir():  # told before the other policy's turn
        raise InputError(f"`POLICY` must be a hub name or a folder; got {name!r}, which is no folder.")
    if not ((folder / "index.json").is_file() and (folder / "config.toml").is_file()):
        return _Source(name)
    try:
        newest = json.loads((folder / "index.json").read_text()).get("checkpoint")
        config = tomllib.loads((folder / "config.toml").read_text())
        task, limit = config.get("task", {}), config.get("trainer", {}).get("max_completion_length", MAX_NEW_TOKENS)
        if not isinstance(task, dict) or not isinstance(limit, int):
            raise ValueError("[task] must be a table and max_completion_length a whole number")
    except (ValueError, AttributeError) as error:
        raise InputError(f"`POLICY` must be a run with a readable index and config; got {name!r}: {error}.") from None
    saved = [folder / "policy"]
    if newest is not None:
        saved.append(folder / "checkpoints" / f"checkpoint-{str(newest).removeprefix('checkpoint-')}")
    path = next((path for path in saved if path.is_dir()), None)
    if path is None:
        raise InputError(f"`POLICY` must be a run that has saved a policy or a checkpoint; got {name!r}, with neither.")
    return _Source(str(path), task, limit)


def _evaluations(args: argparse.Namespace, sources: list[_Source]) -> list[Evaluation]:
    """One evaluation a policy, on the same problems and with the same settings."""
    if args.problems < 1:
        raise InputError(f"`--problems` must be at least 1; got {args.problems}.")
    tasks = [source.task for source in sources if source.task]
    if not args.task and len(tasks) == 2 and tasks[0] != tasks[1]:
        raise InputError(f"`--task` must be given where the two runs have different ones; got {tasks[0]}, {tasks[1]}.")
    options = {} if args.task else dict(tasks[0] if tasks else {})
    name = args.task or options.pop("type", None)
    if name is None:
        raise InputError("`--task` must name a task, unless POLICY is a run's directory; got none.")
    task = build_task(name, options | parse_overrides(args.task_set))
    examples = task.examples("test", args.problems)
    limits = [source.limit for source in sources if source.limit is not None]
    limit = max(limits, default=MAX_NEW_TOKENS) if args.max_new_tokens is None else args.max_new_tokens
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = {"auto": None, None: "float64" if device == "cpu" else None}.get(args.dtype, args.dtype)
    made = []
    for source in sources:
        with no_progress_bars():  # standard error is for an error's one line
            policy = load_policy(source.path, dtype=dtype, device=device, trust_remote_code=args.trust_remote_code)
        made.append(
            evaluate(
                policy.model,
                policy.tokenizer,
                task,
                examples,
                samples=args.samples,
                temperature=args.temperature,
                max_new_tokens=limit,
                batch_size=args.batch_size,
                seed=args.seed,
                progress=_progress(source.path),
            )
        )
        del policy  # one model in memory at a time
    return made


def _ks(text: str | None, samples: int) -> list[int]:
    if text is None:
        return [1, samples] if samples > 0 else [1]
    try:
        ks = [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"`--k` must be whole numbers with commas between; got {text!r}.") from None
    if not all(1 <= k <= samples for k in ks):
        raise InputError(f"`--k` must be from 1 to --samples, {samples}; got {text!r}.")
    return ks


def _progress(name: str) -> Callable[[int, int], None] | None:
    """A line that counts, where someone watches."""
    if not sys.stderr.isatty():
        return None

    def tell(done: int, total: int) -> None:
        print(f"\r{_short(name)}: {done}/{total} completions", end="\n" if done == total else "", file=sys.stderr)

    return tell


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"...{name[-25:]}"


def _cell(estimate: dict[str, float] | None) -> str:
    if estimate is None:
        return "-"
    return f"{estimate['mean']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def _reasons(source: dict[str, Any]) -> str:
    return ", ".join(f"{word or 'no reason given'} {n}" for word, n in source["reasons"].items())
