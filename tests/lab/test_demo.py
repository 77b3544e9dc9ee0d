import json
import subprocess
import sys
from pathlib import Path

import pytest

from stepcredit.errors import InputError, StepCreditError
from stepcredit.lab import demo
from stepcredit.runs.store import RunStore


def test_the_smoke_demo_trains_four_arms_and_draws_them(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "stepcredit", "demo", "--smoke", "--out", str(tmp_path / "demo"), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert [row["scheme"] for row in result["rows"]] == list(demo.ARMS.values())
    page = Path(result["files"]["page.html"]).read_text()
    assert "claims no winner" in page
    stores = [RunStore.open(tmp_path / "demo" / recipe) for recipe in demo.ARMS]
    firsts = [[row["completion"] for row in store.rollouts(1)] for store in stores]
    assert all(first == firsts[0] for first in firsts)  # one seed: the arms begin with the same rollouts
    credits = [[row["advantages"] for row in store.rollouts(1)] for store in stores]
    assert credits[0] != credits[2]
    for row, store in zip(result["rows"], stores, strict=True):
        assert row["after"]["pass@1"]["mean"] == store.evals()["end"]["metrics"]["pass@1"]["mean"]


def test_an_arm_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "ARMS", {"no-such-recipe": "none"})
    with pytest.raises(StepCreditError, match=r"none failed with exit code 1: .*must be a TOML file or a recipe"):
        demo.run_demo(tmp_path / "demo", say=lambda _: None)


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`--out` must be a new folder"):
        demo.run_demo(tmp_path, say=lambda _: None)
