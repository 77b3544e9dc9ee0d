"""Times parts of this package on this machine: signals against the plain ways, and how the advantage stage grows."""

import argparse
import json
from typing import Any

from stepcredit.errors import InputError
from stepcredit.lab.bench_signals import bench_signals

NAME = "bench"
HELP = "time parts of this package on this machine"
SHARE = 0.05


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subjects and their arguments."""
    subjects = parser.add_subparsers(dest="subject", required=True, metavar="signals|scale")
    signals = subjects.add_parser(
        "signals", help="reading scores and log-probabilities against the plain ways", description=_signals.__doc__
    )
    signals.add_argument("--data", metavar="FILE", help="labeled solutions, as ProcessBench (default: random words)")
    signals.add_argument("--rows", type=int, default=128, help="solutions, from the file's beginning (default 128)")
    signals.add_argument("--repeats", type=int, default=5, help="times to take of each, after a warm-up (default 5)")
    signals.add_argument("--width", type=int, default=256, help="hidden size of the models (default 256)")
    signals.add_argument("--layers", type=int, default=4, help="layers of the models (default 4)")
    signals.add_argument("--vocabulary", type=int, default=50_257, help="tokens of the language model (default 50257)")
    signals.set_defaults(run_bench=_signals, show_bench=_show_signals)
    scale = subjects.add_parser("scale", help="the advantage stage by tokens and by ranks", description=_scale.__doc__)
    scale.add_argument("--schemes", nargs="+", metavar="NAME", help="of grpo, pass-steps, pass-tokens, spro (all)")
    scale.add_argument("--smallest", type=int, default=16, help="power of two of tokens to begin at (default 16)")
    scale.add_argument("--largest", type=int, default=22, help="and to end at, if memory lasts (default 22)")
    scale.add_argument("--group", type=int, default=8, help="rollouts a group (default 8)")
    scale.add_argument("--layout", choices=("packed", "padded"), default="packed", help="of the batch (packed)")
    scale.add_argument("--repeats", type=int, default=3, help="times to take up to 2^24 tokens (default 3)")
    scale.add_argument("--ranks", type=int, nargs="*", default=[2, 4], help="processes against a controller (2 4)")
    scale.add_argument("--rank-tokens", type=int, default=20, help="power of two of tokens of that (default 20)")
    scale.add_argument("--step-seconds", type=float, help="your training step without the advantage stage")
    scale.add_argument("--step-tokens", type=float, help="its response tokens, over all ranks")
    scale.set_defaults(run_bench=_scale, show_bench=_show_scale)
    for subject in (signals, scale):
        subject.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help="print the result as one JSON object"
        )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Times the subject."""
    found: dict[str, Any] = args.run_bench(args)
    args.show = args.show_bench
    return {"subject": args.subject, **found}


def show(result: dict[str, Any]) -> str:
    """The result as it is; each subject shows its own."""
    return json.dumps(result, indent=2)


def _signals(args: argparse.Namespace) -> dict[str, Any]:
    """Process rewards and log-probabilities of ragged solutions: time and memory, against the plain ways."""
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


def _scale(args: argparse.Namespace) -> dict[str, Any]:
    """The advantage stage at growing numbers of tokens, and one controller against data-parallel ranks."""
    from stepcredit.lab.bench_scale import bench_scale, controller_share, tokens_at_share
    from stepcredit.lab.scale_rollouts import SCHEMES

    step = {"--step-seconds": args.step_seconds, "--step-tokens": args.step_tokens}
    given = [name for name, value in step.items() if value is not None]
    if len(given) == 1:
        raise InputError(f"`--step-seconds` must go with --step-tokens; got {given[0]} alone.")
    for name in given:
        if not 0 < step[name] < float("inf"):
            raise InputError(f"`{name}` must be greater than 0; got {step[name]}.")
    found = bench_scale(
        tuple(args.schemes or SCHEMES),
        smallest=args.smallest,
        largest=args.largest,
        group=args.group,
        layout=args.layout,
        repeats=args.repeats,
        ranks=args.ranks,
        rank_tokens=args.rank_tokens,
    )
    if not given:
        return found
    largest = {one["scheme"]: one for one in found["sizes"]}
    shares = {}
    for name, one in largest.items():
        seconds = one["cpu_seconds"]["median"] / one["tokens"]
        shares[name] = {
            "seconds_a_token": seconds,
            "share": controller_share(seconds, args.step_tokens, args.step_seconds),
            "tokens_at_5_percent": tokens_at_share(seconds, SHARE, args.step_seconds),
        }
    return {**found, "step": {"seconds": args.step_seconds, "tokens": args.step_tokens}, "shares": shares}


def _show_signals(result: dict[str, Any]) -> str:
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


def _show_scale(result: dict[str, Any]) -> str:
    """A line for each size, what lies beyond, and a line for each number of ranks."""
    lines = [
        f"the advantage stage on one thread of {result['cores']} cores: {result['layout']}, float32, ragged rollouts, "
        f"groups of {result['group']}",
        f"{'scheme':<12} {'tokens':>12} {'seconds':>8} {'cpu':>8} {'of it checks':>12} {'inputs':>10} {'+ peak':>10}",
    ]
    for one in result["sizes"]:
        lines.append(
            f"{one['scheme']:<12} {one['tokens']:>12} {one['seconds']['median']:>8.2f} "
            f"{one['cpu_seconds']['median']:>8.2f} {one['batch_seconds']['median']:>12.2f} "
            f"{_mebibytes(one['input_bytes'])} {_mebibytes(one['added_bytes'])}"
        )
    for one in result["stopped"]:
        lines.append(f"{one['scheme']}: stopped before {one['tokens']} tokens: {one['why']}")
    for name, law in result["growth"].items():
        if law is not None:
            lines.append(
                f"{name}: CPU seconds grow as tokens^{law['seconds_exponent']:.2f}, added memory as "
                f"tokens^{law['bytes_exponent']:.2f}, from {law['fitted_from']} to {law['fitted_to']} tokens"
            )
            for one in law["extrapolated"]:
                lines.append(
                    f"  extrapolated, not measured: {one['tokens']:>11} tokens, {one['seconds']:.0f} s, "
                    f"{one['added_bytes'] / 2**30:.1f} GiB"
                )
    return "\n".join([*lines, *_ranks_lines(result), *_share_lines(result)])


def _ranks_lines(result: dict[str, Any]) -> list[str]:
    if not result["ranks"]:
        return []
    lines = [
        f"ranks (gloo, one thread each, on these {result['cores']} cores) against one controller: seconds, and bytes",
        f"{'scheme':<12} {'ranks':>5} {'tokens':>9} {'ranks':>8} {'contr.':>8} {'collectives':>16} {'controller':>10}",
    ]
    for one in result["ranks"]:
        moved = f"{one['collective_bytes']} in {one['collectives']}"
        lines.append(
            f"{one['scheme']:<12} {one['ranks']:>5} {one['tokens']:>9} {one['seconds']['ranks']['median']:>8.2f} "
            f"{one['seconds']['controller']['median']:>8.2f} {moved:>16} {one['controller_bytes']:>10}"
        )
    return lines


def _share_lines(result: dict[str, Any]) -> list[str]:
    if "shares" not in result:
        return []
    step = result["step"]
    return [
        f"{name}: {one['share']:.1%} of a step of {step['tokens']:.3g} tokens and {step['seconds']:g} s beside; "
        f"{SHARE:.0%} from {one['tokens_at_5_percent']:.2g} tokens a step on"
        for name, one in result["shares"].items()
    ]


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:>6.0f} MiB"
