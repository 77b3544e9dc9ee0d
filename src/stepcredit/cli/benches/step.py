"""Where the time of a training step goes, what of it is ours, and the same training by plain TRL, step for step."""

import argparse
import sys
from typing import Any

NAME = "step"
HELP = "the share of a training step that is ours"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subject's arguments."""
    parser.add_argument("recipe", nargs="?", default="demo-pass", help="a recipe or a config (default demo-pass)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for train; repeatable")
    parser.add_argument("--steps", type=int, default=8, help="steps to time, after two for nothing (default 8)")
    parser.add_argument("--rounds", type=int, default=8, help="steps in turns with plain TRL, 0: none (default 8)")
    parser.add_argument("--threads", type=int, help="of torch (default: as it is)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Trains, and watches the seams."""
    import torch

    from stepcredit.config import parse_overrides
    from stepcredit.errors import InputError
    from stepcredit.lab.bench.step import bench_step

    if args.threads is not None:
        if args.threads < 1:
            raise InputError(f"`--threads` must be at least 1; got {args.threads}.")
        torch.set_num_threads(args.threads)
    return bench_step(
        args.recipe, parse_overrides(args.set), steps=args.steps, rounds=args.rounds,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )  # fmt: skip


def show(result: dict[str, Any]) -> str:
    """A line for each part, those of ours together, and the ratios to plain TRL."""
    from stepcredit.lab.bench.step import BOUNDS
    from stepcredit.lab.bench.step_seams import OURS

    ours, added = result["ours"], result["added"]
    lines = [
        f"{result['recipe']}: {result['steps']} steps of {result['tokens']['median']:.0f} completion tokens, "
        f"{result['threads']} threads; a step took {_between(result['seconds'], 's')}, "
        f"{_between(result['cpu_seconds'], 's')} of CPU",
        f"{'part':<26} {'ms':>9} {'share':>7} {'CPU ms':>9} {'share':>7}",
    ]
    parts = sorted(result["parts"].items(), key=lambda item: (item[0] in OURS, -item[1]["cpu_seconds"]["median"]))
    lines += [_line(name, part) for name, part in [*parts, ("ours together", ours), ("ours but rewards", added)]]
    lines.append(
        f"ours: {ours['share']['median']:.2%} of a step by the clock, {ours['cpu_share']['median']:.2%} of its CPU "
        f"time ({ours['cpu_share']['least']:.2%}-{ours['cpu_share']['greatest']:.2%}); at most {BOUNDS['share']:.0%} "
        f"is asked for; {added['cpu_share']['median']:.2%} without the reward functions, which plain TRL calls too"
    )
    ended = ", ".join(f"{name} {1e3 * seconds:.0f} ms" for name, seconds in result["checkpoint"].items())
    lines.append(f"the step that ends with a checkpoint: {ended}")
    clock = result["clock"]
    lines.append(f"the clock itself: {clock['seams']} seams, {1e3 * clock['seconds']:.2f} ms a step")
    return "\n".join([*lines, *_paired_lines(result, BOUNDS["ratio"])])


def _paired_lines(result: dict[str, Any], bound: float) -> list[str]:
    if "paired" not in result:
        return []
    paired = result["paired"]
    lines = [f"against plain TRL, {paired['rounds']} steps each in turns: CPU seconds, ours over TRL's"]
    for name, title in (("grpo", "GRPO's credit"), ("recipe", result["recipe"])):
        one = paired[name]
        for key in _COMPARED:
            lines.append(
                f"  {title:<14} {key.replace('_', ' '):<17} {_between(one[key]['cpu_seconds'])}, by our own parts "
                f"{_between(one[key]['accounted'])}"
            )
    return [*lines, f"  at most {bound:g} outside forward passes is asked for"]


_COMPARED = ("whole", "outside_forwards", "outside_passes")


def _line(name: str, part: dict[str, Any]) -> str:
    return (
        f"{name:<26} {1e3 * part['seconds']['median']:>9.2f} {part['share']['median']:>7.2%} "
        f"{1e3 * part['cpu_seconds']['median']:>9.2f} {part['cpu_share']['median']:>7.2%}"
    )


def _between(of: dict[str, float], unit: str = "") -> str:
    return f"{of['median']:.3f}{unit and ' ' + unit} ({of['least']:.3f}-{of['greatest']:.3f})"
