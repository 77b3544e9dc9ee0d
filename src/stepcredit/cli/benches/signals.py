"""Process rewards and log-probabilities of ragged solutions: time and memory, against the plain ways."""

import argparse
from typing import Any

from stepcredit.lab.bench.signals import bench_signals

NAME = "signals"
HELP = "reading scores and log-probabilities against the plain ways"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subject's arguments."""
    parser.add_argument("--data", metavar="FILE", help="labeled solutions, as ProcessBench (default: random words)")
    parser.add_argument("--rows", type=int, default=128, help="solutions, from the file's beginning (default 128)")
    parser.add_argument("--repeats", type=int, default=5, help="times to take of each, after a warm-up (default 5)")
    parser.add_argument("--width", type=int, default=256, help="hidden size of the models (default 256)")
    parser.add_argument("--layers", type=int, default=4, help="layers of the models (default 4)")
    parser.add_argument("--vocabulary", type=int, default=50_257, help="tokens of the language model (default 50257)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Times both ways, and takes their memory."""
    from stepcredit.runs.policies import no_progress_bars

    with no_progress_bars():
        return bench_signals(
            args.data,
            rows=args.rows,
            repeats=args.repeats,
            width=args.width,
            layers=args.layers,
            vocabulary=args.vocabulary,
        )


def show(result: dict[str, Any]) -> str:
    """A line for each alternative."""
    data, models = result["data"], result["models"]
    lines = [
        f"{data['rows']} solutions of {data['source']}: {data['tokens']} tokens, the longest {data['longest']}; plain "
        f"batches are {data['padding']:.0%} padding",
        f"models of random weights, {models['layers']} layers of width {models['width']}, {result['threads']} threads",
        f"{'':<10} {'':<6} {'tokens/s':>9} {'seconds':>8} {'(least-greatest)':>18}",
    ]
    for name in ("scores", "logprobs"):
        part = result[name]
        for way in ("plain", "ours"):
            took = part["seconds"][way]
            between = f"({took['least']:.2f}-{took['greatest']:.2f})"
            lines.append(
                f"{name:<10} {way:<6} {part['tokens_a_second'][way]:>9.0f} {took['median']:>8.2f} {between:>18}"
            )
        ratio = part["ratio"]
        lines.append(
            f"{name}: {ratio['median']:.2f} times as fast ({ratio['least']:.2f}-{ratio['greatest']:.2f}), numbers "
            f"within {part['greatest_difference']:.1g}"
        )
    peaks = result["logprobs"]["peak_bytes"]
    lines.append(
        f"logprobs: peak memory {peaks['plain'] / 2**20:.0f} MiB plain, {peaks['ours'] / 2**20:.0f} MiB ours, for "
        f"{result['logprobs']['rows']} solutions"
    )
    return "\n".join(lines)
