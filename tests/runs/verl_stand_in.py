"""Stands for verl's trainer in a test: checkpoints and metrics as verl writes them, a step at a time, and then an end.

Its last argument is a plan, JSON: ``until`` (the step at which it stops), ``error`` (what it prints before it fails),
``sleep`` (seconds at its end). It goes on from its last checkpoint, as verl does.
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path


def main() -> None:
    settings = dict(word[2:].split("=", 1) for word in sys.argv[1:] if word.startswith("++"))
    plan = json.loads(os.environ["STAND_IN_PLAN"])
    folder = Path(settings["trainer.default_local_dir"])
    tracker = folder / "latest_checkpointed_iteration.txt"
    begin = int(tracker.read_text()) if tracker.is_file() else 0
    assert settings["trainer.resume_mode"] == "auto"
    with open(os.environ["VERL_FILE_LOGGER_PATH"], "ab", buffering=0) as metrics:
        for step in range(begin + 1, int(settings["trainer.total_training_steps"]) + 1):
            if step % int(settings["trainer.save_freq"]) == 0:
                weights = folder / f"global_step_{step}" / "actor" / "huggingface"
                shutil.copytree(settings["actor_rollout_ref.model.path"], weights)
                tracker.write_text(str(step))
            if step == plan.get("kill_between"):
                sys.exit("killed between the checkpoint and the row")
            row = {"step": step, "data": {"critic/score/mean": step / 10, "note": "text", "pid": os.getpid()}}
            metrics.write(json.dumps(row).encode() + b"\n")
            if step == plan.get("until"):
                break
    Path(plan.get("pid_file", os.devnull)).write_text(str(os.getpid()))
    time.sleep(plan.get("sleep", 0))
    if "error" in plan:
        print("a line before\nValueError: " + plan["error"] + "\nINFO: Ray's last words")
        sys.exit(1)


if __name__ == "__main__":
    main()
