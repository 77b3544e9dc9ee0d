"""slime: token-level credit through its own hooks, on the ranks that train.

One module of your own, importable where slime runs, names the scheme and brings the rewards:

    from stepcredit import PASS
    from stepcredit.adapters.slime import AdvantageFunction, Reward

    advantages = AdvantageFunction(PASS(k=0.7))

    async def reward(args, sample):  # the response's tokens 0..11 are a step scored 0.9, 12..39 one scored 0.2
        return Reward(1.0, steps=[(12, 0.9), (40, 0.2)])

and three flags point to it: ``--custom-rm-path my_credit.reward``, ``--custom-advantage-function-path
my_credit.advantages`` and ``--custom-reward-post-process-path stepcredit.adapters.slime.raw_rewards``.

Of what a sample holds slime hands on a fixed list of columns, so whatever the credit needs beside them travels inside
the reward, which stays a number for everything else that reads it.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from stepcredit.batch import RolloutBatch
from stepcredit.errors import InputError, StepCreditError
from stepcredit.estimators import Estimator
from stepcredit.ops.groups import ProcessGroup, all_reduce, refusing_alike
from stepcredit.signals import TensorSignal

Step = tuple[int, float | None]

_BRINGS = {
    "log_probs": "Pass `--kl-coef 1 --ref-load DIR` (a custom advantage function takes the penalty out, the forward "
    "passes stay), or `--use-rollout-logprobs` for the sampler's.",
    "rollout_log_probs": "A custom generate function must set `sample.rollout_log_probs`.",
    "ref_log_probs": "Pass `--kl-coef 1 --ref-load DIR`, or `--use-kl-loss --kl-loss-coef 0 --ref-load DIR`.",
    "teacher_log_probs": "Pass `--use-opd --opd-kl-coef 0` with `--opd-type megatron --opd-teacher-load DIR`, or with "
    "`--opd-type sglang` and its reward functions.",
    "sample_indices": "Each sample's `index` must be its number, as slime's own data source gives it.",
}
_NORMALIZED = ("grpo", "gspo", "cispo", "reinforce_plus_plus_baseline")


class Reward(float):
    """An outcome reward that knows more: a number to slime, and to an estimator the steps and the format as well.

    Arithmetic gives plain numbers: make one last, from the finished outcome.

    Attributes:
        steps: The steps of the response in order, (end, score) each: the index after the step's last token among the
            response's tokens (tool output counted), and its process score. A score of None leaves the step uncovered,
            as are the tokens after the last step. None: nothing scored this response.
        format: The format reward.
        format_ok: Whether the response complies; needed where format rewards are other than 0 and 1.

    Raises:
        InputError: Ends that do not rise from 1 on, or a score that is not finite.

    Example:
        >>> reward = Reward(1.0, steps=[(12, 0.9), (40, 0.2)])
        >>> reward, reward.steps
        (1.0, ((12, 0.9), (40, 0.2)))
    """

    steps: tuple[Step, ...] | None
    format: float | None
    format_ok: bool | None

    def __new__(
        cls,
        outcome: float,
        *,
        steps: Sequence[Step] | None = None,
        format: float | None = None,
        format_ok: bool | None = None,
    ) -> "Reward":
        """Checks the steps where they are made, not on the ranks that train."""
        reward = super().__new__(cls, outcome)
        reward.steps = None if steps is None else tuple((end, score) for end, score in steps)
        reward.format, reward.format_ok = format, format_ok
        previous = 0
        for end, score in reward.steps or ():
            if end <= previous:
                raise InputError(f"`steps` must have ends that rise from 1 on; got {end} after {previous}.")
            if score is not None and not isfinite(score):
                raise InputError(f"`steps` must have finite scores, or None; got {score} for the step up to {end}.")
            previous = end
        return reward


def raw_rewards(args: Any, samples: Sequence[Any]) -> tuple[list[float], list[float]]:
    """What slime asks of ``--custom-reward-post-process-path``: the rewards as they are, each `Reward` whole.

    By default slime standardizes rewards within their groups before any advantage function sees them.

    Args:
        args: slime's.
        samples: Its samples.

    Returns:
        Plain numbers to log, and the rewards to train on.

    Raises:
        InputError: A reward is no number.
    """
    rewards = [sample.get_reward_value(args) for sample in samples]
    for reward in rewards:
        if not isinstance(reward, Real):
            raise InputError(
                f"`sample.reward` must be a number; got {type(reward).__name__}. Pass `--reward-key` for one of a dict."
            )
    return [float(reward) for reward in rewards], rewards


@dataclass(frozen=True)
class AdvantageFunction:
    """What slime asks of ``--custom-advantage-function-path``: sets "advantages" and "returns" of the rollout data.

    slime calls it on every rank of the last pipeline stage with that rank's samples. Groups may be split over ranks;
    their statistics are those of the whole group. A sample is one rollout: siblings that one `generate` returned count
    separately. Samples that slime removed or masked count in nothing.

    Attributes:
        estimator: The scheme.
        signal: A log-prob signal (`OPD`, `LogRatio`) that makes the process rewards, in place of steps in the rewards.

    Raises:
        InputError: Something is asked for that slime's rollout data never has.

    Example:
        >>> from stepcredit import OPD, PASS
        >>> AdvantageFunction(PASS(k=1.0), signal=OPD()).reads
        ['old_logprobs', 'teacher_logprobs']
    """

    estimator: Estimator
    signal: TensorSignal | None = None

    def __post_init__(self) -> None:
        """Refuses at import time what could only fail after the first rollouts."""
        if not isinstance(self.estimator, Estimator):
            raise InputError(f"`estimator` must be an Estimator; got {self.estimator!r}.")
        if self.signal is not None and not isinstance(self.signal, TensorSignal):
            raise InputError(
                f"`signal` must be a log-prob signal; got {type(self.signal).__name__}. Score text in the reward "
                "function and return `Reward(outcome, steps=...)`."
            )
        if "base_logprobs" in self.reads:
            raise InputError("`signal` must not read base_logprobs: slime brings none. Use OPD.")

    @property
    def reads(self) -> list[str]:
        """The log-probabilities that are read, as fields of `RolloutBatch`."""
        asked = self.estimator.requires | frozenset(getattr(self.signal, "requires", ()))
        return sorted(field for field in asked if field.endswith("_logprobs"))

    def __call__(self, args: Any, rollout_data: dict[str, Any]) -> None:
        """Sets ``rollout_data["advantages"]`` and ``["returns"]``: float32 [response tokens] for each sample.

        Raises:
            InputError: A setting under which the credit would be lost, or a column that is not there; the message
                names the flag.
        """
        group, context_parallel = _ranks()
        _refuse(args, context_parallel, self.reads)
        with refusing_alike(group):  # another rank would wait for one that raises
            mask = _packed("loss_masks", rollout_data, [int(n) for n in rollout_data["response_lengths"]]).bool()
        carried = _carried(rollout_data["rewards"], mask.device, group)
        with refusing_alike(group, mask.device):
            batch = self._batch(args, rollout_data, mask, carried)
        credit = self.estimator(batch, process_group=group)
        pieces = torch.split(credit.advantages.float(), [int(n) for n in rollout_data["response_lengths"]])
        rollout_data["advantages"], rollout_data["returns"] = list(pieces), list(pieces)

    def _batch(self, args: Any, data: Mapping[str, Any], mask: Tensor, carried: Mapping[str, bool]) -> RolloutBatch:
        """This rank's samples, packed, with the process rewards that the signal makes."""
        lengths, device = [int(n) for n in data["response_lengths"]], mask.device
        values = {"response_mask": mask}
        for field in self.reads:
            role = field.removesuffix("_logprobs")
            old = "rollout_log_probs" if getattr(args, "use_rollout_logprobs", False) else "log_probs"
            values[field] = _packed(old if role == "old" else f"{role}_log_probs", data, lengths).to(device)
        rewards = data["rewards"]
        fields = _channels(rewards, carried)
        if carried["steps"] and self.signal is None:
            values |= {name: x.to(device) for name, x in _placed(rewards, lengths).items()}
        elif "process_rewards" in self.estimator.requires and self.signal is None:
            raise InputError(
                f"`rewards` must carry steps for {type(self.estimator).__name__}; got plain numbers. Return "
                "stepcredit.adapters.slime.Reward(outcome, steps=...) from `--custom-rm-path`, and pass "
                "`--custom-reward-post-process-path stepcredit.adapters.slime.raw_rewards`."
            )
        starts = torch.tensor([0, *lengths]).cumsum(0).to(device)
        fields = {name: x.to(device) for name, x in fields.items()}
        batch = RolloutBatch.from_packed(values, starts, _group_ids(args, data).to(device), **fields)
        return batch if self.signal is None else self.signal(batch)


def _refuse(args: Any, context_parallel: int, reads: Sequence[str]) -> None:
    """Refuses settings under which slime would lose the credit, or has spent the rewards already."""
    scheme, coefficient = args.advantage_estimator, getattr(args, "opd_kl_coef", 0)
    twice = getattr(args, "use_opd", False) and coefficient != 0 and "teacher_logprobs" in reads
    standardized = args.rewards_normalization and scheme in _NORMALIZED and args.custom_reward_post_process_path is None
    rules = (
        (context_parallel > 1, f"`--context-parallel-size` must be 1: ranks hold slices; got {context_parallel}."),
        (args.normalize_advantages, "`--normalize-advantages` must be off: it whitens the credit; got on."),
        (scheme == "gspo", "`--advantage-estimator` must not be gspo: its ratio spreads credit over a response."),
        (scheme == "ppo", "`--advantage-estimator` must not be ppo: its critic learns from returns."),
        (
            standardized,
            "`--custom-reward-post-process-path` must be stepcredit.adapters.slime.raw_rewards; got none, under which "
            "rewards come standardized. `--disable-rewards-normalization` is enough for plain numbers.",
        ),
        (twice, f"`--opd-kl-coef` must be 0, or the teacher counts twice; got {coefficient}."),
    )
    for broken, message in rules:
        if broken:
            raise InputError(message)


def _ranks() -> tuple[ProcessGroup | None, int]:
    """The ranks that share groups (None: this one alone), and over how many each sequence is split."""
    try:
        mpu = importlib.import_module("megatron.core").mpu
    except ImportError as error:
        raise StepCreditError(
            "`AdvantageFunction` must be called by slime, which runs on Megatron; got none."
        ) from error
    alone = mpu.get_data_parallel_world_size(with_context_parallel=False) == 1
    group = None if alone else mpu.get_data_parallel_group(with_context_parallel=False)
    return group, mpu.get_context_parallel_world_size()


def _packed(column: str, data: Mapping[str, Any], lengths: Sequence[int]) -> Tensor:
    """A token column as one vector over all samples, [tokens]."""
    rows = data.get(column)
    if rows is None:
        raise InputError(f"`{column}` must be in slime's rollout data; got none. {_BRINGS.get(column, '')}".rstrip())
    found = [len(row) for row in rows]
    if found != list(lengths):
        raise InputError(f"`{column}` must have one entry a response token, {list(lengths)}; got {found}.")
    return torch.cat([torch.as_tensor(row) for row in rows])


def _group_ids(args: Any, data: Mapping[str, Any]) -> Tensor:
    """The group of each sample, the same label on every rank: slime numbers samples group by group. int64 [batch]."""
    numbers = data.get("sample_indices")
    if numbers is None or any(number is None for number in numbers):
        raise InputError(f"`sample_indices` must hold a number a sample; got {numbers}. {_BRINGS['sample_indices']}")
    return torch.tensor([int(number) // args.n_samples_per_prompt for number in numbers])


def _carried(rewards: Sequence[float], device: torch.device, group: ProcessGroup | None) -> dict[str, bool]:
    """What the rewards of any rank carry; a rank must not differ from the others in the fields of its batch."""
    names = ("steps", "format", "format_ok")
    here = [any(getattr(reward, name, None) is not None for reward in rewards) for name in names]
    anywhere = all_reduce(torch.tensor(here, dtype=torch.int64, device=device), group, "max")
    return dict(zip(names, (bool(x) for x in anywhere.tolist()), strict=True))


def _channels(rewards: Sequence[float], carried: Mapping[str, bool]) -> dict[str, Tensor]:
    """The outcome, and the format where it is carried: [batch] each."""
    fields = {"rewards": torch.tensor([float(reward) for reward in rewards], dtype=torch.float64)}
    for name, field, dtype in (("format", "format_rewards", torch.float64), ("format_ok", "format_ok", torch.bool)):
        if carried[name]:
            given = [getattr(reward, name, None) for reward in rewards]
            if None in given:
                raise InputError(
                    f"`{name}` must be in every Reward or in none; got none in sample {given.index(None)}."
                )
            fields[field] = torch.tensor(given, dtype=dtype)
    return fields


def _placed(rewards: Sequence[float], lengths: Sequence[int]) -> dict[str, Tensor]:
    """The steps on their tokens: process_rewards float64 [tokens], step_ids int64 [tokens], -1 where uncovered."""
    scores: list[float] = []
    ids: list[int] = []
    for row, (reward, length) in enumerate(zip(rewards, lengths, strict=True)):
        begun, start = len(ids), 0
        for step, (end, score) in enumerate(getattr(reward, "steps", None) or ()):
            if end > length:
                raise InputError(f"`steps` must end inside the response; got {end} of {length} tokens in sample {row}.")
            ids += [-1 if score is None else step] * (end - start)
            scores += [0.0 if score is None else float(score)] * (end - start)
            start = end
        rest = length - (len(ids) - begun)
        ids += [-1] * rest
        scores += [0.0] * rest
    return {"process_rewards": torch.tensor(scores, dtype=torch.float64), "step_ids": torch.tensor(ids)}
