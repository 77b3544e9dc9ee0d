"""The trainer with token-level credit: as a class, and attached to a trainer that exists."""

import inspect
import os
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from torch import Tensor, nn

from stepcredit.adapters.trl import guards, learning
from stepcredit.adapters.trl.channels import Channels
from stepcredit.adapters.trl.crediting import Observer, Settings, Verdict, gspo_old_logprobs, with_credit
from stepcredit.adapters.trl.models import frozen, reference_model
from stepcredit.adapters.trl.rollouts import Cut, generated_mask, with_policy_mask
from stepcredit.errors import InputError, MissingExtraError
from stepcredit.estimators import Estimator
from stepcredit.signals import Guard, LearningSignal, LogProbSource, Signal
from stepcredit.signals.decoding import remember_decoded
from stepcredit.tasks.segmentation import SCHEMES, segment

try:
    from trl import GRPOTrainer
except ImportError:
    raise MissingExtraError("trl", "trl", "train with TRL") from None

_LOGPROBS = {"old_logprobs", "ref_logprobs", "teacher_logprobs", "base_logprobs"}


class _CreditMixin:
    """The overrides; everything else is the trainer's."""

    _credit: Settings | None = None
    _captured: tuple[Any, ...] | None = None
    _policy_mask: list[list[int]] | None = None
    credit_inputs: list[dict[str, Any]] | None = None  # the rows that are being generated for, while they are
    _gspo_inputs: dict[str, Any] | None = None

    def _calculate_rewards(
        self: Any, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any, *args: Any, **kwargs: Any
    ) -> Any:
        inputs = with_policy_mask(inputs, self._policy_mask)
        remember_decoded(self.processing_class, completion_ids_list, completions)
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list, *args, **kwargs)  # type: ignore[misc]
        self._captured = (inputs, completion_ids_list, rewards)
        return rewards

    def _generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = super()._generate(*args, **kwargs)  # type: ignore[misc]
        self._policy_mask = generated_mask(output)
        return output

    def _generate_and_score_completions(self: Any, inputs: Any) -> Any:
        self.credit_inputs = inputs
        try:
            output = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        finally:
            self.credit_inputs = self._policy_mask = None
        captured, self._captured = self._captured, None
        if self._credit is None:  # still in the constructor
            return output
        return with_credit(self, output, *captured)

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
            gspo_old_logprobs(self._gspo_inputs, logprobs)

    def _save_checkpoint(self: Any, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)  # type: ignore[misc]
        if self._learns() and self.args.should_save:
            folder = os.path.join(self._get_output_dir(trial=trial), f"checkpoint-{self.state.global_step}")
            learning.save_state(self._credit.signal, folder)

    def _load_optimizer_and_scheduler(self: Any, checkpoint: Any) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if self._learns() and checkpoint is not None:
            learning.load_state(self._credit.signal, checkpoint)

    def _learns(self) -> bool:
        return self._credit is not None and isinstance(self._credit.signal, LearningSignal)


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
    guard: Guard | None = None,
    outcome: Sequence[str] | None = None,
    format: Sequence[str] = (),
    format_threshold: float | None = None,
    steps: str | Cut | None = None,
    reference: str = "reference",
    ref_model: nn.Module | None = None,
    teacher_model: nn.Module | LogProbSource | None = None,
    base_model: nn.Module | LogProbSource | None = None,
    teacher_tokenizer: Any = None,
    base_tokenizer: Any = None,
    gspo_token: bool = False,
    on_credit: Observer | None = None,
    kl_every: int = 0,
    correct: Verdict | None = None,
) -> Any:
    """Gives a `GRPOTrainer` (or a subclass that keeps its loss) token-level credit. Call it before `train`.

    Args:
        trainer: The trainer, as made.
        estimator: The scheme.
        signal: The process signal. One that learns does so on every training batch, and its state is saved and loaded
            with the trainer's checkpoints.
        guard: Changes the signal's scores before they become credit.
        outcome: The names of the reward functions that are the outcome; by default all but those in ``format``.
        format: The names of those that reward the form. The others are `extra_rewards`. The trainer's
            `reward_weights` apply inside a channel.
        format_threshold: A rollout keeps the format where every format function gives at least this much; needed when
            they give other values than 0 and 1.
        steps: How the steps are cut that a signal scores, or over which one of tokens is summed: a scheme of
            `stepcredit.tasks.segmentation`, or text -> spans. By default lines are scored, by a signal that requires
            `steps`, and values of tokens stay.
        reference: The data set's column of gold answers, for text signals that read them.
        ref_model: The reference, a causal LM. By default the policy as it stands now, where one is needed: a copy, or
            a LoRA policy with its adapter as it is now (off, if it has not been trained).
        teacher_model: The teacher of a distillation signal: a causal LM over the policy's vocabulary, scored by the
            trainer's own forward, or a `LogProbSource` (another tokenizer, a server). Roles that are given one and
            the same object share its pass.
        base_model: The base model of generalized distillation, likewise; by default the reference.
        teacher_tokenizer: The teacher's, which must have the policy's vocabulary; by default it is read from where
            the model came from. Pass the policy's own to vouch for a model that came from nowhere.
        base_tokenizer: The base model's, likewise.
        gspo_token: With importance_sampling_level="sequence": GSPO's token-level form, whose ratio has the sequence's
            value and the token's gradient.
        on_credit: Called with every `CreditStep`; the numbers it returns are logged with the trainer's. In a
            distributed run it is called on every rank and should return numbers of the whole batch.
        kl_every: Log the KL to the reference on every so many generation batches, at the price of the forward passes
            that the estimator does not need anyway; 0 logs it only where it comes free.
        correct: Says of this rank's `Rollouts` which are right: `RolloutBatch.correct`. By default those with a
            positive outcome; needed where an outcome may be earned in part.

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
    if "teacher_logprobs" in reads and teacher_model is None:
        raise InputError("`teacher_model` must be given: teacher_logprobs are read; got None.")
    if guard is not None and signal is None:
        raise InputError("`guard` must come with a signal; got none.")
    models: dict[str, Any] = {"teacher": teacher_model, "base": base_model}
    models = {role: x for role, x in models.items() if x is not None and f"{role}_logprobs" in reads}
    for role, tokenizer in (("teacher", teacher_tokenizer), ("base", base_tokenizer)):
        if role in models:
            guards.check_tokens(trainer, role, models[role], tokenizer)
    cut, kind = _cut("lines" if steps is None else steps), type(trainer)
    if not issubclass(kind, _CreditMixin):
        trainer.__class__ = type(f"Credit{kind.__name__}", (_CreditMixin, kind), {"__doc__": kind.__doc__})
    trainer._credit = Settings(
        estimator, signal, guard, channels, cut, steps is not None, reference, reads & _LOGPROBS, models, gspo_token,
        on_credit, kl_every, correct,
    )  # fmt: skip
    try:
        guards.probe(trainer)
        _ready(trainer, models, reads, ref_model)  # no model is touched before the loss is known to be right
    except BaseException:
        del trainer._credit
        trainer.__class__ = kind
        raise
    return trainer


def _ready(trainer: Any, models: dict[str, Any], reads: frozenset[str], ref_model: nn.Module | None) -> None:
    """Freezes the models in place, each once, and adds the reference where something reads it."""
    if "ref_logprobs" in reads or trainer._credit.kl_every or ("base_logprobs" in reads and "base" not in models):
        models["ref"] = reference_model(trainer) if ref_model is None else ref_model
    made: dict[int, Any] = {}
    for role, model in models.items():
        if isinstance(model, nn.Module):
            if id(model) not in made:
                made[id(model)] = model if role == "ref" and ref_model is None else frozen(trainer, model)
            models[role] = made[id(model)]


def _cut(steps: str | Cut) -> Cut:
    if not isinstance(steps, str):
        return steps
    if steps not in SCHEMES or steps == "marker":
        raise InputError(f"`steps` must be lines, paragraphs, sentences or text -> spans; got {steps!r}.")
    return lambda text: segment(text, steps)  # type: ignore[arg-type]
