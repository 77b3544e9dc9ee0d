"""The demo: one tiny policy trained under four credit schemes with equal budgets, through the verb `train` itself."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

from stepcredit.errors import InputError, StepCreditError
from stepcredit.files import replacing, write_rows
from stepcredit.lab.page import render_study
from stepcredit.lab.study import Arm, Study
from stepcredit.runs.store import RunStore

ARMS = {
    "demo-grpo": "GRPO",
    "demo-pooled": "pooled",
    "demo-pass": "PASS, k = 0.7",
    "demo-spro": "SPRO, beta = 0.01",
}
_SMOKE = ("run.steps=2", "run.checkpoint_every=2", "trainer.gradient_accumulation_steps=1", "evaluation.problems=32")
_CURVES = {  # what the page draws: title, the metric in the run store, its unit
    "accuracy of the training rollouts": ("task/accuracy", "share right"),
    "length": ("credit/length", "tokens"),
    "entropy": ("entropy", "nats a token"),
    "repeated steps": ("task/steps_repeated", "a rollout"),
}
_COLUMNS = ("policy", "pass@1 sampled", "pass@1 greedy", "length", "entropy", "seconds of training")
_TRAIN = """
import json, sys
from stepcredit.cli import main

for words in json.loads(sys.argv[1]):
    print("arm", words[1], file=sys.stderr, flush=True)
    if code := main(words):
        sys.exit(code)
"""
NOTE = (
    "One seed, one task, one tiny policy: this shows the mechanism and claims no winner. The process signal is the "
    "task's own ground truth for every step, which real tasks do not have; GRPO and SPRO do without it. Brackets are "
    "95% intervals over problems."
)


@dataclass(frozen=True)
class DemoResult:
    """What the demo came to.

    Attributes:
        rows: One plain row a scheme: its evaluations before and after, and the seconds of its training.
        files: The files written, by name.
        seconds: Wall time of everything.
    """

    rows: list[dict[str, Any]]
    files: dict[str, str]
    seconds: float


def run_demo(
    folder: str | Path, *, seed: int = 0, smoke: bool = False, parallel: int = 2, say: Callable[[str], None]
) -> DemoResult:
    """Trains the four arms, two at a time in processes of one thread each, and writes the table and the page.

    A process trains its arms one after the other, so that Python and the libraries start once for them.

    Args:
        folder: Where everything goes; must be new.
        seed: Chooses training problems and samples; the same for all arms, so that their first rollouts are the same.
        smoke: Two steps of a quarter batch and 32 test problems: to see that everything works, not to learn.
        parallel: Arms at a time.
        say: Takes the progress, a line at a time.

    Raises:
        InputError: The folder exists.
        StepCreditError: An arm failed; the message is its own.
    """
    begun = time.perf_counter()
    folder = Path(folder)
    if folder.exists():
        raise InputError(f"`--out` must be a new folder; got {str(folder)!r}, which exists.")
    folder.mkdir(parents=True)
    sets = [f"run.seed={seed}", *(_SMOKE if smoke else ())]
    running: list[_Lane] = []
    try:
        for lane in range(min(parallel, len(ARMS))):
            running.append(_Lane(list(ARMS)[lane::parallel], folder, sets, say))
        while running:
            time.sleep(0.1)
            running = [lane for lane in running if not lane.ended()]
    finally:
        for left in running:
            left.stop()
    stores = {name: RunStore.open(folder / recipe) for recipe, name in ARMS.items()}
    rows = _rows(stores)
    write_rows(folder / "table.jsonl", rows)
    with replacing(folder / "page.html") as file:
        file.write(_page(stores, rows, seed))
    files = {name: str(folder / name) for name in ("page.html", "table.jsonl")}
    return DemoResult(rows, files, time.perf_counter() - begun)


class _Lane:
    """Arms one after the other: `stepcredit train` in a process, its progress passed on with the arm's name."""

    def __init__(self, recipes: Sequence[str], folder: Path, sets: Sequence[str], say: Callable[[str], None]) -> None:
        self.name, self.last = ARMS[recipes[0]], ""
        runs = []
        for recipe in recipes:
            alone = [] if recipe == "demo-grpo" else ["evaluation.before=false"]  # the same policy for all
            given = [word for setting in (*sets, *alone) for word in ("--set", setting)]
            runs.append(["train", recipe, "--out", str(folder / recipe), *given])
        self.process = subprocess.Popen(  # noqa: S603 - our own program and words
            [sys.executable, "-c", _TRAIN, json.dumps(runs)],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace",
            env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        )  # fmt: skip
        self.reader = Thread(target=self._read, args=(say,), daemon=True)
        self.reader.start()

    def _read(self, say: Callable[[str], None]) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in filter(None, map(str.strip, lines)):
                kind, _, rest = line.partition(" ")
                if kind == "arm":
                    self.name = ARMS[rest]
                    continue
                self.last = line
                if kind in ("step", "evaluation"):
                    say(f"{self.name:<18} {line}")

    def ended(self) -> bool:
        """Whether all are done.

        Raises:
            StepCreditError: One failed.
        """
        code = self.process.poll()
        if code is not None:
            self.reader.join(timeout=5)
        if code:
            raise StepCreditError(f"{self.name} failed with exit code {code}: {self.last}")
        return code is not None

    def stop(self) -> None:
        """Ends it; the run that it is at can be resumed."""
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.reader.join(timeout=5)


def _rows(stores: dict[str, RunStore]) -> list[dict[str, Any]]:
    before = next(iter(stores.values())).evals()["start"]["metrics"]
    rows = []
    for name, store in stores.items():
        after = store.evals()["end"]["metrics"]
        seconds = sum(row.get("step_time") or 0.0 for row in store.metrics())
        rows.append({"scheme": name, "before": before, "after": after, "seconds": round(seconds, 1)})
    return rows


def table(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The rows as cells under the page's heads: the policy that all arms start from, then each arm's."""
    policies = [("before training", rows[0]["before"], "")]
    policies += [(row["scheme"], row["after"], f"{row['seconds']:.0f}") for row in rows]
    return [[name, *(_cell(x[key], digits) for key, digits in _SHOWN.items()), took] for name, x, took in policies]


_SHOWN = {"pass@1": 3, "greedy": 3, "length": 1, "entropy": 3}


def _cell(value: dict[str, float], digits: int) -> str:
    return f"{value['mean']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"


def _page(stores: dict[str, RunStore], rows: Sequence[dict[str, Any]], seed: int) -> bytes:
    arms, tables = [], {}
    for name, store in stores.items():
        metrics = store.metrics()
        curves = {title: [(row["step"], row.get(key)) for row in metrics] for title, (key, _) in _CURVES.items()}
        arms.append(Arm(name, curves))
    for when, last in (("first step", False), ("last step", True)):
        for name, store in stores.items():
            kept = list(store.rollouts())
            at = (max if last else min)(row["step"] for row in kept)
            tables[f"{name}, {when}"] = [row for row in kept if row["step"] == at]
    units = {title: unit for title, (_, unit) in _CURVES.items()}
    study = Study(f"{NOTE} Seed {seed}.", _COLUMNS, table(rows), arms, units)
    return render_study(study, tables, groups=4, title="Four credit schemes, one tiny policy")
