"""A real TRL trainer of a tiny model that is handed rollouts instead of sampling them."""

import logging
import os
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stepcredit.batch import RolloutBatch
from stepcredit.errors import MissingExtraError
from stepcredit.lab.peers.unsupported import UnsupportedError


class Host:
    """Makes the trainer when it is first used, one for each set of reward functions, and keeps it.

    Args:
        kind: "GRPOTrainer" or "RLOOTrainer".
        settings: Of the trainer's config.
        prepare: Called with each trainer that is made; may change it.
    """

    def __init__(self, kind: str, settings: Mapping[str, Any], prepare: Callable[[Any], Any] | None = None) -> None:
        self.kind, self.settings, self.prepare = kind, dict(settings), prepare
        self.channels: dict[str, list[float | None]] = {}
        self.ids: list[list[int]] = []
        self.masks: list[list[int]] = []
        self.batch: RolloutBatch | None = None
        self._trainers: dict[tuple[str, ...], Any] = {}

    def advantages(self, batch: RolloutBatch, channels: Mapping[str, Tensor]) -> Tensor:
        """What the trainer's loss would be given, [batch, time], 0 where it does not train.

        Args:
            batch: The rollouts. A row that does not count has no reward in any channel, which TRL knows as None.
            channels: Reward functions by name: float [batch].

        Raises:
            UnsupportedError: The groups differ in size, or are of one rollout; RLOO also refuses tool output.
        """
        order, size = _contiguous(batch)
        given = {name: _rewards(x, batch, order) for name, x in channels.items()}
        output = self.scored(batch, order, size, given)
        advantages = output["advantages"]
        loss_mask = output["completion_mask"] * output.get("tool_mask", 1)
        found = (advantages if advantages.ndim == 2 else advantages[:, None]) * loss_mask
        whole = torch.zeros(batch.response_mask.shape, dtype=found.dtype)
        whole[order, : found.shape[1]] = found[:, : whole.shape[1]].cpu()
        return whole

    def scored(
        self, batch: RolloutBatch, order: Sequence[int], size: int, channels: Mapping[str, list[float | None]]
    ) -> dict[str, Any]:
        """The trainer's own batch, scored, of the rollouts in that order."""
        self.channels = dict(channels)
        self._take(batch, order)
        trainer = self._trainer(tuple(channels))
        trainer.num_generations = size
        trainer.model.train()
        inputs = [{"prompt": f"{i // size}\n"} for i in range(len(order))]
        found: dict[str, Any] = trainer._generate_and_score_completions(inputs)
        return found

    def trainer(self) -> Any:
        """The trainer, made for one reward function if none has been."""
        return next(iter(self._trainers.values()), None) or self._trainer(("outcome",))

    def _take(self, batch: RolloutBatch, order: Sequence[int]) -> None:
        """The rollouts as ids and masks; each at least a token long, which TRL supposes."""
        self.batch, self.ids, self.masks = batch, [], []
        for row in batch.response_mask[list(order)].int().tolist():
            length = max([t + 1 for t, on in enumerate(row) if on], default=1)
            self.masks.append(row[:length])
            self.ids.append([5 + t % 8 for t in range(length)])
        if self.kind == "RLOOTrainer" and any(not all(mask) for mask in self.masks):
            raise UnsupportedError("TRL's RLOOTrainer knows no tool output")

    def _trainer(self, names: tuple[str, ...]) -> Any:
        if names not in self._trainers:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made = _made(self, names)
            self._trainers[names] = made if self.prepare is None else self.prepare(made)
        return self._trainers[names]


def _contiguous(batch: RolloutBatch) -> tuple[list[int], int]:
    """The rows with those of a group in a row, as TRL's sampler has them, and the groups' size."""
    labels = batch.group_ids.tolist()
    order = sorted(range(len(labels)), key=lambda i: (labels.index(labels[i]), i))
    sizes = {labels.count(label) for label in labels}
    if len(sizes) != 1 or sizes == {1}:
        raise UnsupportedError("TRL's groups have one size, of two and more")
    return order, sizes.pop()


def _rewards(x: Tensor, batch: RolloutBatch, order: Sequence[int]) -> list[float | None]:
    counts = [True] * len(order) if batch.row_mask is None else batch.row_mask.tolist()
    return [float(x[i]) if counts[i] else None for i in order]


def _made(host: Host, names: Sequence[str]) -> Any:
    """A trainer whose rollouts and rewards are the host's."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # a rollout_func is experimental
    try:
        import trl
        from datasets import Dataset
    except ImportError as error:
        raise MissingExtraError("trl", "trl", f"drive its trainers ({error})") from None
    from stepcredit.runs.tiny import tiny_model, tiny_tokenizer

    for name in ("grpo_trainer", "rloo_trainer"):  # a row without a reward is meant here
        logging.getLogger(f"trl.trainer.{name}").setLevel(logging.ERROR)

    kind, tokenizer = getattr(trl, host.kind), tiny_tokenizer()
    config = getattr(trl, host.kind.replace("Trainer", "Config"))
    more: dict[str, Any] = {"beta": 0.0}
    if host.kind == "RLOOTrainer":
        kind = type("HostedRLOOTrainer", (kind,), {"_generate_single_turn": lambda *_a, **_k: host.ids})
    folder = tempfile.mkdtemp(prefix="stepcredit-")
    weakref.finalize(host, shutil.rmtree, folder, ignore_errors=True)
    settings = config(
        output_dir=folder, use_cpu=True, bf16=False, report_to="none", save_strategy="no", disable_tqdm=True,
        per_device_train_batch_size=4, num_generations=4, gradient_checkpointing=False, **(more | host.settings),
    )  # fmt: skip

    def rollouts(prompts: Sequence[str], _trainer: Any) -> dict[str, Any]:
        prompt_ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
        return {"prompt_ids": prompt_ids, "completion_ids": host.ids, "logprobs": None, "env_mask": host.masks}

    extra = {"rollout_func": rollouts} if host.kind == "GRPOTrainer" else {}
    data = Dataset.from_list([{"prompt": f"{i}\n"} for i in range(8)])
    return kind(
        model=tiny_model(), reward_funcs=[_reward_function(host, name) for name in names], args=settings,
        train_dataset=data, processing_class=tokenizer, **extra,
    )  # fmt: skip


def _reward_function(host: Host, name: str) -> Callable[..., list[float | None]]:
    def function(**_: Any) -> list[float | None]:
        return host.channels[name]

    function.__name__ = name
    return function
