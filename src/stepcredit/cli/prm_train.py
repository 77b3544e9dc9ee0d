"""Trains a process reward model on labeled steps: of files, or of a policy's own solutions."""

import argparse
import math
import shlex
import sys
import time
from typing import Any

from stepcredit.errors import InputError
from stepcredit.files import check_new_folder, check_target, write_rows
from stepcredit.tasks.labeled_files import read_labeled_steps
from stepcredit.tasks.labeled_steps import LabeledSteps, labeled_rows, split_groups

SCRATCH_RATE, PRETRAINED_RATE = 1e-3, 1e-5
_LINE_EVERY_S = 5.0
_STARTS = ("backbone", "from_scratch")
_SIZES = ("hidden_size", "layers", "heads", "vocabulary", "positions", "dropout")
_FILES = ("data", "origin", "no_originals")
_MADE = (
    "policy", "task", "task_set", "labels", "target", "problems", "samples", "rollouts_per_step", "temperature",
    "max_new_tokens", "by",
)  # fmt: skip
_TRAINING = (
    "separator", "max_length", "epochs", "batch_size", "learning_rate", "tokens_at_once", "seed", "threads", "device",
    "trust_remote_code", "hold_out",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to make; it must not exist")
    start = parser.add_mutually_exclusive_group(required=True)
    start.add_argument(
        "--backbone", metavar="NAME", help="built-in policy, folder or hub name whose body is trained on"
    )
    start.add_argument("--from-scratch", choices=("encoder", "decoder"), help="random weights and a new tokenizer")
    for name, value in (("hidden-size", 128), ("layers", 4), ("heads", 4), ("vocabulary", 4096), ("positions", 2048)):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"with --from-scratch (default {value})")
    parser.add_argument("--dropout", type=float, default=0.1, help="with --from-scratch (default 0.1)")
    data = parser.add_argument_group("labels from files")
    data.add_argument("--data", nargs="+", default=[], metavar="FILE", help="labeled solutions, of any known format")
    data.add_argument("--origin", choices=("train", "test"), help="of PRMBench: rows of that origin alone")
    data.add_argument("--no-originals", action="store_true", help="of PRMBench: leave the original solutions out")
    made = parser.add_argument_group("labels of a policy's own solutions")
    made.add_argument("--policy", metavar="NAME", help="built-in policy, folder or hub name that samples solutions")
    made.add_argument("--task", metavar="NAME", help="task, or package.module:Class")
    made.add_argument("--task-set", action="append", default=[], metavar="OPTION=VALUE", help="an option of the task")
    made.add_argument("--labels", choices=("monte-carlo", "task"), default="monte-carlo", help="(default monte-carlo)")
    made.add_argument("--target", choices=("soft", "hard"), default="soft", help="share right, or any (default soft)")
    made.add_argument("--problems", type=int, default=256, help="training problems (default 256)")
    made.add_argument("--samples", type=int, default=4, help="solutions a problem (default 4)")
    made.add_argument("--rollouts-per-step", type=int, default=8, help="(default 8)")
    made.add_argument("--temperature", type=float, default=1.0, help="of both (default 1.0)")
    made.add_argument("--max-new-tokens", type=int, default=256, help="limit of a solution (default 256)")
    made.add_argument(
        "--by", choices=("lines", "paragraphs", "sentences"), default="lines", help="steps where the task has none"
    )
    made.add_argument("--save-labels", metavar="FILE", help="also write the labeled solutions")
    training = parser.add_argument_group("training")
    training.add_argument("--separator", default=r"\n", help=r"what ends every step (default \n)")
    training.add_argument("--max-length", type=int, help="most tokens of an input (default: the model's positions)")
    training.add_argument("--epochs", type=int, default=1, help="(default 1)")
    training.add_argument("--batch-size", type=int, default=32, help="solutions an update (default 32)")
    training.add_argument(
        "--learning-rate", type=float, help=f"(default {PRETRAINED_RATE:g}; {SCRATCH_RATE:g} from scratch)"
    )
    training.add_argument("--tokens-at-once", type=int, default=8192, help="bounds the memory (default 8192)")
    training.add_argument("--seed", type=int, default=0, help="of weights, order and sampling (default 0)")
    training.add_argument("--threads", type=int, help="CPU threads; the bits may depend on it")
    training.add_argument("--device", help="such as cpu or cuda:0 (default: an accelerator if there is one)")
    training.add_argument("--trust-remote-code", action="store_true", help="run code that policy or backbone bring")
    training.add_argument("--hold-out", type=float, default=0.0, metavar="SHARE", help="of the problems, to measure on")
    training.add_argument("--held-out", metavar="FILE", help="write the solutions held out, for prm eval")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Makes or reads the labels, trains, and writes the folder whole."""
    import torch

    from stepcredit.runs.prm_folder import save_prm
    from stepcredit.runs.prm_training import provenance, train_prm
    from stepcredit.signals.prm.training import StepTraining

    begun = time.perf_counter()
    check_new_folder(args.out)
    for target in (args.held_out, args.save_labels):
        if target is not None:
            check_target(target)
    _check(args)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    rate = args.learning_rate or (SCRATCH_RATE if args.from_scratch else PRETRAINED_RATE)
    options = StepTraining(
        epochs=args.epochs, batch_size=args.batch_size, learning_rate=rate, tokens_at_once=args.tokens_at_once,
        seed=args.seed,
    )  # fmt: skip
    solutions, labels = _labels(args, device)
    if args.save_labels is not None:
        write_rows(args.save_labels, labeled_rows(solutions))
    held, trained = split_groups(solutions, args.hold_out)
    if not trained:
        raise InputError(f"`--hold-out` must leave solutions to train on; got {args.hold_out:g} of {len(solutions)}.")
    if args.held_out is not None:
        write_rows(args.held_out, labeled_rows(held))
    model, tokenizer, start = _start(args, trained, device)
    separator = args.separator.replace(r"\n", "\n")
    report = train_prm(
        model, tokenizer, trained, held_out=held, options=options, separator=separator, max_length=args.max_length,
        progress=_Progress(),
    )  # fmt: skip
    command = shlex.join(["stepcredit", "prm", "train", *_words(args)])
    size = sum(p.numel() for p in model.parameters())
    text = provenance(report, command=command, start=start, labels=labels["source"], parameters=size)
    digest = save_prm(args.out, model, tokenizer, separator=separator, provenance=text, probe=report.probe)
    return {
        "out": args.out,
        "parameters": size,
        "labels": labels,
        "solutions": report.solutions,
        "blank_steps": report.blank_steps,
        "unread_steps": report.unread_steps,
        **report.metrics,
        "held_out": report.held_out,
        "sha256": digest,
        "training_seconds": round(report.seconds, 1),
        "seconds": round(time.perf_counter() - begun, 1),
    }


def show(result: dict[str, Any]) -> str:
    """What it learned from, and how well."""
    labels, held = result["labels"], result["held_out"]
    counts = ", ".join(f"{count} {reason}" for reason, count in labels.get("left_out", {}).items())
    lines = [f"labels: {labels['source']}" + (f"; left out: {counts}" if counts else "")]
    if labels.get("rollouts"):
        lines.append(
            f"{labels['rollouts']} rollouts, {labels['tokens']} tokens in {labels['seconds']:.1f} s for "
            f"{labels['steps']} steps of {labels['solutions']} solutions, {labels['right']:.3f} of them right"
        )
    lines.append(
        f"trained on {result['steps']:.0f} steps of {result['solutions']} solutions, {result['updates']:.0f} updates; "
        f"loss {result['first_loss']:.4f} at first, {result['loss']:.4f} over the last epoch"
    )
    cut = {"blank": result["blank_steps"], "beyond the longest input": result["unread_steps"]}
    lines += [f"left out: {count} steps {reason}" for reason, count in cut.items() if count]
    if held is not None:
        loss, auc = ("-" if held[name] is None else f"{held[name]:.4f}" for name in ("loss", "auc"))
        lines.append(f"held out: {held['steps']} steps of {held['solutions']} solutions, loss {loss}, AUC {auc}")
    lines.append(
        f"wrote {result['out']} in {result['seconds']:.0f} s ({result['training_seconds']:.0f} s of training); "
        f"{result['parameters']} parameters, sha256 {result['sha256']}"
    )
    return "\n".join(lines)


def _check(args: argparse.Namespace) -> None:
    if bool(args.data) == bool(args.policy):
        raise InputError("`--data` or --policy must say where the labels come from, one of them; got both or neither.")
    if args.policy and not args.task:
        raise InputError("`--task` must name the task of --policy; got none.")
    if args.save_labels is not None and not args.policy:
        raise InputError("`--save-labels` must go with --policy; got files, which have their labels.")
    if args.held_out is not None and not args.hold_out:
        raise InputError("`--held-out` must go with --hold-out SHARE; got none, so nothing is held out.")
    if args.learning_rate is not None and not 0.0 < args.learning_rate < math.inf:
        raise InputError(f"`--learning-rate` must be a positive number; got {args.learning_rate}.")
    if args.threads is not None and args.threads < 1:
        raise InputError(f"`--threads` must be at least 1; got {args.threads}.")


def _labels(args: argparse.Namespace, device: str) -> tuple[list[LabeledSteps], dict[str, Any]]:
    """The labeled solutions, and what is to be told of them."""
    if args.policy:
        return _made_labels(args, device)
    solutions: dict[str, LabeledSteps] = {}
    left_out: dict[str, int] = {}
    for path in args.data:
        data = read_labeled_steps(path, origin=args.origin, originals=not args.no_originals)
        for solution in data.solutions:
            if solution.id in solutions:
                raise InputError(f"`--data` must have ids that differ between files; got {solution.id!r} twice.")
            solutions[solution.id] = solution
        for reason, count in data.left_out.items():
            left_out[reason] = left_out.get(reason, 0) + count
    return list(solutions.values()), {"source": ", ".join(args.data), "left_out": left_out}


def _made_labels(args: argparse.Namespace, device: str) -> tuple[list[LabeledSteps], dict[str, Any]]:
    from stepcredit.config import build_task, parse_overrides
    from stepcredit.runs.policies import load_policy, no_progress_bars
    from stepcredit.runs.prm_labels import Sampling, monte_carlo_labels, sample_solutions, task_labels

    sampling = Sampling(
        samples=args.samples, rollouts_per_step=args.rollouts_per_step, temperature=args.temperature,
        max_new_tokens=args.max_new_tokens, seed=args.seed,
    )  # fmt: skip
    task = build_task(args.task, parse_overrides(args.task_set))
    examples = task.examples("train", args.problems, seed=args.seed)
    with no_progress_bars():
        policy = load_policy(args.policy, device=device, trust_remote_code=args.trust_remote_code)
    sampled = sample_solutions(policy, task, examples, sampling, by=args.by)
    if args.labels == "task":
        labeled, report = task_labels(sampled)
        word = "the task's verdict"
    else:
        labeled, report = monte_carlo_labels(policy, task, sampled, sampling, target=args.target)
        word = f"{args.rollouts_per_step} rollouts a step ({args.target})"
    told = report.plain()
    source = f"{word} on {len(sampled)} solutions of {args.policy} to {len(examples)} problems of {task.name}"
    return labeled, {"source": source, "left_out": {"stepless": told.pop("stepless")}, **told}


def _start(args: argparse.Namespace, solutions: tuple[LabeledSteps, ...], device: str) -> tuple[Any, Any, str]:
    from stepcredit.runs.prm_backbone import Scratch, from_scratch, load_backbone

    if args.backbone:
        model, tokenizer = load_backbone(
            args.backbone, seed=args.seed, device=device, trust_remote_code=args.trust_remote_code
        )
        return model, tokenizer, f"{args.backbone} under a head with 2 labels"
    scratch = Scratch(kind=args.from_scratch, seed=args.seed, **{name: getattr(args, name) for name in _SIZES})
    texts = (text for solution in solutions for text in (solution.problem, *solution.steps))
    model, tokenizer = from_scratch(scratch, texts)
    return model.to(device), tokenizer, f"random weights, {scratch}; the tokenizer is trained on the same solutions"


def _words(args: argparse.Namespace) -> list[str]:
    """The command's words: what shaped the result, whether it was given or is the default."""
    unread = [*(_MADE if args.data else _FILES), *(_SIZES if args.backbone else ())]
    words = ["--out", "DIR"]
    for name in (*_STARTS, *_SIZES, *_FILES, *_MADE, *_TRAINING):
        value, option = getattr(args, name), f"--{name.replace('_', '-')}"
        if name in unread or value is None or value is False or value == []:
            continue
        if name == "task_set":
            words += [word for text in value for word in (option, text)]
        elif value is True:
            words.append(option)
        else:
            words += [option, *map(str, value if isinstance(value, list) else [value])]
    return words


class _Progress:
    """A line on stderr every few seconds: updates, loss and the time left."""

    def __init__(self) -> None:
        self._begun = self._last = time.perf_counter()

    def __call__(self, done: int, updates: int, loss: float) -> None:
        now = time.perf_counter()
        if now - self._last >= _LINE_EVERY_S or done == updates:
            self._last = now
            left = (updates - done) * (now - self._begun) / done
            print(f"{done} of {updates} updates, loss {loss:.4f}, {left:.0f} s left", file=sys.stderr, flush=True)
