"""One rank of a distributed TRL run: a module of its own, so that spawned processes can import it."""

from __future__ import annotations

import os
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from adapters.independent import HighDigits
from stepcredit import GDPO, GRPO, PASS, SPRO, InputError
from stepcredit.adapters.trl import CreditStep, attach
from trl_trainer import has_line_end, make_model, make_trainer, scripted, share_of_even

ROWS, STEPS = 12, 2  # a generation batch of three groups of four, so that two ranks share the middle one


def brevity(completions: list[str], **_: Any) -> list[float | None]:
    """Says nothing about a long completion."""
    return [1 - len(text) / 10 if len(text) < 8 else None for text in completions]


def runs() -> dict[str, tuple[Any, dict[str, Any], dict[str, Any]]]:
    """Estimator, options of `attach`, and settings of the trainer."""
    text = {"signal": HighDigits(), "format": ["has_line_end"]}
    return {
        "grpo": (GRPO(), {"outcome": ["share_of_even", "has_line_end", "brevity"]}, {}),
        "pass": (PASS(k=0.7), {**text, "outcome": ["share_of_even", "brevity"]}, {"mask_truncated_completions": True}),
        "spro": (SPRO(beta=0.5), {"ref_model": make_model(seed=1)}, {}),
        "gdpo": (GDPO(), {"format": ["has_line_end"], "outcome": ["brevity"]}, {"reward_weights": [0.5, 1.0, 2.0]}),
    }


def write_down(steps: list[dict[str, Any]], step: CreditStep) -> None:
    rows = zip(step.credit.advantages.tolist(), step.rollouts.token_ids or [], strict=True)
    steps.append(
        {
            "prompts": list(step.rollouts.prompts),
            "ids": step.rollouts.token_ids,
            "width": step.batch.response_mask.shape[1],
            "credit": [row[: len(ids)] for row, ids in rows],
        }
    )


def train(rank: int, ranks: int, port: int, out: str) -> None:
    """Trains every run and writes down, by run, this rank's credit, the numbers that were logged, and the weights."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if ranks > 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE=str(ranks))
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(ranks))
    records = {}
    for name, (estimator, options, settings) in runs().items():
        steps: list[dict[str, Any]] = []
        trainer = make_trainer(
            Path(out) / name, reward_funcs=[share_of_even, has_line_end, brevity], max_steps=STEPS, optim="sgd",
            per_device_train_batch_size=ROWS // ranks, extra={"rollout_func": scripted(holes=name != "pass")},
            learning_rate=0.1, ddp_backend="gloo" if ranks > 1 else None, **settings,
        )  # fmt: skip
        attach(trainer, estimator, on_credit=partial(write_down, steps), **options)
        trainer.train()
        records[name] = {
            "steps": steps,
            "history": [row for row in trainer.state.log_history if "loss" in row],
            "logged": list(trainer._logs["advantages"]),
            "weights": {key: x.clone() for key, x in trainer.model.state_dict().items()},
        }
    if ranks > 1:
        records["refused"] = refused(Path(out) / "refused", rank, ranks)
    torch.save(records, Path(out) / f"{ranks}-{rank}.pt")
    if ranks > 1:
        dist.barrier()
        dist.destroy_process_group()


class OneRankFails(HighDigits):
    """A server that one rank cannot reach."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def score(self, rollouts: Any) -> Any:
        if self.rank == 1:
            raise OSError("no route to the server")
        return super().score(rollouts)


def refused(out: Path, rank: int, ranks: int) -> str:
    """How a training ends on this rank whose signal fails on another."""
    trainer = make_trainer(
        out, reward_funcs=[share_of_even], max_steps=1, per_device_train_batch_size=ROWS // ranks,
        extra={"rollout_func": scripted(holes=False)}, ddp_backend="gloo",
    )  # fmt: skip
    attach(trainer, PASS(), signal=OneRankFails(rank))
    try:
        trainer.train()
    except (OSError, InputError) as error:
        return f"{type(error).__name__}: {error}"
    return "trained"
