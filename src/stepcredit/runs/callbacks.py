"""What listens to a training run: the run store, the progress line, and the observer of rollouts and credit."""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback

from stepcredit.adapters.trl import CreditStep
from stepcredit.runs.grading import TaskGrader
from stepcredit.runs.store import RunStore
from stepcredit.signals.offsets import token_offsets

Row = dict[str, Any]


class StoreCallback(TrainerCallback):  # type: ignore[misc]
    """Writes what the trainer logs to the run store, and commits with every checkpoint."""

    def __init__(self, store: RunStore, observer: "RolloutObserver", keep: int) -> None:
        self.store, self.observer, self.keep = store, observer, keep

    def on_log(self, _args: Any, state: Any, _control: Any, logs: Row | None = None, **_: Any) -> None:
        """One row a step; the summary that ends a training is no step."""
        if logs is None or "train_runtime" in logs:
            return
        numbers = {name: float(x) for name, x in logs.items() if isinstance(x, (int, float))}
        self.store.add_metrics(state.global_step, numbers)
        rows = self.observer.take()
        if rows:
            self.store.add_rollouts(state.global_step, rows)

    def on_save(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """The checkpoint is whole: from here on a killed run resumes after it."""
        self.store.commit(state.global_step, f"checkpoint-{state.global_step}", keep=self.keep)


class ProgressCallback(TrainerCallback):  # type: ignore[misc]
    """One line a step: how far, how fast, how long still, and whether it learns."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.begun, self.first = say, 0.0, 0

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Time counts from here."""
        self.begun, self.first = time.monotonic(), state.global_step

    def on_log(self, _args: Any, state: Any, _control: Any, logs: Row | None = None, **_: Any) -> None:
        """The line of the step."""
        if logs is None or "train_runtime" in logs:
            return
        pace = (time.monotonic() - self.begun) / max(state.global_step - self.first, 1)
        left = pace * (state.max_steps - state.global_step)
        shown = {"accuracy": "task/accuracy", "length": "credit/length", "entropy": "entropy"}
        numbers = ", ".join(f"{name} {logs[key]:.3g}" for name, key in shown.items() if logs.get(key) is not None)
        clock = f"{int(left) // 3600}:{int(left) // 60 % 60:02d}:{int(left) % 60:02d}"
        self.say(f"step {state.global_step}/{state.max_steps}, {pace:.2f} s/step, {clock} left; {numbers}")


class RolloutObserver:
    """Sees every batch of rollouts with its credit: the task's metrics, and now and then the rollouts themselves.

    Args:
        grader: The task's.
        estimator: The scheme's `type`.
        every: Steps from one kept batch to the next; 0 keeps none.
        kept: Rollouts of a batch that are kept.
        last: The last step, whose batch is kept too.
    """

    def __init__(self, grader: TaskGrader, estimator: str, *, every: int, kept: int, last: int) -> None:
        self.grader, self.estimator, self.every, self.kept, self.last = grader, estimator, every, kept, last
        self._rows: list[Row] = []

    def __call__(self, seen: CreditStep) -> dict[str, float]:
        """The task's metrics, over all ranks."""
        counts = self.grader.counts(seen.rollouts)
        totals = torch.tensor([*counts.values(), float(len(seen.rollouts))], dtype=torch.float64)
        if dist.is_available() and dist.is_initialized():
            totals = totals.to(seen.batch.response_mask.device)
            dist.all_reduce(totals)
        *sums, n = totals.tolist()
        step = seen.step + 1  # the trainer counts finished steps
        if seen.mode == "train" and self.every and (step == 1 or step % self.every == 0 or step == self.last):
            self._rows = self._kept_rows(seen)
        return {f"task/{name}": total / n if n else math.nan for name, total in zip(counts, sums, strict=True)}

    def take(self) -> list[Row]:
        """The rows kept since the last call."""
        rows, self._rows = self._rows, []
        return rows

    def _kept_rows(self, seen: CreditStep) -> list[Row]:
        """Rows as `stepcredit score` writes them, from the tensors that train."""
        rollouts, batch = seen.rollouts, seen.batch
        advantages, segments = seen.credit.advantages.tolist(), seen.credit.segment_ids().tolist()
        terms = {name: term.tolist() for name, term in seen.credit.terms().items()}
        rewards = None if batch.rewards is None else batch.rewards.tolist()
        live, rows = set(batch.layout.live.tolist()), []
        for i in range(min(self.kept, len(rollouts))):
            ids = (rollouts.token_ids or [])[i]
            n = len(ids)
            rows.append(
                {
                    "row": i + 1,
                    "group": str(rollouts.group_ids[i]),
                    "prompt": rollouts.prompts[i],
                    "completion": rollouts.completions[i],
                    "reward": None if rewards is None else rewards[i],
                    "counted": i in live,
                    "estimator": self.estimator,
                    "offsets": [list(x) for x in token_offsets(self.grader.tokenizer, ids, rollouts.completions[i])],
                    "token_ids": list(ids),
                    "advantages": advantages[i][:n],
                    "segment_ids": segments[i][:n],
                    "terms": {name: term[i][:n] for name, term in terms.items()},
                }
            )
        return rows
