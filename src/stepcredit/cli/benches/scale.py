"""The advantage stage at growing numbers of tokens, and one controller against data-parallel ranks."""

import argparse
from typing import Any

from stepcredit.errors import InputError

NAME = "scale"
HELP = "the advantage stage by tokens and by ranks"
SHARE = 0.05


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subject's arguments."""
    parser.add_argument("--schemes", nargs="+", metavar="NAME", help="of grpo, pass-steps, pass-tokens, spro (all)")
    parser.add_argument("--smallest", type=int, default=16, help="power of two of tokens to begin at (default 16)")
    parser.add_argument("--largest", type=int, default=22, help="and to end at, if memory lasts (default 22)")
    parser.add_argument("--group", type=int, default=8, help="rollouts a group (default 8)")
    parser.add_argument("--layout", choices=("packed", "padded"), default="packed", help="of the batch (packed)")
    parser.add_argument("--repeats", type=int, default=3, help="times to take up to 2^24 tokens (default 3)")
    parser.add_argument("--ranks", type=int, nargs="*", default=[2, 4], help="processes against a controller (2 4)")
    parser.add_argument("--rank-tokens", type=int, default=20, help="power of two of tokens of that (default 20)")
    parser.add_argument("--step-seconds", type=float, help="your training step without the advantage stage")
    parser.add_argument("--step-tokens", type=float, help="its response tokens, over all ranks")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures each size, and ranks."""
    from stepcredit.lab.bench.scale import bench_scale, controller_share, tokens_at_share
    from stepcredit.lab.bench.scale_rollouts import SCHEMES

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


def show(result: dict[str, Any]) -> str:
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
