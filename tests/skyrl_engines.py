"""SkyRL's way from a generator's rewards to an advantage estimator: as its source (0.3.0) does it, and SkyRL itself."""

import pickle
import random
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stepcredit.adapters.skyrl import CreditTrainer, Function, register

MODULE = "skyrl.backends.skyrl_train.utils.ppo_utils"


@dataclass
class Conversation:
    """Turns of the policy, (tokens, reward) each, with tool output of so many tokens between them."""

    uid: str
    turns: list[tuple[int, float]]
    tools: list[int]
    trained: bool = True

    @property
    def loss_mask(self) -> list[int]:
        parts = [[1] * n + [0] * tool for (n, _), tool in zip(self.turns, [*self.tools, 0], strict=True)]
        return [kept * self.trained for part in parts for kept in part]

    @property
    def rewards(self) -> list[float]:
        """Each turn's reward on its last token, as SkyRL's generator has it."""
        parts = [[0.0] * (n - 1) + [r] + [0.0] * t for (n, r), t in zip(self.turns, [*self.tools, 0], strict=True)]
        return [reward for part in parts for reward in part]

    def logprobs(self, role: str) -> list[float]:
        rng = random.Random(f"{role} {self.uid} {self.turns} {self.tools}")
        return [rng.uniform(-2, 0) for _ in self.rewards]


def conversations(seed: int, *, most_turns: int = 4) -> list[Conversation]:
    rng = random.Random(seed)
    made = []
    for prompt in range(3):
        for _ in range(rng.choice([1, 3, 4])):
            n = rng.randint(1, most_turns)
            made.append(
                Conversation(
                    f"prompt {prompt}",
                    [(rng.randint(1, 4), rng.choice([0.0, 0.0, 0.25, 1.0, -0.5])) for _ in range(n)],
                    [rng.randint(1, 3) for _ in range(n - 1)],
                    trained=rng.random() < 0.9,
                )
            )
    return [*made, Conversation("prompt 0", [(2, 1.0)], [])]


def aligned(rows: list[list[float]], fill: Any = 0) -> list[list[Any]]:
    """SkyRL's layout: responses end where the tensor ends."""
    width = max(map(len, rows))
    return [[fill] * (width - len(row)) + row for row in rows]


def plain(rollouts: list[Conversation], *, loss_mask: bool, by_turns: bool = False) -> dict[str, Any]:
    """The same as `references` reads it."""
    masks = [c.loss_mask if loss_mask else [1] * len(c.rewards) for c in rollouts]
    batch: dict[str, Any] = {
        "mask": [[bool(kept) for kept in row] for row in aligned(masks)],
        "group": [c.uid for c in rollouts],
        "rewards": [c.turns[-1][1] if by_turns else sum(c.rewards) for c in rollouts],
        "old": aligned([c.logprobs("old") for c in rollouts]),
        "ref": aligned([c.logprobs("ref") for c in rollouts]),
    }
    if by_turns:
        ids, scores = [], []
        for c in rollouts:
            row_ids: list[int] = []
            row_scores: list[float] = []
            for turn, ((n, reward), tool) in enumerate(zip(c.turns, [*c.tools, 0], strict=True)):
                row_ids += [turn if turn < len(c.turns) - 1 else -1] * n + [-1] * tool
                row_scores += [reward] * (n + tool)
            ids.append(row_ids)
            scores.append(row_scores)
        batch |= {"step_ids": aligned(ids, -1), "process": aligned(scores, 0.0)}
    return batch


class StandIn:
    """What SkyRL's source does around the hook."""

    def __init__(self) -> None:
        self.functions: dict[str, Callable[..., Any]] = {}

    def register(self, name: str, function: Callable[..., Any]) -> None:
        self.functions[name] = pickle.loads(pickle.dumps(function))  # by cloudpickle, through a Ray actor, there

    def batch(self, rollouts: list[Conversation], pad: int) -> Any:
        mask = torch.tensor(aligned([[1] * len(c.rewards) for c in rollouts]))
        loss_mask = torch.tensor(aligned([c.loss_mask for c in rollouts])).float()
        columns = {"response_mask": mask, "rewards": torch.tensor(aligned([c.rewards for c in rollouts]))}
        for name, role in (("action_log_probs", "old"), ("base_action_log_probs", "ref")):
            columns[name] = torch.tensor(aligned([c.logprobs(role) for c in rollouts]))
        copied = {name: torch.cat([x, x[[0] * pad]]) for name, x in columns.items()}
        filled = torch.cat([loss_mask, torch.zeros(pad, loss_mask.shape[1])])
        uids = [c.uid for c in rollouts] + [f"pad{i}" for i in range(pad)]
        return Data(copied | {"loss_mask": filled, "values": None}, uids)

    def trainer(self, name: str, *, inherits: bool, step_wise: bool, **algorithm: Any) -> Any:
        functions = self.functions

        class Stock:
            cfg = SimpleNamespace(
                generator=SimpleNamespace(step_wise_trajectories=step_wise),
                trainer=SimpleNamespace(algorithm=SimpleNamespace(**algorithm)),
            )

            def compute_advantages_and_returns(self, data: Any) -> Any:
                mask, rewards = data["response_mask"], data["rewards"]
                data["advantages"], data["returns"] = functions[name](
                    token_level_rewards=rewards,
                    response_mask=torch.ones_like(mask, dtype=torch.float) if step_wise else mask,
                    index=data.metadata["uids"],
                    values=data["values"],
                    grpo_norm_by_std=True,
                    gamma=1.0,
                    lambd=1.0,
                    config=self.cfg.trainer.algorithm,
                )
                return data

        return type("Trainer", (CreditTrainer, Stock), {})() if inherits else Stock()


class Data(dict[str, Any]):
    """A batch with metadata, as SkyRL's is."""

    def __init__(self, columns: dict[str, Any], uids: list[str]) -> None:
        super().__init__(columns)
        self.metadata = {"uids": uids}


class Installed(StandIn):
    """SkyRL itself."""

    def register(self, name: str, function: Function) -> None:
        ppo_utils = pytest.importorskip(MODULE)
        if name in ppo_utils.AdvantageEstimatorRegistry.list_available():
            ppo_utils.AdvantageEstimatorRegistry.unregister(name)
        register(
            name, function.estimator, process=function.process, signal=function.signal,
            from_trainer=function.from_trainer, ref_model=function.ref_model,
        )  # fmt: skip
        cloudpickle = pytest.importorskip("cloudpickle")
        assert cloudpickle.loads(cloudpickle.dumps(function)) == function

    def batch(self, rollouts: list[Conversation], pad: int) -> Any:
        from skyrl.backends.skyrl_train.training_batch import TrainingInputBatch, pad_training_input_batch
        from skyrl.train.dataset.preprocess import convert_prompts_responses_to_batch_tensors

        _, _, mask, rewards, loss_mask, old, _ = convert_prompts_responses_to_batch_tensors(
            SimpleNamespace(pad_token_id=0),
            [[7] * (1 + i % 3) for i, _ in enumerate(rollouts)],
            [[5] * len(c.rewards) for c in rollouts],
            [c.rewards for c in rollouts],
            [c.loss_mask for c in rollouts],
            [c.logprobs("old") for c in rollouts],
        )
        ref = torch.tensor(aligned([c.logprobs("ref") for c in rollouts]))
        columns = {"response_mask": mask, "rewards": rewards, "loss_mask": loss_mask, "action_log_probs": old}
        made = TrainingInputBatch(columns | {"base_action_log_probs": ref, "values": None})
        made.metadata = {"uids": [c.uid for c in rollouts], "avg_response_length": 1.0}
        made.metadata["is_last_step"] = [True] * len(rollouts)
        return pad_training_input_batch(made, pad)

    def trainer(self, name: str, *, inherits: bool, step_wise: bool, **algorithm: Any) -> Any:
        from skyrl.train.config import AlgorithmConfig
        from skyrl.train.trainer import RayPPOTrainer

        bases = (CreditTrainer, RayPPOTrainer) if inherits else (RayPPOTrainer,)
        trainer = object.__new__(type("Trainer", bases, {}))  # without its Ray actors
        trainer.cfg = SimpleNamespace(
            generator=SimpleNamespace(step_wise_trajectories=step_wise),
            trainer=SimpleNamespace(algorithm=AlgorithmConfig(advantage_estimator=name, **algorithm)),
        )
        trainer.all_metrics = {}
        return trainer
