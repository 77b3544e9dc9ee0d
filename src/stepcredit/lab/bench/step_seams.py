"""The seams of a training step: what is the model's, what is TRL's, and what is ours."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

from torch import nn

from stepcredit.lab.bench.step_clock import OVERRIDES, Seam, StepClock, current, replaced, watching

OURS = {
    OVERRIDES: "the methods around TRL's own, the hook of the loss among them",
    "ours/credit": "from TRL's batch to its advantages: what is in none of the parts below",
    "ours/rewards": "the task's grades: reward functions and verdicts",
    "ours/alignment": "rollouts as text, and a signal's scores placed on tokens",
    "ours/checks": "RolloutBatch: its form and its values",
    "ours/signal": "the process signal, without its models' forward passes",
    "ours/estimator": "the scheme",
    "ours/metrics": "the credit's metrics and the task's",
    "ours/logging": "callbacks: rows of metrics, the progress line",
    "ours/store": "the run's folder, syncs included",
}
"""The parts of ours, and what is in them."""

THEIRS = {
    "forward/policy": "the policy's forward passes that TRL asks for",
    "backward": "backward passes",
    "optimizer": "clipping, the optimizer's step, the schedule's, gradients set to zero",
    "generation": "TRL's `_generate`: the sampler and what TRL counts of it",
    "checkpoint": "weights and states of a checkpoint, as TRL and Transformers write them",
    "trainer": "everything else: the loss around its forward pass, padding, TRL's own advantages and metrics",
}
"""The parts that a run without us has too, and what is in them; ``forward/... (ours)`` are passes that we ask for."""


def is_ours(part: str) -> bool:
    """Whether a part is ours; forward passes are no part of that, whoever asks for them."""
    return part.startswith("ours/")


def is_forward(part: str) -> bool:
    """Whether a part is a model's forward passes; those of a sampler are generation."""
    return part.startswith("forward/")


@contextmanager
def seams() -> Iterator[None]:
    """All seams timed for a while, and steps cut where the trainer begins them; `timing` says which clock is told."""
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer
    from transformers import PreTrainedModel, Trainer
    from transformers.trainer_callback import CallbackHandler
    from trl import GRPOTrainer

    theirs: list[Seam] = [
        (GRPOTrainer, "_generate", "generation"),
        *((GRPOTrainer, name, "trainer") for name in _OVERRIDDEN if name != "_generate"),
        (Trainer, "_save_checkpoint", "checkpoint"),
        (PreTrainedModel, "__call__", _forward),
        (Accelerator, "backward", "backward"),
        (Trainer, "_clip_grad_norm", "optimizer"),
        (AcceleratedOptimizer, "step", "optimizer"),
        (PreTrainedModel, "zero_grad", "optimizer"),
    ]
    with ExitStack() as stack:
        # Inside the seam around it: what counting takes is no part of ours.
        stack.enter_context(replaced(GRPOTrainer, "_generate", _counting(GRPOTrainer._generate)))
        stack.enter_context(watching([*theirs, *_own()]))
        for name, told in (("on_step_begin", StepClock.cut), ("on_train_end", StepClock.end)):
            stack.enter_context(replaced(CallbackHandler, name, _telling(told, getattr(CallbackHandler, name))))
        yield


_OVERRIDDEN = (
    "_generate", "_generate_and_score_completions", "_calculate_rewards", "_compute_loss",
    "_get_per_token_logps_and_entropies",
)  # fmt: skip


def _own() -> list[Seam]:
    """What is ours, in the places where it is looked up."""
    from stepcredit.adapters.trl import crediting, trainer
    from stepcredit.adapters.trl.trainer import _CreditMixin
    from stepcredit.batch import RolloutBatch
    from stepcredit.estimators import Estimator
    from stepcredit.runs.callbacks import ProgressCallback, RolloutObserver, StoreCallback
    from stepcredit.runs.grading import TaskGrader
    from stepcredit.runs.store import RunStore

    return [
        *((_CreditMixin, name, OVERRIDES) for name in (*_OVERRIDDEN, "_save_checkpoint")),
        (trainer, "with_credit", "ours/credit"),
        *((TaskGrader, name, "ours/rewards") for name in ("outcome", "format", "correct")),
        *((crediting, name, "ours/alignment") for name in ("text_rollouts", "place_scores", "place_steps")),
        (RolloutBatch, "__post_init__", "ours/checks"),
        (crediting, "_with_signal", "ours/signal"),
        (Estimator, "__call__", "ours/estimator"),
        (crediting, "credit_metrics", "ours/metrics"),
        (RolloutObserver, "__call__", "ours/metrics"),
        (crediting, "_log_advantages", "ours/logging"),
        *((StoreCallback, name, "ours/logging") for name in ("on_log", "on_save")),
        (ProgressCallback, "on_log", "ours/logging"),
        *((RunStore, name, "ours/store") for name in ("add_metrics", "add_rollouts", "commit")),
    ]


def _forward(clock: StepClock, model: Any, *_: Any) -> str:
    return f"forward/{clock.roles.get(id(model), 'other')}{' (ours)' if clock.asked_by_us else ''}"


def _telling(told: Callable[[StepClock], None], function: Any) -> Any:
    """The function, of which the thread's clock is told before it runs."""

    @wraps(function)
    def telling(*args: Any, **kwargs: Any) -> Any:
        clock = current()
        if clock is not None:
            told(clock)
        return function(*args, **kwargs)

    return telling


def _counting(generate: Any) -> Any:
    """TRL's `_generate`, whose tokens the thread's clock is told, and before it the trainer's models."""

    @wraps(generate)
    def counting(trainer: Any, *args: Any, **kwargs: Any) -> Any:
        clock = current()
        if clock is not None:
            _meet(clock, trainer)
        output = generate(trainer, *args, **kwargs)
        if clock is not None:
            clock.saw(sum(len(row) for row in output[1]))
        return output

    return counting


def _meet(clock: StepClock, trainer: Any) -> None:
    """Learns which model is which."""
    settings = getattr(trainer, "_credit", None)
    beside = {} if settings is None else settings.models
    models = {**beside, "reference": trainer.ref_model, "policy": trainer.accelerator.unwrap_model(trainer.model)}
    for role, model in models.items():
        if isinstance(model, nn.Module):
            inner: Any = getattr(model, "get_base_model", lambda model=model: model)()
            clock.roles[id(inner)] = "reference" if role == "ref" else role
