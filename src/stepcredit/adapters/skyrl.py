"""SkyRL: a scheme under a name in its registry of advantage estimators, and a trainer mixin for what that lacks.

    from stepcredit import RLOO, SPRO
    from stepcredit.adapters.skyrl import CreditTrainer, register

    register("stepcredit_rloo", RLOO())  # then trainer.algorithm.advantage_estimator=stepcredit_rloo

SkyRL gives a registered function the rewards on their tokens, a mask of the whole response (tool output and all) and
the prompt of each rollout. A trainer that inherits `CreditTrainer` also gives it the loss mask, and with it the turns,
and the log-probabilities:

    register("stepcredit_spro", SPRO(), from_trainer=True)

    class Trainer(CreditTrainer, RayPPOTrainer): ...  # and return it from your experiment's `get_trainer`
"""

import importlib
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from stepcredit.batch import RolloutBatch
from stepcredit.errors import InputError, MissingExtraError
from stepcredit.estimators import Estimator
from stepcredit.signals import TensorSignal

Process = Literal["tokens", "turns"]

_REGISTRIES = ("skyrl.backends.skyrl_train.utils.ppo_utils", "skyrl_train.utils.ppo_utils")
_BRINGS = {
    "action_log_probs": "Choose a `trainer.algorithm.policy_loss_type` for which SkyRL runs the policy's own forward.",
    "base_action_log_probs": "Set `trainer.algorithm.use_kl_loss=true trainer.algorithm.kl_loss_coef=0`, with which "
    "SkyRL scores with the model of `trainer.ref` and penalizes nothing.",
}
_DATA: ContextVar[Mapping[str, Any] | None] = ContextVar("skyrl_training_batch", default=None)
"""The batch that a `CreditTrainer` is at work on. Not part of what is pickled: the function finds it where it runs."""


def register(
    name: str,
    estimator: Estimator,
    *,
    process: Process | None = None,
    signal: TensorSignal | None = None,
    from_trainer: bool = False,
    ref_model: Literal["reference", "teacher"] = "reference",
) -> None:
    """Makes a scheme a value of SkyRL's ``trainer.algorithm.advantage_estimator``.

    Call it where your entry point is imported, before `validate_cfg`: SkyRL pickles what is registered and hands it to
    its Ray processes, in which stepcredit must be installed.

    Args:
        name: The new value; not one that SkyRL or you have given already.
        estimator: The scheme.
        process: Where the process rewards are. None: nowhere, and the outcome is the sum of a response's rewards.
            "tokens": each token's reward is its own process reward, zeros too, and there is no outcome.
            "turns": the reward of the last turn is the outcome; every turn before it is a step whose process reward
            is the sum of the rewards on its tokens and on the tool output after it.
        signal: A log-prob signal (`LogRatio`, `OPD`) that makes the process rewards; the outcome is the sum.
        from_trainer: Whether the trainer is a `CreditTrainer`: needed for "turns" and for log-probabilities.
        ref_model: What the model of ``trainer.ref`` is: the policy's "reference", or a "teacher" of its vocabulary.

    Raises:
        InputError: The scheme reads what SkyRL does not bring in this way; the message says which does.
        MissingExtraError: SkyRL is not installed.
    """
    function = Function(estimator, process, signal, from_trainer, ref_model)
    _registry().register(name, function)


@dataclass(frozen=True)
class Function:
    """The function that `register` registers; its fields are `register`'s arguments.

    Example:
        >>> import torch
        >>> from stepcredit import DrGRPO
        >>> rewards, mask = torch.tensor([[0.0, 1.0], [0.0, 0.0]]), torch.tensor([[1, 1], [0, 1]])
        >>> advantages, returns = Function(DrGRPO())(token_level_rewards=rewards, response_mask=mask, index=["a", "a"])
        >>> advantages.tolist()
        [[0.5, 0.5], [0.0, -0.5]]
    """

    estimator: Estimator
    process: Process | None = None
    signal: TensorSignal | None = None
    from_trainer: bool = False
    ref_model: Literal["reference", "teacher"] = "reference"

    def __post_init__(self) -> None:
        """Refuses at registration what could only fail after the first rollouts."""
        if not isinstance(self.estimator, Estimator):
            raise InputError(f"`estimator` must be an Estimator; got {self.estimator!r}.")
        for name, value, choices in (
            ("process", self.process, (None, "tokens", "turns")),
            ("ref_model", self.ref_model, ("reference", "teacher")),
        ):
            if value not in choices:
                raise InputError(f"`{name}` must be one of {choices}; got {value!r}.")
        if self.signal is not None and (self.process is not None or not isinstance(self.signal, TensorSignal)):
            raise InputError("`signal` must be a log-prob signal, without `process` beside it; got "
                             f"{self.signal!r} and process={self.process!r}.")  # fmt: skip
        scheme = type(self.estimator).__name__
        if "process_rewards" in self.estimator.requires and self.process is None and self.signal is None:
            raise InputError(f"`process` must say where the process rewards of {scheme} are, 'tokens' or 'turns'; got "
                             "None. Or pass a log-prob `signal`.")  # fmt: skip
        if "rewards" in self.estimator.requires and self.process == "tokens":
            raise InputError(f"`process` must leave {scheme} an outcome; got 'tokens'. Use 'turns'.")
        absent = sorted(set(self.reads) - set(self._columns))
        if absent:
            raise InputError(f"`ref_model` must be what {scheme} or its signal reads, the one model beside the policy; "
                             f"got {self.ref_model!r} for {absent[0]}.")  # fmt: skip
        if not self.from_trainer and (self.reads or self.process == "turns"):
            what = self.reads[0] if self.reads else "process='turns'"
            raise InputError(f"`from_trainer` must be True for {what}, which SkyRL's registry does not pass on; got "
                             "False. Train with a trainer that inherits `CreditTrainer`.")  # fmt: skip

    @property
    def reads(self) -> list[str]:
        """The log-probabilities that are read, as fields of `RolloutBatch`."""
        asked = self.estimator.requires | frozenset(getattr(self.signal, "requires", ()))
        return sorted(field for field in asked if field.endswith("_logprobs"))

    @property
    def _columns(self) -> dict[str, str]:
        beside = "ref_logprobs" if self.ref_model == "reference" else "teacher_logprobs"
        return {"old_logprobs": "action_log_probs", beside: "base_action_log_probs"}

    def __call__(
        self,
        *,
        token_level_rewards: Tensor,
        response_mask: Tensor,
        index: Sequence[Any],
        config: Any = None,
        **_: Any,
    ) -> tuple[Tensor, Tensor]:
        """What SkyRL calls.

        Args:
            token_level_rewards: float [batch, time].
            response_mask: [batch, time]: the response's tokens.
            index: The prompt of each rollout. Rows that SkyRL added to fill up its ranks count in nothing.
            config: SkyRL's ``trainer.algorithm``.

        Returns:
            The advantages and, the same, the returns; float32 [batch, time].

        Raises:
            InputError: A setting under which the credit would be lost, or a column that is not there; the message
                names the option.
        """
        _refuse(config)
        data = _DATA.get() if self.from_trainer else None
        if self.from_trainer and data is None:
            raise InputError("`trainer` must inherit CreditTrainer for an estimator registered with from_trainer=True; "
                             "got another. Return yours from `get_trainer`.")  # fmt: skip
        mask = response_mask > 0
        fields: dict[str, Any] = {}
        if data is not None:
            mask &= data["loss_mask"] > 0
            fields = {field: _column(data, self._columns[field]) for field in self.reads}
        padding = _padding_rows(index)
        fields["row_mask"] = torch.tensor([row < len(index) - padding for row in range(len(index))])
        live = mask & fields["row_mask"].to(mask.device)[:, None]
        fields |= self._rewards(token_level_rewards, live)
        labels: dict[Any, int] = {}
        groups = torch.tensor([labels.setdefault(prompt, len(labels)) for prompt in index])
        batch = RolloutBatch(mask, groups, **fields)
        if self.signal is not None:
            batch = self.signal(batch)
        advantages = self.estimator(batch).advantages.to(token_level_rewards.dtype)
        if response_mask.is_floating_point():
            _check_step_wise(advantages, self.process)
        return advantages, advantages.clone()

    def _rewards(self, rewards: Tensor, live: Tensor) -> dict[str, Tensor]:
        """The outcome [batch] and the process rewards [batch, time], as far as there are any."""
        if self.process is None:
            return {"rewards": rewards.sum(1)}
        if self.process == "turns":
            return turns(rewards, live)
        lost = (rewards != 0) & ~live & live.any(1, keepdim=True)
        if lost.any():
            row, token = lost.nonzero()[0].tolist()
            raise InputError(f"`rewards` must be 0 on tokens that are not trained on; got {rewards[row, token].item()} "
                             f"in row {row}. Use process='turns'.")  # fmt: skip
        return {"process_rewards": rewards}


class CreditTrainer:
    """A mixin for SkyRL's trainers, put before one of them in the bases: gives the estimator the whole batch.

    Everything else, SkyRL's own metrics included, is the trainer's.
    """

    def compute_advantages_and_returns(self, data: Any) -> Any:
        """SkyRL's method, with the batch in reach of the registered function.

        Raises:
            InputError: Trajectories are trained turn by turn, each a row of its own.
        """
        if self.cfg.generator.step_wise_trajectories:  # type: ignore[attr-defined]
            raise InputError("`generator.step_wise_trajectories` must be false: SkyRL then asks for one number a "
                             "trajectory; got true. Credit crosses turns in whole trajectories.")  # fmt: skip
        token = _DATA.set(data)
        try:
            return super().compute_advantages_and_returns(data)  # type: ignore[misc]
        finally:
            _DATA.reset(token)


def turns(rewards: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """The rewards of each turn of the policy, as fields of a `RolloutBatch`.

    A turn is a run of trained tokens; the tokens up to the next one belong to it. The last turn's reward is the outcome
    and no process reward: its tokens are uncovered.

    Args:
        rewards: float [batch, time].
        mask: bool [batch, time], True on the tokens that are trained on, in the rows that count.

    Returns:
        rewards [batch], process_rewards [batch, time], step_ids [batch, time].

    Raises:
        InputError: A reward before the first turn.

    Example:
        >>> fields = turns(torch.tensor([[0.0, 0.5, 0.0, 1.0]]), torch.tensor([[True, True, False, True]]))
        >>> fields["rewards"].tolist(), fields["process_rewards"].tolist(), fields["step_ids"].tolist()
        ([1.0], [[0.5, 0.5, 0.5, 1.0]], [[0, 0, -1, -1]])
    """
    before = torch.nn.functional.pad(mask, (1, 0))[:, :-1]
    turn = (mask & ~before).cumsum(1) - 1
    early = (rewards != 0) & (turn < 0) & mask.any(1, keepdim=True)
    if early.any():
        row, token = early.nonzero()[0].tolist()
        raise InputError(f"`rewards` must lie on the policy's turns or after them; got {rewards[row, token].item()} "
                         f"before the first turn of row {row}.")  # fmt: skip
    at = turn.clamp(min=0)
    last = at.amax(1, keepdim=True) if at.shape[1] else at.new_zeros(len(at), 1)
    summed = rewards.new_zeros(len(rewards), int(last.max()) + 1 if len(last) else 1).scatter_add_(1, at, rewards)
    return {
        "rewards": summed.gather(1, last).squeeze(1),
        "process_rewards": summed.gather(1, at),
        "step_ids": torch.where(mask & (turn < last), turn, -1),
    }


def _refuse(config: Any) -> None:
    """Refuses settings of ``trainer.algorithm`` that spoil the rewards, or the credit after it is made."""
    if getattr(config, "advantage_batch_normalize", False):
        raise InputError("`trainer.algorithm.advantage_batch_normalize` must be false: it whitens the credit, with "
                         "padding in its mean; got true.")  # fmt: skip
    if getattr(config, "use_kl_in_reward", False):
        raise InputError("`trainer.algorithm.use_kl_in_reward` must be false: the penalty would be read as reward; got "
                         "true. Use `use_kl_loss`.")  # fmt: skip
    if getattr(config, "policy_loss_type", None) == "cross_entropy":
        raise InputError("`trainer.algorithm.policy_loss_type` must read advantages; got 'cross_entropy'.")


def _column(data: Mapping[str, Any], name: str) -> Tensor:
    column: Tensor | None = data.get(name)
    if column is None:
        raise InputError(f"`{name}` must be in SkyRL's training batch; got none. {_BRINGS[name]}")
    return column


def _padding_rows(index: Sequence[Any]) -> int:
    """How many rows at the end are SkyRL's padding, copies of the first row under the prompts pad0, pad1, ..."""
    prompts = [str(prompt) for prompt in index]
    if "pad0" not in prompts:
        return 0
    tail = prompts[prompts.index("pad0") :]
    return len(tail) if tail == [f"pad{i}" for i in range(len(tail))] else 0


def _check_step_wise(advantages: Tensor, process: Process | None) -> None:
    """Step-wise training hands in last turns under a mask of ones, and spreads what comes back over all turns."""
    if process is not None or bool((advantages != advantages[:, :1]).any()):
        raise InputError("`generator.step_wise_trajectories` must be false for a scheme whose credit varies inside a "
                         "response; got true. SkyRL spreads one number over all turns.")  # fmt: skip


def _registry() -> Any:
    """SkyRL's registry of advantage estimators, in the package of today or the one before it."""
    for name in _REGISTRIES:
        try:
            return importlib.import_module(name).AdvantageEstimatorRegistry
        except ModuleNotFoundError as error:
            if error.name != name.split(".")[0]:
                raise
    raise MissingExtraError("skyrl", "skyrl", "register an advantage estimator with it")
