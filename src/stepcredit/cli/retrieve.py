"""How much of what multi-hop questions need one search finds: BM25 over their own paragraphs and a corpus."""

import argparse
import time
from collections.abc import Sequence
from typing import Any

from stepcredit.errors import InputError
from stepcredit.runs.statistics import bootstrap_interval
from stepcredit.tasks.multihop.loading import load_paragraphs, load_questions
from stepcredit.tasks.multihop.question import Question
from stepcredit.tasks.multihop.retrieval import BM25, distinct, identity, open_index
from stepcredit.tasks.multihop.searching import MultiHopSearch
from stepcredit.tasks.multihop.source import WORLD

NAME = "retrieve"
HELP = "measure what a search finds of multi-hop questions' gold paragraphs"

WORLDS = 256  # questions of the built-in world, where --limit does not say
_STEPS = (1, 2, 5)  # times 1, 10, 100, ...: the k that are told besides the largest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("data", metavar="DATA", help=f"questions: a file, a folder, a hub name, or {WORLD!r}")
    parser.add_argument("--k", type=int, default=10, help="how many paragraphs to look at (default 10)")
    parser.add_argument("--corpus", metavar="FILE", help="further paragraphs to search in: rows of title and text")
    parser.add_argument("--index", metavar="DIR", help="where indices are kept (default: in the user's cache folder)")
    parser.add_argument("--split", default="validation", help="of a folder or hub name (default validation)")
    parser.add_argument(
        "--limit",
        type=int,
        help="the first questions only, searched in their own paragraphs and the corpus: a smaller pool, in which more "
        f"is found (default all; {WORLDS} of the world)",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Loads, indexes, asks every question as it stands, and counts the gold paragraphs found."""
    for option, value in (("--k", args.k), ("--limit", args.limit)):
        if value is not None and value < 1:
            raise InputError(f"`{option}` must be at least 1; got {value}.")
    found = _of_world(args) if args.data == WORLD else _of_data(args)
    ranks, gold = found.pop("ranks"), found.pop("gold")
    result: dict[str, Any] = {"data": args.data, **found}
    for name, share in (("recall_at_k", _recall), ("all_gold_at_k", _all_gold)):
        estimates = {k: bootstrap_interval([share(r[:k], g) for r, g in zip(ranks, gold, strict=True)])
                     for k in _told(args.k)}  # fmt: skip
        result[name] = {str(k): estimate.mean for k, estimate in estimates.items()}
        result[f"{name}_interval"] = {str(k): [estimate.low, estimate.high] for k, estimate in estimates.items()}
    return result


def show(result: dict[str, Any]) -> str:
    """A table: one line a k, with its intervals."""
    left_out = f", {result['without_gold']} more without gold paragraphs left out" if result["without_gold"] else ""
    pool = "paragraphs in a world each" if result["data"] == WORLD else "paragraphs"
    lines = [
        f"{result['data']}: {result['questions']} questions{left_out}, {result['paragraphs']} {pool}",
        "mean over the questions [95% interval by question]",
        f"{'k':>5}  {'recall_at_k':<22}  all_gold_at_k",
    ]
    for k in result["recall_at_k"]:
        cells = [
            f"{result[name][k]:.3f} [{result[f'{name}_interval'][k][0]:.3f}, {result[f'{name}_interval'][k][1]:.3f}]"
            for name in ("recall_at_k", "all_gold_at_k")
        ]
        lines.append(f"{k:>5}  {cells[0]:<22}  {cells[1]}")
    lines += [f"{what}: {count}" for what, count in result["repairs"].items()]
    seconds = result["seconds"]
    made = f"read from {result['index']}" if result["reused"] else f"built, kept in {result['index'] or 'memory'}"
    queries = f"{result['questions']} queries in {seconds['query']:.2f} s"
    return "\n".join([*lines, f"index {made}, in {seconds['index']:.2f} s; {queries}"])


def _of_data(args: argparse.Namespace) -> dict[str, Any]:
    """One index over every paragraph of the questions and the corpus, each once."""
    questions = load_questions(args.data, split=args.split, limit=args.limit, answerable_only=True)
    asked = _with_gold(questions)
    pool = [paragraph for question in questions for paragraph in question.paragraphs]
    pool = distinct([*pool, *(load_paragraphs(args.corpus) if args.corpus else ())])
    where = {identity(paragraph): i for i, paragraph in enumerate(pool)}
    begun = time.perf_counter()
    index = open_index(pool, args.index)
    indexed = time.perf_counter()
    ranks = [index.rank(question.question, args.k) for question in asked]
    done = time.perf_counter()
    return {
        "questions": len(asked), "without_gold": len(questions) - len(asked), "paragraphs": len(pool),
        "repairs": questions.repairs, "index": str(index.folder), "reused": index.reused,
        "seconds": {"index": round(indexed - begun, 3), "query": round(done - indexed, 3)}, "ranks": ranks,
        "gold": [{where[identity(paragraph)] for paragraph in question.gold} for question in asked],
    }  # fmt: skip


def _of_world(args: argparse.Namespace) -> dict[str, Any]:
    """An index a question, over the whole of its world, as the built-in search task has it."""
    if args.corpus or args.index:
        raise InputError(f"`--corpus` and `--index` must be left out for {WORLD!r}, which is searched in memory.")
    task = MultiHopSearch()
    worlds = task.worlds("test", args.limit or WORLDS)
    ranks, gold, seconds = [], [], {"index": 0.0, "query": 0.0}
    for world in worlds:
        question, paragraphs = task.of_world(world), world.paragraphs
        begun = time.perf_counter()
        index = BM25.of(paragraphs)
        indexed = time.perf_counter()
        ranks.append(index.rank(question.question, args.k))
        seconds["query"] += time.perf_counter() - indexed
        seconds["index"] += indexed - begun
        titles = {paragraph.title for paragraph in question.gold}  # a question shows a part of their texts
        gold.append({i for i, paragraph in enumerate(paragraphs) if paragraph.title in titles})
    return {
        "questions": len(worlds), "without_gold": 0, "paragraphs": len(paragraphs), "repairs": {}, "index": None,
        "reused": False, "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "ranks": ranks, "gold": gold,
    }  # fmt: skip


def _with_gold(questions: Sequence[Question]) -> list[Question]:
    asked = [question for question in questions if question.gold]
    if not asked:
        raise InputError(f"`DATA` must have a question with gold paragraphs; got {len(questions)} without.")
    return asked


def _told(k: int) -> list[int]:
    """1, 2, 5, 10, 20, ... up to k, and k."""
    return sorted({k, *(step * 10**i for i in range(len(str(k))) for step in _STEPS if step * 10**i <= k)})


def _recall(ranked: Sequence[int], gold: set[int]) -> float:
    return len(gold & set(ranked)) / len(gold)


def _all_gold(ranked: Sequence[int], gold: set[int]) -> float:
    return float(gold <= set(ranked))
