"""A run's settings in verl's words: overrides of its config, by their dotted names there."""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stepcredit.config import hint
from stepcredit.config.run import TASK_STEPS, RunConfig
from stepcredit.errors import InputError
from stepcredit.runs.policies import source_of
from stepcredit.runs.verl.tasks import LOOP

Overrides = dict[str, Any]
_NEVER = 1e6
"""A bound of the ratio that none reaches: verl has one for negative advantages where TRL has none."""
_PLAIN = re.compile(
    r"(?!(?:true|false|null|inf|nan)$)[A-Za-z/_][\w/.:-]*", re.ASCII | re.IGNORECASE
)  # needs no quotes, and is text
CHECKPOINTS = "verl/checkpoints"
"""Of verl's, in a run directory."""
_ACTOR, _ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"

_TRAINER: dict[str, tuple[Any, Callable[[Any], Overrides]]] = {  # GRPOConfig's field -> its default there, verl's words
    "learning_rate": (1e-6, lambda x: {f"{_ACTOR}.optim.lr": x}),
    "weight_decay": (0.0, lambda x: {f"{_ACTOR}.optim.weight_decay": x}),
    "max_grad_norm": (1.0, lambda x: {f"{_ACTOR}.optim.clip_grad": x}),
    "num_generations": (8, lambda x: {f"{_ROLLOUT}.n": x}),
    "max_completion_length": (256, lambda x: {"data.max_response_length": x}),
    "temperature": (1.0, lambda x: {f"{_ROLLOUT}.temperature": x}),
    "top_p": (1.0, lambda x: {f"{_ROLLOUT}.top_p": x}),
    "top_k": (0, lambda x: {f"{_ROLLOUT}.top_k": x or -1}),
    "delta": (_NEVER, lambda x: {f"{_ACTOR}.clip_ratio_c": x or _NEVER}),
    "epsilon": (0.2, lambda x: {f"{_ACTOR}.clip_ratio": x, f"{_ACTOR}.clip_ratio_low": x}),
    "vllm_gpu_memory_utilization": (0.5, lambda x: {f"{_ROLLOUT}.gpu_memory_utilization": x}),
    "vllm_max_model_length": (None, lambda x: {f"{_ROLLOUT}.max_model_len": x}),
    "gradient_checkpointing": (True, lambda x: {"actor_rollout_ref.model.enable_gradient_checkpointing": x}),
}
_LOSSES = {"dapo": "token-mean", "grpo": "seq-mean-token-mean", "dr_grpo": "seq-mean-token-sum-norm"}
_SCHEDULES = {"constant": "constant", "constant_with_warmup": "constant", "cosine": "cosine"}
_OTHERS = {  # fields that are read below, or that say nothing to verl: it always samples with a server of its own
    "per_device_train_batch_size", "gradient_accumulation_steps", "loss_type", "lr_scheduler_type", "warmup_steps",
    "epsilon_high", "beta", "adam_beta1", "adam_beta2", "use_vllm", "vllm_mode", "bf16",
}  # fmt: skip


def verl_overrides(config: RunConfig, folder: Path, *, reads: frozenset[str]) -> Overrides:
    """A run's settings as overrides of verl's ``ppo_trainer`` config.

    Args:
        config: The run's.
        folder: The run directory, as an absolute path: it has the data and takes the checkpoints.
        reads: The batch fields that the scheme and its signal read.

    Returns:
        Dotted name -> value; the config's own ``[verl]`` comes last and wins.

    Raises:
        InputError: A setting that has no counterpart on verl.
    """
    trainer = dict(config.trainer)
    for key in trainer:
        if key not in _TRAINER and key not in _OTHERS:
            raise InputError(
                f"`trainer.{key}` must have a counterpart on verl{hint(key, [*_TRAINER, *_OTHERS])}. "
                "Give verl's own settings under [verl]."
            )
    found: Overrides = {}
    for key, (default, words) in _TRAINER.items():
        value = trainer.get(key, default)
        if value is not None and default is not None and isinstance(value, str) != isinstance(default, str):
            raise InputError(f"`trainer.{key}` must be {type(default).__name__}; got {value!r}.")
        found |= words(value)
    found[f"{_ACTOR}.clip_ratio_high"] = trainer.get("epsilon_high") or trainer.get("epsilon", 0.2)
    found |= (
        _batches(config)
        | _loss(trainer, reads)
        | _optimizer(trainer, config.run.steps)
        | _credit(config)
        | _models(config, reads)
    )
    found |= _task(config, folder) | _run(config, folder)
    return found | flat(config.verl)


def flat(tables: Mapping[str, Any], above: str = "") -> Overrides:
    """Nested tables by dotted names."""
    found: Overrides = {}
    for key, value in tables.items():
        name = f"{above}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found


def arguments(overrides: Overrides) -> list[str]:
    """Overrides as verl's command line takes them; each is added where verl's config lacks it."""
    return [f"++{name}={_word(value)}" for name, value in overrides.items()]


def _word(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        odd = [key for key in value if not _PLAIN.fullmatch(str(key))]
        if odd:
            raise InputError(f"`{odd[0]}` must be a word, as a name in a table on verl's command line; got {odd[0]!r}.")
        return "{" + ",".join(f"{key}:{_word(x)}" for key, x in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_word, value))}]"
    if isinstance(value, str):
        if _PLAIN.fullmatch(value):
            return value
        # Within quotes a backslash is itself, but before a quote it must be doubled.
        inside = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), value)
        return "'" + inside.replace("${", "\\${") + "'"
    return str(value)


def devices(config: RunConfig) -> int:
    """The number of training devices, which ``[verl.trainer]`` says; 1 by default."""
    trainer = config.verl.get("trainer", {})
    return int(trainer.get("n_gpus_per_node", 1)) * int(trainer.get("nnodes", 1))


def prompts_a_step(config: RunConfig) -> int:
    """Prompts of one step: as on TRL, batches are counted a device.

    Raises:
        InputError: The rollouts of a step are no whole number of groups.
    """
    asked = flat(config.verl).get("data.train_batch_size")
    if asked is not None:
        return int(asked)
    trainer = config.trainer
    rollouts = int(trainer.get("per_device_train_batch_size", 8)) * int(trainer.get("gradient_accumulation_steps", 1))
    rollouts, group = rollouts * devices(config), int(trainer.get("num_generations", 8))
    if rollouts % group:
        raise InputError(f"`trainer.num_generations` must divide the {rollouts} rollouts of a step; got {group}.")
    return rollouts // group


def _batches(config: RunConfig) -> Overrides:
    prompts = prompts_a_step(config)
    micro = int(config.trainer.get("per_device_train_batch_size", 8))
    return {
        "data.train_batch_size": prompts,
        f"{_ACTOR}.ppo_mini_batch_size": prompts,
        f"{_ACTOR}.ppo_micro_batch_size_per_gpu": micro,
        f"{_ROLLOUT}.log_prob_micro_batch_size_per_gpu": micro,
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": micro,
    }


def _loss(trainer: Mapping[str, Any], reads: frozenset[str]) -> Overrides:
    loss, beta = trainer.get("loss_type", "dapo"), float(trainer.get("beta", 0.0))
    if loss not in _LOSSES:
        raise InputError(f"`trainer.loss_type` must be one of {', '.join(_LOSSES)} on verl; got {loss!r}.")
    return {
        f"{_ACTOR}.loss_agg_mode": _LOSSES[loss],
        f"{_ACTOR}.loss_scale_factor": trainer.get("max_completion_length", 256) if loss == "dr_grpo" else None,
        f"{_ACTOR}.use_kl_loss": beta > 0 or bool(reads & {"ref_logprobs", "base_logprobs"}),
        f"{_ACTOR}.kl_loss_coef": beta,
        f"{_ACTOR}.kl_loss_type": "low_var_kl",
    }


def _optimizer(trainer: Mapping[str, Any], steps: int) -> Overrides:
    schedule = trainer.get("lr_scheduler_type", "constant")
    if schedule not in _SCHEDULES:
        raise InputError(
            f"`trainer.lr_scheduler_type` must be one of {', '.join(_SCHEDULES)} on verl; got {schedule!r}."
        )
    warmup = float(trainer.get("warmup_steps", 0))
    warmup = 0 if schedule == "constant" else math.ceil(warmup * steps) if warmup < 1 else warmup
    return {
        f"{_ACTOR}.optim.lr_scheduler_type": _SCHEDULES[schedule],
        f"{_ACTOR}.optim.lr_warmup_steps": int(warmup),
        f"{_ACTOR}.optim.betas": [float(trainer.get("adam_beta1", 0.9)), float(trainer.get("adam_beta2", 0.999))],
    }


def _credit(config: RunConfig) -> Overrides:
    at = "algorithm.stepcredit"
    options = {f"{at}.{key}": value for key, value in config.estimator.items() if key != "type"}
    scheme = config.estimator["type"]
    found: Overrides = {"algorithm.adv_estimator": "stepcredit", f"{at}.type": scheme, **options}
    if ":" not in scheme:
        found = {"algorithm.adv_estimator": f"stepcredit_{scheme}", **options}
    signal = dict(config.signal)
    steps = signal.pop("steps", None)
    for key in ("tokenizer",) if "url" in signal else ("model",):  # what a server calls a model is its own affair
        if key in signal:
            signal[key] = source_of(signal[key])
    if signal and signal["type"] != TASK_STEPS:
        found |= {f"{at}.signal.{key}": value for key, value in signal.items()}
    found |= {} if steps is None else {f"{at}.steps": steps}
    found |= {f"{at}.guard.{key}": value for key, value in config.guard.items()}
    if "gspo_token" in config.credit:
        raise InputError("`credit.gspo_token` must not be given on verl; set actor.policy_loss.loss_mode under [verl].")
    if "format_threshold" in config.credit:
        found[f"{at}.format_threshold"] = config.credit["format_threshold"]
    return {
        **found, "algorithm.use_kl_in_reward": False,
        "reward.reward_manager.name": "stepcredit", "trainer.v1.trainer_mode": "stepcredit_sync",
    }  # fmt: skip


def _models(config: RunConfig, reads: frozenset[str]) -> Overrides:
    policy = source_of(config.policy.name)
    found: Overrides = {
        "actor_rollout_ref.model.path": policy,
        "actor_rollout_ref.model.trust_remote_code": config.policy.trust_remote_code,
    }
    if config.lora:
        raise InputError("`policy.lora` must not be given on verl: its checkpoints of adapters are not read here.")
    if config.policy.dtype is not None:
        raise InputError("`policy.dtype` must not be given on verl; set actor.fsdp_config.model_dtype under [verl].")
    for role in ("reference", "base"):
        model = config.models.get(role)
        if model is not None and (model.url is not None or source_of(model.name) != policy):
            raise InputError(f"`{role}.name` must be the policy's on verl, whose reference it is; got {model.name!r}.")
    teacher = config.models.get("teacher")
    if teacher is not None and "teacher_logprobs" in reads:
        if teacher.url is not None:
            raise InputError("`teacher.url` must not be given on verl, which serves the teacher itself.")
        at = "distillation.teacher_models.teacher_model"
        found |= {
            "distillation.enabled": True, f"{at}.model_path": source_of(teacher.name), f"{at}.num_replicas": 1,
            f"{at}.inference.tensor_model_parallel_size": 1, "distillation.n_gpus_per_node": 1,
            "distillation.nnodes": 1, "distillation.distillation_loss.loss_mode": "k3",
            "distillation.distillation_loss.distillation_loss_coef": 0.0,
        }  # fmt: skip
    return found


def _task(config: RunConfig, folder: Path) -> Overrides:
    return {
        "data.train_files": str(folder / "verl" / "train.parquet"),
        "data.val_files": str(folder / "verl" / "val.parquet"),
        "data.seed": config.run.seed,
        f"{_ROLLOUT}.seed": config.run.seed,
        f"{_ACTOR}.data_loader_seed": config.run.seed,
        f"{_ACTOR}.fsdp_config.seed": config.run.seed,
        "data.filter_overlong_prompts": False,
        f"{_ROLLOUT}.agent.agent_loop_config_path": str(folder / "verl" / "loops.yaml"),
        f"{_ROLLOUT}.agent.default_agent_loop": LOOP,
        "reward.custom_reward_function.path": "pkg://stepcredit.runs.verl.reward",
        "reward.custom_reward_function.reward_kwargs.config": str(folder / "config.toml"),
    }


def _run(config: RunConfig, folder: Path) -> Overrides:
    return {
        "trainer.total_training_steps": config.run.steps,
        "trainer.total_epochs": config.run.steps,  # an epoch has a step at least
        "trainer.save_freq": min(config.run.checkpoint_every, config.run.steps),
        "trainer.max_actor_ckpt_to_keep": config.run.keep_checkpoints,
        "trainer.default_local_dir": str(folder / CHECKPOINTS),
        "trainer.val_before_train": False,
        "trainer.test_freq": -1,
        "trainer.logger": [
            "console",
            "file",
            *filter(None, (name.strip() for name in config.run.report_to.split(","))),
        ],
        "trainer.project_name": "stepcredit",
        "trainer.experiment_name": folder.name,
        "trainer.nnodes": 1,
        "trainer.n_gpus_per_node": 1,
        f"{_ACTOR}.checkpoint.save_contents": ["model", "optimizer", "extra", "hf_model"],
        f"{_ACTOR}.strategy": "fsdp2",
        "actor_rollout_ref.ref.strategy": "fsdp2",
        f"{_ROLLOUT}.name": "vllm",
        f"{_ROLLOUT}.tensor_model_parallel_size": 1,
        f"{_ROLLOUT}.calculate_log_probs": True,
        "critic.enable": False,
    }
