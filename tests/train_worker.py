"""Trains a small run again and again in forked children that are killed -9, and resumes it until it is finished.

python tests/train_worker.py FOLDER KILLS SEED [RECIPE[,table.key=value...]]: FOLDER/whole is never killed,
FOLDER/killed so many times.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

from stepcredit.config import load_config, parse_overrides
from stepcredit.runs.store import RunStore
from stepcredit.runs.train import resume, start

SETTINGS = {
    "run.steps": 12, "run.checkpoint_every": 2, "run.rollouts_every": 3, "run.kl_every": 3, "task.operations": 3,
    "evaluation.problems": 8, "trainer.per_device_train_batch_size": 8, "trainer.gradient_accumulation_steps": 2,
    "trainer.steps_per_generation": 4, "trainer.num_generations": 4, "trainer.max_completion_length": 40,
}  # fmt: skip


def attempt(folder: Path, recipe: str) -> int:
    """A child process that starts or goes on with the run."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        if folder.exists():
            resume(folder)
        else:
            name, *more = recipe.split(",")
            start(load_config(name, SETTINGS | parse_overrides(more)), folder)
        code = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)
    return 0


def main(folder: Path, kills: int, seed: int, recipe: str = "demo-spro") -> None:
    """The run that lives and the run that is killed."""
    begun = time.monotonic()
    whole = attempt(folder / "whole", recipe)
    assert os.waitpid(whole, 0)[1] == 0
    seconds = time.monotonic() - begun
    rng, killed = random.Random(seed), 0
    while killed < kills:
        child = attempt(folder / "killed", recipe)
        time.sleep(rng.uniform(0.05, 0.6) * seconds)
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status):
            killed += 1
        elif status:
            raise SystemExit(f"a resumed run failed with status {status}")
        if (folder / "killed").exists() and RunStore.open(folder / "killed").index["status"] == "finished":
            break
    if RunStore.open(folder / "killed").index["status"] != "finished":
        assert os.waitpid(attempt(folder / "killed", recipe), 0)[1] == 0
    print(f"killed {killed} times; a whole run takes {seconds:.1f} s")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
