"""A signal that learns inside a run: what it is shown, and that its state goes with the trainer's checkpoints."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from stepcredit import GRPO, PASS, GRPOProcess, Guard, InputError, Rollouts
from stepcredit.adapters.trl import CreditStep, attach
from stepcredit.adapters.trl.learning import FILE, chosen, joined
from stepcredit.batch import ScoredSpan
from trl_trainer import generate, has_line_end, make_trainer, share_of_even


class Count:
    """Scores every line by how many rollouts it has learned from, and remembers their outcomes."""

    name, unit, requires = "count", "rollouts", frozenset({"steps"})

    def __init__(self, when: str = "after") -> None:
        self.seen, self.outcomes, self.when = torch.zeros(1), [], when

    def score(self, rollouts: Rollouts) -> list[list[ScoredSpan]]:
        return [[ScoredSpan(*span, float(self.seen)) for span in row] for row in rollouts.steps or []]

    def update(self, rollouts: Rollouts, outcomes: Sequence[float]) -> Mapping[str, float]:
        assert len(rollouts) == len(outcomes)
        self.seen += len(rollouts)
        self.outcomes.append(list(outcomes))
        return {"seen": float(self.seen)}

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen.clone(), "outcomes": self.outcomes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seen, self.outcomes = state["seen"], state["outcomes"]


def attached(tmp_path: Path, signal: Any, **settings: Any) -> tuple[Any, list[CreditStep]]:
    trainer, steps = make_trainer(tmp_path, **settings), []
    options: dict[str, Any] = {"format": ["has_line_end"], "on_credit": steps.append}
    return attach(trainer, GRPOProcess(fusion="separate"), signal=signal, **options), steps


@pytest.mark.parametrize(("when", "scores"), [("after", [0, 8]), ("before", [8, 16])])
def test_it_learns_from_every_training_batch_once(when: str, scores: list[int], tmp_path: Path) -> None:
    signal = Count(when)
    trainer, steps = attached(tmp_path, signal)
    trainer.train()
    covered = [s.batch.process_rewards[s.batch.step_ids >= 0].unique().tolist() for s in steps]
    assert covered == [[score] for score in scores]
    assert signal.outcomes == [pytest.approx(step.batch.rewards.tolist()) for step in steps]
    assert [row["signal/seen"] for row in trainer.state.log_history[:2]] == [8, 16]


def test_it_does_not_learn_from_evaluation(tmp_path: Path) -> None:
    trainer, _ = attached(tmp_path, Count())
    generate(trainer)
    trainer.model.eval()
    trainer._generate_and_score_completions([dict(trainer.train_dataset[0])] * 4)
    assert float(trainer._credit.signal.seen) == 8


def test_rollouts_that_do_not_count_teach_nothing(tmp_path: Path) -> None:
    signal = Count()

    def some(completions: list[str], **_: Any) -> list[float | None]:
        return [None if i == 2 else 1.0 for i in range(len(completions))]

    trainer = make_trainer(tmp_path, reward_funcs=[some])
    attach(trainer, PASS(), signal=signal)
    generate(trainer)
    assert [len(row) for row in signal.outcomes] == [7]


def test_its_state_resumes_with_the_trainer(tmp_path: Path) -> None:
    whole, killed, resumed = Count(), Count(), Count()
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "lr_scheduler_type": "constant"}
    attached(tmp_path / "whole", whole, **settings)[0].train()
    trainer, _ = attached(tmp_path / "killed", killed, **settings)
    trainer.args.max_steps = 2
    trainer.train()
    checkpoint = tmp_path / "killed" / "checkpoint-2"
    assert (checkpoint / FILE).is_file()
    trainer, steps = attached(tmp_path / "killed", resumed, **settings)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert steps[0].batch.process_rewards.max() == 16
    assert resumed.outcomes == whole.outcomes
    assert float(resumed.seen) == float(whole.seen) == 32
    (checkpoint / FILE).unlink()
    with pytest.raises(InputError, match=r"`resume_from_checkpoint` must have signal_state.pt for count"):
        attached(tmp_path / "killed", Count(), **settings)[0].train(resume_from_checkpoint=str(checkpoint))


def test_a_guard_stands_between_signal_and_credit(tmp_path: Path) -> None:
    signal = Count()
    signal.seen += 3
    trainer, steps = make_trainer(tmp_path), []
    attach(
        trainer, PASS(), signal=signal, guard=Guard(differences="gain", start=0.0), outcome=["share_of_even"],
        format=["has_line_end"], on_credit=steps.append,
    )  # fmt: skip
    generate(trainer)
    batch = steps[0].batch
    first = batch.process_rewards[batch.step_ids == 0]
    assert first.unique().tolist() == [3]
    assert batch.process_rewards[batch.step_ids > 0].unique().tolist() == [0]
    with pytest.raises(InputError, match=r"`guard` must come with a signal"):
        attach(make_trainer(tmp_path, reward_funcs=[share_of_even, has_line_end]), GRPO(), guard=Guard())


def test_rollouts_of_ranks_are_joined_row_by_row() -> None:
    a = Rollouts(["p", "q"], ["x", "y"], group_ids=[0, 1], references=["1", "2"], token_ids=[[1], [2, 3]])
    b = Rollouts(["r"], ["z"], group_ids=[2], token_ids=[[4]])
    both = joined([chosen(a, [1]), b])
    assert (both.prompts, both.completions, both.group_ids) == (["q", "r"], ["y", "z"], [1, 2])
    assert both.token_ids == [[2, 3], [4]]
    assert both.references is None
