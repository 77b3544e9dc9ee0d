"""From a run's config to TRL's trainer with credit, ready to train."""

import dataclasses
import importlib
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from transformers import PrinterCallback, TrainerCallback, set_seed
from trl import GRPOConfig

from stepcredit.adapters.trl import CreditGRPOTrainer
from stepcredit.config import build_estimator, build_task, hint
from stepcredit.config.run import RunConfig, typed
from stepcredit.errors import InputError, MissingExtraError
from stepcredit.runs.callbacks import RolloutObserver
from stepcredit.runs.grading import TaskGrader
from stepcredit.runs.policies import add_lora, load_policy
from stepcredit.runs.process import model_arguments, signal_arguments
from stepcredit.runs.prompts import render_prompt
from stepcredit.runs.protocols import OneTurn, protocol_of
from stepcredit.runs.rollouts import rollout_arguments

_OURS = {  # GRPOConfig fields that the run itself decides, and what says so
    "output_dir": "by --out",
    "max_steps": "by run.steps",
    "num_train_epochs": "by run.steps",
    "seed": "by run.seed",
    "data_seed": "by run.seed",
    "save_steps": "by run.checkpoint_every",
    "save_strategy": "by run.checkpoint_every",
    "save_total_limit": "by run.keep_checkpoints",
    "save_only_model": "so that every run can resume",
    "resume_from_checkpoint": "by --resume",
    "logging_steps": "and logs every step",
    "report_to": "by run.report_to",
    "disable_tqdm": "and shows its own progress",
}


def grpo_config(config: RunConfig, folder: str | Path) -> GRPOConfig:
    """TRL's settings for a run.

    Args:
        config: The run's.
        folder: Where checkpoints go.

    Raises:
        InputError: A key that ``GRPOConfig`` does not have or that the run decides, or a checkpoint that would fall
            between a batch of rollouts and its last use: a resumed run would sample other rollouts.
        MissingExtraError: A logger that is not installed.
    """
    names = [f.name for f in dataclasses.fields(GRPOConfig) if f.init]
    hints = get_type_hints(GRPOConfig)
    for key, value in config.trainer.items():
        if key in _OURS:
            raise InputError(f"`trainer.{key}` must not be given: the run decides it, {_OURS[key]}.")
        if key not in names:
            raise InputError(f"`trainer.{key}` must be a field of TRL's GRPOConfig{hint(key, names)}")
        _check_kind(key, value, hints[key])
    loggers = [name.strip() for name in config.run.report_to.split(",") if name.strip()]
    for name in loggers:
        if name not in ("trackio", "wandb", "tensorboard"):
            raise InputError(f"`run.report_to` must name trackio, wandb or tensorboard; got {name!r}.")
        try:
            importlib.import_module(name)
        except ImportError:
            raise MissingExtraError(name, name, "log to it") from None
    defaults: dict[str, Any] = {"disable_dropout": True}
    if not torch.cuda.is_available():
        defaults |= {
            "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "dataloader_pin_memory": False,
        }  # fmt: skip
    try:
        settings = GRPOConfig(
            **(_as_named_here(defaults, names) | _as_named_here(config.trainer, names)),
            output_dir=str(folder), max_steps=config.run.steps, seed=config.run.seed, save_strategy="steps",
            save_steps=config.run.checkpoint_every, logging_steps=1, disable_tqdm=True, report_to=loggers or "none",
        )  # fmt: skip
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"`trainer` must be settings that TRL's GRPOConfig takes; it says: {reason}") from error
    period = settings.steps_per_generation * settings.num_iterations
    together = period // math.gcd(period, settings.gradient_accumulation_steps)
    if config.run.checkpoint_every % together:
        raise InputError(
            f"`run.checkpoint_every` must be a multiple of {together}, the optimizer steps that share a batch of "
            f"rollouts; got {config.run.checkpoint_every}."
        )
    return settings


def _as_named_here(options: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Gradient checkpointing under the installed Transformers' name: newer ones call it activation checkpointing."""
    newer = {key: key.replace("gradient_", "activation_") for key in options if key.startswith("gradient_checkp")}
    moved = {key: name for key, name in newer.items() if name in names and name not in options}
    return {moved.get(key, key): value for key, value in options.items()}


def _check_kind(key: str, value: Any, kinds: Any) -> None:
    """Holds a value to its field's annotation where that is of plain kinds; GRPOConfig itself takes anything."""
    plain = [x for x in get_args(kinds) or (kinds,) if x in (int, float, bool, str)]
    others = [x for x in get_args(kinds) or (kinds,) if x not in (int, float, bool, str, type(None))]
    if value is None or not plain or others:
        return
    fits = type(value) in plain or (float in plain and type(value) is int)
    if not fits:
        wanted = " or ".join(x.__name__ for x in plain)
        raise InputError(f"`trainer.{key}` must be {wanted}; got {value!r}.")


def make_trainer(
    config: RunConfig, settings: GRPOConfig, callbacks: Sequence[TrainerCallback] = ()
) -> tuple[CreditGRPOTrainer, RolloutObserver]:
    """The trainer and the observer whose rollouts the run store keeps.

    Raises:
        InputError: Whatever the policy, the task, the signal or the adapter refuses.
    """
    from datasets import Dataset

    set_seed(config.run.seed)
    task = build_task(*typed("task", config.task))
    policy = load_policy(
        config.policy.name, dtype=config.policy.dtype, trust_remote_code=config.policy.trust_remote_code
    )
    model = add_lora(policy.model, config.lora) if config.lora else policy.model
    tokenizer = policy.tokenizer
    examples = task.examples("train", _example_count(config, settings, task.endless), seed=config.run.seed)
    data = Dataset.from_list(
        [
            {"prompt": render_prompt(tokenizer, task, example.prompt), "reference": example.reference, "id": example.id}
            for example in examples
        ]
    )
    eos = policy.model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])} - {None}
    protocol = protocol_of(task, tokenizer)
    grader = TaskGrader(task, tokenizer, ends, None if isinstance(protocol, OneTurn) else protocol.asks)
    estimator = build_estimator(*typed("estimator", config.estimator))
    observer = RolloutObserver(
        grader, estimator.type, every=config.run.rollouts_every, kept=config.run.rollouts_kept, last=config.run.steps
    )
    run_folder = Path(settings.output_dir).parent
    beside = model_arguments(config, policy, settings.temperature, run_folder)
    process = signal_arguments(config, policy, grader, run_folder)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # rollout_func says so of itself
    rollouts = rollout_arguments(config.run.sampler, settings, protocol, examples[0].reference)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*PyTorch.*distributed.*|.*pin_memory.*", category=UserWarning)
        trainer = CreditGRPOTrainer(
            model=model, reward_funcs=[grader.outcome, grader.format], args=settings, train_dataset=data,
            processing_class=tokenizer, callbacks=list(callbacks), **rollouts,
            estimator=estimator, outcome=["outcome"], format=["format"], on_credit=observer,
            correct=grader.correct, kl_every=config.run.kl_every, **beside, **process, **config.credit,
        )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    return trainer, observer


def _example_count(config: RunConfig, settings: GRPOConfig, endless: bool) -> int | None:
    """As asked; else all that there are, or where there is no end one fresh problem a group of the whole run."""
    if config.run.train_examples is not None or not endless:
        return config.run.train_examples
    rollouts = settings.per_device_train_batch_size * settings.world_size * settings.gradient_accumulation_steps
    return max(config.run.steps * int(rollouts) // int(settings.num_generations), 1)
