"""The two ways of writing an evaluation's turns, our loop and Transformers' `generate`, give the same rows."""

from typing import Any

import pytest
import torch

from stepcredit.runs import generating
from stepcredit.runs.evaluate import evaluate
from stepcredit.runs.policies import load_policy
from stepcredit.tasks import Arithmetic, MultiHopSearch, Task


@pytest.mark.parametrize(
    ("name", "task", "limit"),
    [("tiny-arithmetic", Arithmetic(operations=4), 40), ("tiny-multihop", MultiHopSearch(), 200)],
)
def test_both_write_the_same_rows(name: str, task: Task, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load_policy(name, dtype=torch.float64)
    calls: list[bool] = []
    generate = generating._generate

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(True)
        return generate(*args, **kwargs)

    monkeypatch.setattr(generating, "_generate", counted)

    def rows() -> Any:
        calls.clear()
        examples = task.examples("test", 12)
        return evaluate(
            policy.model, policy.tokenizer, task, examples, samples=2, max_new_tokens=limit, batch_size=18
        ).rows

    ours = rows()
    assert not calls
    monkeypatch.setattr(generating, "steps_through_layers", lambda _: False)
    theirs = rows()
    assert calls
    assert {row.finished for row in ours} >= {True}
    assert len({row.length for row in ours}) > 2  # rows leave at different times
    for mine, other in zip(ours, theirs, strict=True):
        for field in ("id", "sample", "completion", "finished", "length", "turns", "correct"):
            assert getattr(mine, field) == getattr(other, field)
        assert mine.entropy == pytest.approx(other.entropy, abs=2e-6)
