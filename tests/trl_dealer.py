"""TRL's trainers over rewards that are given: what they make of any numbers, generation batch by generation batch."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from trl import RLOOConfig, RLOOTrainer

from stepcredit import Estimator
from stepcredit.adapters.trl import attach
from trl_trainer import generate, make_trainer, scripted

PROMPTS, GROUP = 3, 4
Rewards = dict[str, list[float | None]]


class Dealer:
    """A trainer whose reward functions give what they are told to."""

    def __init__(
        self,
        folder: Any,
        names: tuple[str, ...],
        settings: dict[str, Any],
        *,
        rloo: bool = False,
        script: bool = False,
        credit: Estimator | None = None,
    ) -> None:
        self.rewards: Rewards = {}
        defaults: dict[str, Any] = {
            "num_generations": GROUP, "per_device_train_batch_size": PROMPTS * GROUP, "max_completion_length": 4,
            **({"trainer": RLOOTrainer, "config": RLOOConfig} if rloo else {}),
            **({"extra": {"rollout_func": scripted()}} if script else {}),
        }  # fmt: skip
        self.trainer = make_trainer(
            folder, reward_funcs=[self._function(name) for name in names], **(defaults | settings)
        )
        if credit is not None:
            attach(self.trainer, credit, outcome=["outcome"])

    def _function(self, name: str) -> Callable[..., list[float | None]]:
        def reward(completions: list[str], **_: Any) -> list[float | None]:
            assert len(completions) == len(self.rewards[name])
            return self.rewards[name]

        reward.__name__ = name
        return reward

    def deal(self, rewards: Rewards, *, evaluating: bool = False) -> dict[str, Tensor]:
        """What the loss would be given."""
        self.rewards = rewards
        if not evaluating:
            return generate(self.trainer, n_prompts=PROMPTS)
        self.trainer.model.eval()
        rows = [dict(self.trainer.train_dataset[i]) for i in range(len(next(iter(rewards.values()))))]
        return self.trainer._generate_and_score_completions(rows)
