"""verl's advantage functions, with the arguments that its trainer's `compute_advantage` gives them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stepcredit.batch import RolloutBatch
from stepcredit.errors import MissingExtraError
from stepcredit.lab.peers.unsupported import UnsupportedError

VOCABULARY = 32_000
"""Of the stand-in for verl's sum of squared probabilities, which a `RolloutBatch` does not hold."""

_WHITENED = "whitens over the batch's tokens, as the method says"
_BATCH = {"alone": _WHITENED, "leak": _WHITENED}
_RETURNS = "its returns are sums of raw token rewards"
_SUMMED = {
    "coverage": _RETURNS,
    "unscored": _WHITENED,
}
_EXEMPT: Mapping[str, Mapping[str, str]] = {
    "reinforce_plus_plus": {**_BATCH, **_SUMMED},
    "reinforce_plus_plus_baseline": _BATCH,
    "gae": {**_BATCH, **_SUMMED},
    "gdpo": _BATCH,
    "gpg": dict.fromkeys(("alone", "leak"), "its factor is the batch's size over its number of rewards not 0"),
    "optimal_token_baseline": dict.fromkeys(("coverage", "unscored"), _RETURNS),
    "tir_optimal_token_baseline": dict.fromkeys(("coverage", "unscored"), _RETURNS),
}


@dataclass(frozen=True)
class VerlEstimator:
    """One of verl's registered estimators.

    The outcome reward stands on the response's last token, as verl's reward managers put it. Dense ones have the
    process signal beside it: each step's on the step's last token, and off the mask whatever the batch holds there, as
    a reward model's raw output would.

    Attributes:
        name: verl's.
        dense: Whether the process signal is given.
        config: What verl's ``algorithm`` config holds.
    """

    name: str
    dense: bool = False
    config: Mapping[str, Any] = field(default_factory=lambda: {"gamma": 1.0, "lam": 1.0}, hash=False)

    @property
    def requires(self) -> frozenset[str]:
        """The fields that it is handed."""
        token_baseline = self.name.endswith("optimal_token_baseline")
        return frozenset(
            {"rewards"}
            | ({"process_rewards"} if self.dense else set())
            | ({"old_logprobs"} if token_baseline else set())
        )

    @property
    def exempt(self) -> Mapping[str, str]:
        """The laws that its method breaks by definition."""
        return _EXEMPT.get(self.name, {})

    def __call__(self, batch: RolloutBatch) -> Tensor:
        """Advantages [batch, time], float32.

        Raises:
            UnsupportedError: The batch has rows that do not count, which verl has no column for.
        """
        return self.ready(batch)()

    def ready(self, batch: RolloutBatch) -> Callable[[], Tensor]:
        """The call with its arguments made, to be timed apart from making them; raises as the call does."""
        core, numpy = _core_algos()
        if batch.row_mask is not None and not bool(batch.row_mask.all()):
            raise UnsupportedError("verl has no mask of rows")
        rewards = token_rewards(batch, dense=self.dense)
        mask = batch.response_mask.long()
        uid = numpy.array([f"prompt {group}" for group in batch.group_ids.tolist()], dtype=object)
        config = core.DictConfig(dict(self.config))
        if self.name == "gae":
            function = core.compute_gae_advantage_return
            given = {"values": torch.zeros_like(rewards), "gamma": config.gamma, "lam": config.lam}
        else:
            if self.name == "grpo_passk" and bool((torch.unique(batch.group_ids, return_counts=True)[1] < 2).any()):
                raise UnsupportedError("Pass@k is of groups of two and more")
            more = self._own_arguments(batch)
            if "config" in more:
                config = core.DictConfig({**config, **more.pop("config")})
            function = core.get_adv_estimator_fn(self.name)
            given = {"config": config, "index": uid, **more}

        def call() -> Tensor:
            advantages: Tensor = function(token_level_rewards=rewards, response_mask=mask, **given)[0]
            return advantages

        return call

    def _own_arguments(self, batch: RolloutBatch) -> dict[str, Any]:
        """What the dispatcher hands to this estimator alone."""
        if self.name == "gdpo":
            named = {"outcome": batch.rewards, "format": batch.format_rewards, **(batch.extra_rewards or {})}
            channels = {name: x.float().numpy() for name, x in named.items() if x is not None}
            upto = batch.response_mask.long().flip(1).cummax(1).values.flip(1)
            return {
                "config": {"gdpo_reward_keys": list(channels)},
                "non_tensor_batch": channels,
                "batch": {"prompts": torch.zeros(len(batch), 0), "attention_mask": upto},
            }
        if self.name.endswith("optimal_token_baseline"):
            assert batch.old_logprobs is not None
            p = batch.old_logprobs.float().exp()
            return {
                "old_log_probs": batch.old_logprobs.float(),
                "sum_pi_squared": p**2 + (1 - p) ** 2 / (VOCABULARY - 1),
                "rollout_is_weights": None,
            }
        return {}


def estimator(name: str) -> VerlEstimator:
    """One by its name in `PEERS`.

    Raises:
        MissingExtraError: verl is not installed.
    """
    _core_algos()
    plain, _, how = name.partition(":")
    return VerlEstimator(plain, dense=how == "dense")


def token_rewards(batch: RolloutBatch, *, dense: bool) -> Tensor:
    """Verl's ``token_level_rewards``, float32 [batch, time]: the outcome on each response's last token.

    Args:
        batch: The rollouts.
        dense: Add the process signal: each step's on the step's last token, and raw off the mask.
    """
    mask = batch.response_mask
    rewards = torch.zeros(mask.shape)
    if dense and batch.process_rewards is not None:
        rewards = torch.where(mask, 0.0, batch.process_rewards.float())
        rewards[_step_ends(batch)] = batch.process_rewards.float()[_step_ends(batch)]
    if batch.rewards is not None:
        live = mask.any(1)
        last = mask.shape[1] - 1 - mask.long().flip(1).argmax(1)
        # a reward manager writes to its response's length less one: without a token, that is the last column
        rewards[torch.arange(len(batch)), torch.where(live, last, mask.shape[1] - 1)] += batch.rewards.float()
    return rewards


def _step_ends(batch: RolloutBatch) -> Tensor:
    """Bool [batch, time]: the last token of each covered step."""
    ends = torch.zeros_like(batch.response_mask)
    ends.view(-1)[batch.layout.tokens[batch.steps.ends]] = True
    return ends


def _core_algos() -> tuple[Any, Any]:
    try:
        import numpy
        from verl.trainer.ppo import core_algos
    except ImportError as error:
        raise MissingExtraError("verl", "verl", f"call its estimators ({error})") from None
    return core_algos, numpy
