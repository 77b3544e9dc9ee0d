"""The advantage stage over the time that a copy of its bytes takes, beside peers that compute the same.

Each peer's numbers are first held to ours; the exit code is 1 where they differ. All are timed in turns in one process,
after a call for nothing: this thread's processor time, or the wall clock's where there are more threads or a GPU.
"""

import argparse
from typing import Any

from stepcredit.errors import InputError
from stepcredit.files import check_folder, replacing
from stepcredit.lab.bench.cases import CASES, LAYOUTS

NAME = "advantages"
HELP = "the advantage stage against a copy of its bytes, and against peers"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subject's arguments."""
    add = parser.add_argument
    add("--case", nargs="+", default=["ragged"], metavar="NAME", help=f"of {', '.join(CASES)} (ragged)")
    add(
        "--shape", action="append", default=[], metavar="BxT", help="rollouts x places; repeat for several (the case's)"
    )
    add("--group", type=int, help="rollouts a group (the case's: 8, or what its name says)")
    add("--layout", nargs="+", default=["padded"], metavar="NAME", help=f"of {', '.join(LAYOUTS)} (padded)")
    add("--dtype", default="float32", help="of float fields: float32, float64, bfloat16 or float16 (float32)")
    add("--step-ids", default="int64", metavar="DTYPE", help="int64 or int32 (int64)")
    add("--threads", nargs="+", type=int, default=[1], metavar="N", help="further ones are held against the first (1)")
    add("--device", default="cpu", help="as torch names it (cpu)")
    add("--schemes", nargs="+", metavar="NAME", help="of ours (those with a target, and those that peers compute)")
    add("--peers", nargs="*", metavar="NAME", help="as verl:grpo or trl:grpo (those installed); none after it: no peer")
    add("--repeats", type=int, default=7, help="rounds; what takes long sits out the later ones (default 7)")
    add("--memory", default="ours", metavar="WHOSE", help="peak memory, a process each: none, ours or all (ours)")
    add("--compiling", action="store_true", help="also time the first call of a process without compiled kernels")
    add("--plot", metavar="FILE", help="also draw the ratios, as .svg")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Times each scheme on each batch, and draws."""
    from stepcredit.lab.bench.advantages import bench_advantages, disagreements
    from stepcredit.lab.bench.plot import ratio_plot

    if args.plot is not None:
        check_folder("--plot", args.plot)
        if not args.plot.endswith(".svg"):
            raise InputError(f"`--plot` must end with .svg; got {args.plot}.")
    found = bench_advantages(
        args.case,
        [_shape(text) for text in args.shape],
        group=args.group,
        layouts=args.layout,
        dtype=args.dtype,
        step_ids=args.step_ids,
        threads=args.threads,
        device=args.device,
        schemes=args.schemes,
        peers=args.peers,
        repeats=args.repeats,
        memory=args.memory,
        compiling=args.compiling,
    )
    found["disagreements"] = disagreements(found)
    if args.plot is not None:
        with replacing(args.plot) as file:
            file.write(ratio_plot(found).encode())
        found["plot"] = args.plot
    return found


def failed(result: dict[str, Any]) -> bool:
    """Whether a peer's numbers were not ours."""
    return bool(result["disagreements"])


def show(result: dict[str, Any]) -> str:
    """A table for each batch: a line a scheme, and under it a line a peer."""
    lines = [
        "multiples of the time that Tensor.copy_ takes for as many bytes as inputs and output have: "
        f"{result['dtype']}, step ids {result['step_ids']}, {result['device']}, {_threads(result['threads'][0])} of "
        f"{result['cores']} cores, {result['clock']}; medians of rounds in turns, (least-greatest)"
    ]
    before = None
    for block in result["blocks"]:
        where = _where(block)
        if where != before:
            lines += ["", where, _HEAD]
        before = where
        lines += _block_lines(block)
    lines += ["", *_LEGEND]
    for gain in result["speedups"]:
        lines.append(_speedup_line(gain))
    for why in dict.fromkeys(result["left_out"].values()):
        without = [peer for peer, its in result["left_out"].items() if its == why]
        lines.append(f"left out: {', '.join(without)}: {why}")
    lines += [f"NOT THE SAME NUMBERS: {line}" for line in result["disagreements"]]
    return "\n".join([*lines, *([f"drawn: {result['plot']}"] if "plot" in result else [])])


_HEAD = (
    f"{'scheme':<13} {'road':<8} {'MB':>7} {'copy ms':>8} {'call':>6} {'':<14} {'fresh':>6} {'unchecked':>9} "
    f"{'checks':>7} {'terms':>7} {'holds':>6} {'first s':>7}"
)
_LEGEND = (
    "call: on a checked batch, into `out`; fresh: into a new tensor; unchecked: RolloutBatch.trusted, then call; "
    "checks: RolloutBatch(...)",
    "terms: unchecked, then Credit.terms(); holds: peak memory of a call beside inputs and output, in outputs (the "
    "operating system's count)",
    "MB: inputs and output, padding too, in 10^6 bytes; first s: the first call here, by the wall clock, with kernels "
    "loaded from their cache or compiled",
    "a peer's line: its own multiple of the copy; how many times a fresh call of ours it takes; how far its numbers "
    "are from ours at most",
)


def _where(block: dict[str, Any]) -> str:
    return (
        f"{block['case']}, {block['rows']} x {block['width']} in groups of {block['group']}, {block['layout']}: "
        f"{block['says']}; {block['tokens']} response tokens"
    )


def _block_lines(block: dict[str, Any]) -> list[str]:
    ratio, copy = block["ratio"], block["seconds"]["copy"]["median"] * 1e3
    holds = f"{block['memory']['call']:.2f}" if "call" in block["memory"] else ""
    road = block["road"].split(":")[0]
    line = f"{block['scheme']:<13} {road:<8} {block['bytes'] / 1e6:>7.1f} {copy:>8.2f} "
    line += f"{ratio['call']['median']:>6.2f} {_between(ratio['call']):<14} {ratio['fresh']['median']:>6.2f} "
    line += f"{ratio['unchecked']['median']:>9.2f} {ratio['checks']['median']:>7.2f} {ratio['terms']['median']:>7.2f} "
    lines = [f"{line}{holds:>6} {block['first_seconds']:>7.2f}"]
    few = {way: count for way, count in block["repeats"].items() if count < block["repeats"]["copy"]}
    if few:
        lines.append(f"  fewer rounds: {', '.join(f'{way} {count}' for way, count in few.items())}")
    if "checks" in block["memory"]:
        lines.append(f"  the checks hold {block['memory']['checks']:.2f}")
    if road == "torch":
        lines.append(f"  no kernel: {block['road'].partition(': ')[2]}")
    if "compiling_seconds" in block:
        lines.append(f"  first call of a process without compiled kernels: {block['compiling_seconds']:.1f} s")
    for one in block["peers"]:
        line = f"  {one['peer']:<32} {one['ratio']['median']:>7.2f} {_between(one['ratio']):<16}"
        line += f" {one['over_ours']['median']:>7.2f} times ours {_between(one['over_ours']):<16}"
        held = f", holds {block['memory'][one['peer']]:.2f}" if one["peer"] in block["memory"] else ""
        lines.append(f"{line} within {one['greatest_difference']:.1g}, {_rounds(one['repeats'])}{held}")
    return lines + [f"  {peer}: left out: {why}" for peer, why in block["left_out"].items()]


def _speedup_line(gain: dict[str, Any]) -> str:
    few, many = gain["threads"]
    line = (
        f"{gain['case']}, {gain['rows']} x {gain['width']}, {gain['layout']}, {gain['scheme']}: {many} threads are "
        f"{gain['speedup']['median']:.2f} times as fast as {few} {_between(gain['speedup'])}, where the machine gave "
        f"{gain['machine']['median']:.2f} {_between(gain['machine'])}"
    )
    if gain["given_speedup"] is None:
        return f"{line}; in no round of {gain['rounds']} did it give them all"
    given = f"{gain['given_speedup']['median']:.2f} {_between(gain['given_speedup'])}"
    return f"{line}; {given} in the {_rounds(gain['given_rounds'])} in which it gave them all"


def _between(spread: dict[str, float]) -> str:
    return f"({spread['least']:.2f}-{spread['greatest']:.2f})"


def _rounds(count: int) -> str:
    return f"{count} round{'s' if count != 1 else ''}"


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count != 1 else ''}"


def _shape(text: str) -> tuple[int, int]:
    rows, _, width = text.lower().partition("x")
    if not (rows.isdigit() and width.isdigit()):
        raise InputError(f"`--shape` must be BxT, as 1024x4096; got {text!r}.")
    return int(rows), int(width)
