"""A run on verl from start to end around a stand-in for verl's process: failed, killed, resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from stepcredit import StepCreditError
from stepcredit.config.run import RunConfig, load_config
from stepcredit.errors import InputError
from stepcredit.runs.policies import load_policy
from stepcredit.runs.store import RunStore
from stepcredit.runs.verl import run
from stepcredit.runs.verl.overrides import verl_overrides

STAND_IN = str(Path(__file__).with_name("verl_stand_in.py"))


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_TRAINER", (STAND_IN,))
    monkeypatch.setattr(run, "resolved", lambda config, folder: verl_overrides(config, folder, reads=frozenset()))


def plan(monkeypatch: pytest.MonkeyPatch, **what: Any) -> None:
    monkeypatch.setenv("STAND_IN_PLAN", json.dumps(what))


def config(**settings: Any) -> RunConfig:
    small = {"run.engine": "verl", "run.steps": 6, "run.checkpoint_every": 2, "evaluation.problems": 0}
    return load_config("demo-grpo", {**small, **settings})


def steps(folder: Path) -> list[int]:
    return [row["step"] for row in RunStore.open(folder).metrics()]


def test_a_run_from_start_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan(monkeypatch)
    said: list[str] = []
    result = run.start(config(**{"evaluation.problems": 4}), tmp_path / "run", say=said.append)
    assert (result["status"], result["steps"]) == ("finished", 6)
    assert result["metrics"]["critic/score/mean"] == 0.6
    assert set(result["evaluations"]) == {"start", "end"}
    assert steps(tmp_path / "run") == [1, 2, 3, 4, 5, 6]
    assert load_policy(tmp_path / "run" / "policy").tokenizer.eos_token_id is not None
    assert "step 6: reward 0.6" in said


def test_a_failure_is_one_error_with_the_logs_end_and_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan(monkeypatch, until=5, error="out of memory")
    with pytest.raises(StepCreditError, match=r"(?s)verl ended with 1.*ValueError: out of memory$") as caught:
        run.start(config(), tmp_path / "run")
    assert "last words" not in str(caught.value)
    assert steps(tmp_path / "run") == [1, 2, 3, 4, 5]
    plan(monkeypatch)
    result = run.resume(tmp_path / "run")
    assert (result["status"], result["steps"]) == ("finished", 6)
    assert steps(tmp_path / "run") == [1, 2, 3, 4, 5, 6]


def test_rows_up_to_a_checkpoint_survive_whenever_the_kill_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed behind the checkpoint of step 4 and before its row: step 3's row is behind the last commit, and kept."""
    plan(monkeypatch, kill_between=4)
    with pytest.raises(StepCreditError, match="verl ended with 1"):
        run.start(config(), tmp_path / "run")
    assert RunStore.open(tmp_path / "run").index["step"] in (2, 3)  # as the rows were read
    plan(monkeypatch)
    said: list[str] = []
    run.resume(tmp_path / "run", say=said.append)
    assert steps(tmp_path / "run") == [1, 2, 3, 5, 6]  # verl went on at 5, and never wrote 4


def test_a_kill_after_the_last_step_still_ends_in_a_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan(monkeypatch)
    monkeypatch.setattr(run, "copy_weights", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run.start(config(), tmp_path / "run")
    assert RunStore.open(tmp_path / "run").index["step"] == 6
    monkeypatch.undo()
    monkeypatch.setattr(run, "resolved", lambda config, folder: verl_overrides(config, folder, reads=frozenset()))
    result = run.resume(tmp_path / "run")  # nothing trains again
    assert result["status"] == "finished"
    assert (tmp_path / "run" / "policy" / "config.json").is_file()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_verl_ends_with_the_process_that_started_it(tmp_path: Path, how: signal.Signals) -> None:
    code = f"""
from pathlib import Path
from runs.test_verl_runs import STAND_IN, config
from stepcredit.runs.verl import run
from stepcredit.runs.verl.overrides import verl_overrides
run._TRAINER = (STAND_IN,)
run.resolved = lambda config, folder: verl_overrides(config, folder, reads=frozenset())
run.start(config(), {str(tmp_path / "run")!r})
"""
    pid_file = tmp_path / "pid"
    environment = {
        **os.environ, "PYTHONPATH": str(Path(__file__).parents[1]),
        "STAND_IN_PLAN": json.dumps({"until": 1, "sleep": 120, "pid_file": str(pid_file)}),
    }  # fmt: skip
    parent = subprocess.Popen([sys.executable, "-c", code], env=environment)
    deadline = time.monotonic() + 60
    while not (pid_file.is_file() and pid_file.read_text()):
        assert time.monotonic() < deadline
        assert parent.poll() is None
        time.sleep(0.1)
    child = int(pid_file.read_text())
    parent.send_signal(how)
    parent.wait(30)
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split(")")[1][:3]:
        assert time.monotonic() < deadline, "it outlived its parent"
        time.sleep(0.1)


def test_a_limit_below_the_longest_prompt_is_refused_before_anything_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan(monkeypatch)
    with pytest.raises(
        InputError, match=r"`verl.data.max_prompt_length` must hold the longest prompt, \d+ tokens; got 3"
    ):
        run.start(config(**{"verl.data.max_prompt_length": 3}), tmp_path / "run")
