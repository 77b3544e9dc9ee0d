"""Process reward models: train one on labeled steps, score solutions with one, evaluate anyone's scores."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from stepcredit.cli import prm_train
from stepcredit.errors import InputError
from stepcredit.files import check_folder, check_target, replacing, write_rows
from stepcredit.runs.prm_evaluation import (
    ChosenThreshold,
    RawScores,
    choose_threshold,
    evaluate_scores,
    judge,
    read_scores,
)
from stepcredit.tasks.labeled_files import LabeledData, read_labeled_steps
from stepcredit.tasks.labeled_steps import LabeledSteps, split_groups

NAME = "prm"
HELP = "train, evaluate and run process reward models"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own verbs and their arguments."""
    verbs = parser.add_subparsers(dest="prm_verb", required=True, metavar="train|eval|score")
    train = verbs.add_parser("train", help="train one on labeled steps", description=prm_train.__doc__)
    prm_train.add_arguments(train)
    train.set_defaults(run_prm=prm_train.run, show_prm=prm_train.show)
    evaluate = verbs.add_parser(
        "eval", help="evaluate scores, or a model's, as ProcessBench does", description=_evaluate.__doc__
    )
    _add_data(evaluate)
    source = evaluate.add_mutually_exclusive_group(required=True)
    source.add_argument("--scores", metavar="FILE", help='raw scores: rows {"id": ..., "scores": [...]}')
    source.add_argument("--model", help="built-in name, folder or hub name to score with")
    _add_model(evaluate)
    threshold = evaluate.add_mutually_exclusive_group(required=True)
    threshold.add_argument("--threshold", type=float, help="a step whose score is under it is predicted wrong")
    threshold.add_argument("--threshold-from", metavar="FILE", help="choose it for the best F1 on these solutions")
    threshold.add_argument(
        "--threshold-share", type=float, help="choose it on this share of the problems, by hash; evaluate on the others"
    )
    evaluate.add_argument("--threshold-scores", metavar="FILE", help="raw scores of --threshold-from (with --scores)")
    evaluate.add_argument("--bins", type=int, default=10, help="of the calibration (default 10)")
    evaluate.add_argument("--resamples", type=int, default=2000, help="of the 95%% intervals (default 2000)")
    evaluate.add_argument("--seed", type=int, default=0, help="of the intervals (default 0)")
    evaluate.add_argument("--summary", metavar="FILE", help="also write what --json prints")
    evaluate.set_defaults(run_prm=_evaluate, show_prm=_show_evaluation)
    score = verbs.add_parser("score", help="write a model's raw scores", description=_score.__doc__)
    _add_data(score)
    score.add_argument("--model", required=True, help="built-in name, folder or hub name to score with")
    _add_model(score)
    score.add_argument("--out", required=True, metavar="FILE", help="raw scores: .jsonl, .jsonl.gz or .parquet")
    score.set_defaults(run_prm=_score, show_prm=_show_scores)
    for verb in (train, evaluate, score):
        verb.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help="print the result as one JSON object"
        )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Runs one of the three."""
    result: dict[str, Any] = args.run_prm(args)
    args.show = args.show_prm
    return result


def show(result: dict[str, Any]) -> str:
    """The result as it is; each of the three shows its own."""
    return json.dumps(result, indent=2)


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, metavar="FILE", help="labeled solutions; the fields tell the format")
    parser.add_argument("--origin", choices=("train", "test"), help="of PRMBench: rows of that origin alone")
    parser.add_argument("--limit", type=int, help="read at most this many rows")


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", help="how the model is fed (default: what its folder says)")
    parser.add_argument("--max-length", type=int, help="most tokens of an input (default: the model's positions)")
    parser.add_argument("--batch-tokens", type=int, help="tokens that go through the model at once")
    parser.add_argument("--dtype", help="of the weights, as float32 (default: the checkpoint's own)")
    parser.add_argument("--device", help="such as cpu or cuda:0 (default: an accelerator if there is one)")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that the model brings along")


def _evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """First errors found, their F1, the ranking of steps and calibration; every number is a share in [0, 1]."""
    begun = time.perf_counter()
    if args.summary is not None:
        check_folder("--summary", args.summary)
    if args.threshold_scores is not None and (args.scores is None or args.threshold_from is None):
        raise InputError("`--threshold-scores` must go with --scores and --threshold-from; got one without the other.")
    if args.threshold_from is not None and args.scores is not None and args.threshold_scores is None:
        raise InputError("`--threshold-scores` must be given with --scores and --threshold-from; got none.")
    given = None if args.threshold is None else ChosenThreshold(args.threshold)  # refuses nan before any work
    data = read_labeled_steps(args.data, origin=args.origin, limit=args.limit)
    solutions, unsettled = _settled(data)
    score = _scorer(args)
    scores = score(solutions) if args.model else read_scores(args.scores)
    if args.threshold_share is not None:
        aside, solutions = split_groups(solutions, args.threshold_share)
        judge((*aside, *solutions), scores, others=bool(unsettled))  # names what does not fit before any choice
        source = f"{args.threshold_share:g} of the problems of {args.data}"
        threshold = choose_threshold(judge(aside, scores, others=True), source)
    elif args.threshold_from is not None:
        threshold = _threshold_from(args, score)
    else:
        assert given is not None
        threshold = given
    others = bool(unsettled) or args.threshold_share is not None
    found = evaluate_scores(
        judge(solutions, scores, others=others), threshold, bins=args.bins, resamples=args.resamples, seed=args.seed
    )
    left_out = data.left_out | ({"first error unknown": unsettled} if unsettled else {})
    result = {"data": args.data, "form": data.form, **found, "left_out": left_out, "unit": "share"}
    result |= {"source": args.model or args.scores, "seconds": round(time.perf_counter() - begun, 3)}
    if args.summary is not None:
        with replacing(args.summary) as file:
            file.write((json.dumps(result, indent=2) + "\n").encode())
    return result


def _threshold_from(args: argparse.Namespace, score: Callable[[Sequence[LabeledSteps]], RawScores]) -> ChosenThreshold:
    solutions, unsettled = _settled(read_labeled_steps(args.threshold_from))
    scores = score(solutions) if args.model else read_scores(args.threshold_scores)
    return choose_threshold(judge(solutions, scores, others=bool(unsettled)), args.threshold_from)


def _settled(data: LabeledData) -> tuple[tuple[LabeledSteps, ...], int]:
    """The solutions that an evaluation can use, and how many it cannot."""
    kept = tuple(solution for solution in data.solutions if solution.settled)
    return kept, len(data.solutions) - len(kept)


def _scorer(args: argparse.Namespace) -> Callable[[Sequence[LabeledSteps]], RawScores]:
    """Scores with the model of the arguments, which is loaded at the first solution."""
    signal: list[Any] = []

    def score(solutions: Sequence[LabeledSteps]) -> RawScores:
        from stepcredit.runs.policies import no_progress_bars, source_of
        from stepcredit.runs.prm_scores import score_solutions
        from stepcredit.signals import PRM

        if not signal:
            options = {
                name: value
                for name in ("preset", "max_length", "batch_tokens", "dtype", "device")
                if (value := getattr(args, name)) is not None
            }
            signal.append(PRM(source_of(args.model), trust_remote_code=args.trust_remote_code, **options))
        with no_progress_bars():
            return score_solutions(signal[0], solutions, progress=_progress())

    return score


def _score(args: argparse.Namespace) -> dict[str, Any]:
    """Writes a row a solution: its id and one score a step, null for a step that the model does not read."""
    begun = time.perf_counter()
    check_target(args.out)
    data = read_labeled_steps(args.data, origin=args.origin, limit=args.limit)
    scores = _scorer(args)(data.solutions)
    write_rows(args.out, [{"id": name, "scores": list(values)} for name, values in scores.items()])
    return {
        "model": args.model,
        "data": args.data,
        "form": data.form,
        "left_out": data.left_out,
        "solutions": len(scores),
        "steps": sum(map(len, scores.values())),
        "unscored_steps": sum(value is None for values in scores.values() for value in values),
        "out": args.out,
        "seconds": round(time.perf_counter() - begun, 3),
    }


def _show_evaluation(result: dict[str, Any]) -> str:
    """One line a metric, with its interval; shares in [0, 1]."""
    threshold = result["threshold"]
    origin = threshold["source"]
    if threshold["solutions"]:
        origin = f"chosen on {origin}: {threshold['solutions']} solutions, F1 {threshold['f1']:.3f} there"
    lines = [
        f"{result['data']}: {result['solutions']} solutions, {result['with_error']} with an error; "
        f"{result['steps']} steps up to first errors, {result['unscored_steps']} of all without a score",
        f"threshold {threshold['value']:.6g}, {origin}",
        "shares in [0, 1] [95% interval by solution]",
    ]
    for name, interval in result["intervals"].items():
        shown = "-" if interval is None else f"{result[name]:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"
        lines.append(f"{name.replace('_', ' '):<17} {shown}")
    for reason, count in result["left_out"].items():
        lines.append(f"left out: {count} {reason}")
    lines.append(f"took {result['seconds']:.1f} s")
    return "\n".join(lines)


def _show_scores(result: dict[str, Any]) -> str:
    """One line."""
    unscored = f", {result['unscored_steps']} without a score" if result["unscored_steps"] else ""
    return (
        f"wrote {result['out']}: {result['steps']} steps of {result['solutions']} solutions{unscored}, "
        f"in {result['seconds']:.1f} s"
    )


def _progress() -> Callable[[int, int], None] | None:
    """A line that counts, where someone watches."""
    if not sys.stderr.isatty():
        return None

    def tell(done: int, total: int) -> None:
        print(f"\r{done}/{total} solutions", end="\n" if done == total else "", file=sys.stderr)

    return tell
