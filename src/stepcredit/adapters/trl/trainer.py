"""The trainer with token-level credit: as a class, and attached to a trainer that exists."""

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stepcredit.adapters.trl import guards
from stepcredit.adapters.trl.channels import Channels
from stepcredit.adapters.trl.models import Start, frozen, reference_logprobs, reference_model, token_logprobs
from stepcredit.adapters.trl.rollouts import Cut, group_ids, loss_mask, text_rollouts, with_scores
from stepcredit.batch import Credit, RolloutBatch, Rollouts
from stepcredit.diagnostics import credit_metrics
from stepcredit.errors import InputError, MissingExtraError
from stepcredit.estimators import Estimator
from stepcredit.signals import Signal, TextSignal
from stepcredit.tasks.segmentation import SCHEMES, segment

try:
    from trl import GRPOTrainer
except ImportError:
    raise MissingExtraError("trl", "trl", "train with TRL") from None

_LOGPROBS = ("old_logprobs", "ref_logprobs", "teacher_logprobs", "base_logprobs")


@dataclass(frozen=True, eq=False)
class CreditStep:
    """What an observer sees of one generation batch: the very tensors that train.

    Attributes:
        step: The trainer's global step.
        mode: "train" or "eval".
        rollouts: This rank's rollouts as text; offsets and steps only where a text signal is scored.
        batch: This rank's rollouts as tensors.
        credit: This rank's credit.
    """

    step: int
    mode: str
    rollouts: Rollouts
    batch: RolloutBatch
    credit: Credit


Observer = Callable[[CreditStep], Mapping[str, float] | None]


@dataclass(frozen=True, eq=False)
class _Settings:
    estimator: Estimator
    signal: Signal | None
    channels: Channels
    cut: Cut
    reference: str
    needs: frozenset[str]
    models: dict[str, nn.Module | Start | None]
    gspo_token: bool
    on_credit: Observer | None
    kl_every: int


class _CreditMixin:
    """The overrides; everything else is the trainer's."""

    _credit: _Settings | None = None
    _captured: tuple[Any, ...] | None = None
    _gspo_inputs: dict[str, Any] | None = None

    def _calculate_rewards(
        self: Any, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any, *args: Any, **kwargs: Any
    ) -> Any:
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list, *args, **kwargs)  # type: ignore[misc]
        self._captured = (inputs, completion_ids_list, rewards)
        return rewards

    def _generate_and_score_completions(self: Any, inputs: Any) -> Any:
        output = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        captured, self._captured = self._captured, None
        if self._credit is None:  # still in the constructor
            return output
        return _with_credit(self, output, *captured)

    def _compute_loss(self: Any, model: Any, inputs: Any) -> Any:
        if self._credit is None or not self._credit.gspo_token:
            return super()._compute_loss(model, inputs)  # type: ignore[misc]
        level = self.importance_sampling_level
        self._gspo_inputs = dict(inputs)  # a copy: the buffered batch is used again by later iterations
        self.importance_sampling_level = "token"
        try:
            return super()._compute_loss(model, self._gspo_inputs)  # type: ignore[misc]
        finally:
            self._gspo_inputs, self.importance_sampling_level = None, level

    def _get_per_token_logps_and_entropies(self: Any, *args: Any, **kwargs: Any) -> Any:
        scored = super()._get_per_token_logps_and_entropies(*args, **kwargs)  # type: ignore[misc]
        self._see_logprobs(scored[0].detach())
        return scored

    def _see_logprobs(self, logprobs: Tensor) -> None:
        if self._gspo_inputs is not None:
            _gspo_old_logprobs(self._gspo_inputs, logprobs)


class CreditGRPOTrainer(_CreditMixin, GRPOTrainer):  # type: ignore[misc]
    """`GRPOTrainer` with token-level credit from an estimator; see `attach` for the arguments it adds.

    Example:
        >>> trainer = CreditGRPOTrainer(
        ...     model, reward_funcs=[answer, form], args=config, train_dataset=data,
        ...     estimator=PASS(k=0.7), signal=my_prm, format=["form"],
        ... )  # doctest: +SKIP
    """

    def __init__(self, *args: Any, estimator: Estimator, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name) for name in inspect.signature(attach).parameters if name in kwargs}
        super().__init__(*args, **kwargs)
        attach(self, estimator, **options)


def attach(
    trainer: Any,
    estimator: Estimator,
    *,
    signal: Signal | None = None,
    outcome: Sequence[str] | None = None,
    format: Sequence[str] = (),
    format_threshold: float | None = None,
    steps: str | Cut = "lines",
    reference: str = "reference",
    ref_model: nn.Module | None = None,
    teacher_model: nn.Module | None = None,
    base_model: nn.Module | None = None,
    gspo_token: bool = False,
    on_credit: Observer | None = None,
    kl_every: int = 0,
) -> Any:
    """Gives a `GRPOTrainer` (or a subclass that keeps its loss) token-level credit. Call it before `train`.

    Args:
        trainer: The trainer, as made.
        estimator: The scheme.
        signal: The process signal: a text signal (scores the steps of the completions) or a tensor signal.
        outcome: The names of the reward functions that are the outcome; by default all but those in ``format``.
        format: The names of those that reward the form. The others are `extra_rewards`. The trainer's
            `reward_weights` apply inside a channel.
        format_threshold: A rollout keeps the format where every format function gives at least this much; needed when
            they give other values than 0 and 1.
        steps: How a text signal's steps are cut: a scheme of `stepcredit.tasks.segmentation`, or text -> spans.
        reference: The data set's column of gold answers, for text signals that read them.
        ref_model: The reference, a causal LM. By default the policy as it stands now, where one is needed: a copy, or
            a LoRA policy with its adapter as it is now (off, if it has not been trained).
        teacher_model: The teacher of a distillation signal, a causal LM over the policy's vocabulary.
        base_model: The base model of generalized distillation, likewise.
        gspo_token: With importance_sampling_level="sequence": GSPO's token-level form, whose ratio has the sequence's
            value and the token's gradient.
        on_credit: Called with every `CreditStep`; the numbers it returns are logged with the trainer's. In a
            distributed run it is called on every rank and should return numbers of the whole batch.
        kl_every: Log the KL to the reference on every so many generation batches, at the price of the forward passes
            that the estimator does not need anyway; 0 logs it only where it comes free.

    Returns:
        The trainer itself, its class replaced by one with the overrides.

    Raises:
        InputError: A trainer or a setting that would destroy token credit, an unknown function name, a missing model.

    Degenerate cases:
        A rollout without a reward in one of the channels is in no statistic, its credit is 0, and it is counted in
        the metric ``credit/excluded_rows``; so is one that `mask_truncated_completions` masks.
    """
    if getattr(trainer, "_credit", None) is not None:
        raise InputError(f"`trainer` must not have credit already; got a {type(trainer).__name__} that has.")
    guards.refuse(trainer, gspo_token=gspo_token, trl_version=version("trl"))
    if not isinstance(estimator, Estimator):
        raise InputError(f"`estimator` must be a stepcredit.Estimator; got {type(estimator).__name__}.")
    channels = Channels.of(trainer.reward_func_names, outcome, format, format_threshold)
    reads = estimator.requires | (signal.requires if signal is not None else frozenset())
    if "process_rewards" in estimator.requires and signal is None:
        raise InputError(f"`signal` must be given for {type(estimator).__name__}, which reads one; got None.")
    for role, model in (("teacher", teacher_model), ("base", base_model)):
        if f"{role}_logprobs" in reads and model is None:
            raise InputError(f"`{role}_model` must be given: {role}_logprobs are read; got None.")
    cut, kind = _cut(steps), type(trainer)
    models: dict[str, nn.Module | Start | None] = {}
    if not issubclass(kind, _CreditMixin):
        trainer.__class__ = type(f"Credit{kind.__name__}", (_CreditMixin, kind), {"__doc__": kind.__doc__})
    trainer._credit = _Settings(
        estimator, signal, channels, cut, reference, reads & set(_LOGPROBS), models, gspo_token, on_credit, kl_every
    )
    try:
        guards.probe(trainer)
        if "ref_logprobs" in reads or kl_every:  # no model is touched before the loss is known to be right
            models["ref"] = reference_model(trainer) if ref_model is None else frozen(trainer, ref_model)
        for role, model in (("teacher", teacher_model), ("base", base_model)):
            if f"{role}_logprobs" in reads and model is not None:
                models[role] = frozen(trainer, model)
    except BaseException:
        del trainer._credit
        trainer.__class__ = kind
        raise
    return trainer


def _cut(steps: str | Cut) -> Cut:
    if not isinstance(steps, str):
        return steps
    if steps not in SCHEMES or steps == "marker":
        raise InputError(f"`steps` must be lines, paragraphs, sentences or text -> spans; got {steps!r}.")
    return lambda text: segment(text, steps)  # type: ignore[arg-type]


def _with_credit(
    trainer: Any, output: dict[str, Any], inputs: Any, completion_ids: Any, rewards: Tensor
) -> dict[str, Any]:
    """TRL's batch with the estimator's advantages in place of its own."""
    credit = trainer._credit
    mode = "train" if trainer.model.training else "eval"
    metrics = trainer._metrics[mode]
    n_rows, rank = output["completion_ids"].shape[0], trainer.accelerator.process_index
    group = dist.group.WORLD if trainer.accelerator.num_processes > 1 else None
    generations = trainer.num_generations if mode == "train" else trainer.num_generations_eval
    updates = trainer.args.steps_per_generation * trainer.num_iterations // trainer.args.gradient_accumulation_steps
    batch_index = trainer.state.global_step // max(updates, 1)  # by the step, which a resumed run knows
    watch_kl = credit.kl_every and batch_index % credit.kl_every == 0
    reads = credit.needs | ({"old_logprobs", "ref_logprobs"} if watch_kl else frozenset())
    logprobs = _logprobs(trainer, output, reads)

    begun = time.perf_counter()
    mask = loss_mask(output)
    groups = group_ids(n_rows, generations, rank, mask.device)
    local = rewards[rank * n_rows : (rank + 1) * n_rows].to(mask.device)
    fields: dict[str, Any] = credit.channels.fields(local, trainer.reward_weights.to(mask.device))
    batch = RolloutBatch(mask, groups, **fields, **logprobs)
    textual = isinstance(credit.signal, TextSignal)
    rollouts = text_rollouts(
        inputs, completion_ids, mask, groups, trainer.processing_class,
        cut=credit.cut if textual else None, reference=credit.reference,
    )  # fmt: skip
    if textual:
        batch = with_scores(batch, rollouts, credit.signal.score(rollouts))
    elif credit.signal is not None:
        batch = credit.signal(batch)
    assigned = credit.estimator(batch, process_group=group)
    output["advantages"] = assigned.advantages.to(output["advantages"].dtype)
    _log_advantages(trainer, output["advantages"], mask)
    for name, value in credit_metrics(batch, assigned, process_group=group).items():
        metrics[f"credit/{name}"].append(value)
    if credit.on_credit is not None:
        seen = credit.on_credit(CreditStep(trainer.state.global_step, mode, rollouts, batch, assigned)) or {}
        for name, value in seen.items():
            metrics[name].append(value)
    metrics["credit/seconds"].append(time.perf_counter() - begun)
    return output


def _logprobs(trainer: Any, output: dict[str, Any], reads: frozenset[str]) -> dict[str, Any]:
    """The log-probabilities that are read, under the trainer's own forward: never the sampler's."""
    found: dict[str, Any] = {}
    for name in sorted(reads):
        role = name.removesuffix("_logprobs")
        if role == "ref":
            found[name] = reference_logprobs(trainer, trainer._credit.models["ref"], output)
        elif role == "old":
            old = output.get("old_per_token_logps")
            found[name] = token_logprobs(trainer, trainer.model, output) if old is None else old.detach()
        else:
            found[name] = token_logprobs(trainer, trainer._credit.models[role], output)
    return found


def _gspo_old_logprobs(inputs: dict[str, Any], logprobs: Tensor) -> None:
    """Old log-probs under which the token ratio is s_i pi / sg[pi]: GSPO-token through the token-level loss.

    Reference: GSPO, arXiv 2507.18071, eq. 14: s_i = (pi / pi_old)^(1 / length), the gradient the token's own.
    """
    old = inputs.get("old_per_token_logps")
    old = logprobs if old is None else old
    mask = loss_mask(inputs)
    log_s = torch.where(mask, logprobs - old, 0).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    inputs.setdefault("sampling_per_token_logps", old)  # the off-policy mask keeps seeing the true old policy
    inputs["old_per_token_logps"] = logprobs - log_s


def _log_advantages(trainer: Any, advantages: Tensor, mask: Tensor) -> None:
    """The rollouts' mean credit a token in the place of the advantages that TRL would have logged."""
    means = advantages.sum(1) / mask.sum(1).clamp(min=1)
    everyone = trainer.accelerator.gather(means).tolist()
    logged = trainer._logs["advantages"]
    for _ in range(min(len(everyone), len(logged))):
        logged.pop()
    logged.extend(everyone)
