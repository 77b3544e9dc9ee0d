"""What a run's process signal is made from: the signal, and the models beside the policy that it may read."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stepcredit.batch import Rollouts
from stepcredit.config import build_signal
from stepcredit.config.run import TASK_STEPS, Model, RunConfig, typed
from stepcredit.errors import InputError
from stepcredit.runs.grading import TaskGrader
from stepcredit.runs.policies import Policy, load_policy, source_of
from stepcredit.signals import CausalLM, Guard, ImplicitPRM, RefreshedPRM, RemoteTeacher, Signal
from stepcredit.signals.remote import Served

SCORES = "scores.sqlite"  # beside the run's config: every number of a served signal, so that a resume pays none twice


def signal_arguments(config: RunConfig, policy: Policy, grader: TaskGrader, folder: Path) -> dict[str, Any]:
    """The signal, its guard and how steps are cut, as arguments of the TRL adapter's `attach`.

    Args:
        config: The run's.
        policy: As loaded, before an adapter is added.
        grader: The task's.
        folder: The run's, where the scores of served signals are kept.

    Raises:
        InputError: The task grades no steps where the signal reads them, or what the signal refuses.
    """
    if not config.signal:
        return {}
    name, options = typed("signal", config.signal)
    arguments: dict[str, Any] = {"guard": Guard(**config.guard)} if config.guard else {}
    if "steps" in options:
        arguments["steps"] = options.pop("steps")
    if name == TASK_STEPS:
        if not grader.task.kinds:
            raise InputError(f"`signal.type` must not be {TASK_STEPS!r} for {grader.task.name}, which grades no steps.")
        return {**arguments, "signal": grader}
    for key in ("tokenizer",) if "url" in options else ("model",):  # what a server calls a model is its own affair
        if key in options:
            options[key] = source_of(options[key])
    signal: Signal = build_signal(name, options)
    if isinstance(signal, Served) and signal.cache is None:
        signal = dataclasses.replace(signal, cache=str(folder / SCORES))
    if isinstance(signal, RefreshedPRM):
        signal.bind(step_labels=_StepLabels(grader) if grader.task.kinds else None)
    if isinstance(signal, ImplicitPRM):  # trained in place: never the policy itself
        signal.bind(model=_load(config.policy).model if signal.model is None else None, tokenizer=policy.tokenizer)
    return {**arguments, "signal": signal}


def model_arguments(config: RunConfig, policy: Policy, temperature: float, folder: Path) -> dict[str, Any]:
    """The models beside the policy, as arguments of `attach`; roles with the same settings are one object.

    A model that reads other tokens than the policy, or that is served elsewhere, becomes a `LogProbSource`.

    Raises:
        InputError: The reference has another vocabulary, or whatever a model refuses.
    """
    arguments: dict[str, Any] = {}
    made: dict[Any, Any] = {}
    for role, model in config.models.items():
        if model not in made:
            if model.url is not None:
                source = RemoteTeacher(
                    model.url, model.name, source_of(config.policy.name), token_env=model.token_env,
                    cache=str(folder / SCORES),
                )  # fmt: skip
                made[model] = source, None
            else:
                loaded = _load(model)
                made[model] = loaded.model, loaded.tokenizer
        found, tokenizer = made[model]
        if tokenizer is not None and role != "reference":
            other = CausalLM(
                found, tokenizer, policy_tokenizer=policy.tokenizer, temperature=temperature
            )  # says whether the vocabulary is another
            if other.difference is not None:
                made[model] = found, tokenizer = other, None
        arguments[_ARGUMENTS[role]] = found
        if tokenizer is not None and role != "reference":
            arguments[f"{role}_tokenizer"] = tokenizer
    return arguments


def _load(model: Model) -> Policy:
    return load_policy(model.name, dtype=model.dtype, trust_remote_code=model.trust_remote_code)


_ARGUMENTS = {"teacher": "teacher_model", "base": "base_model", "reference": "ref_model"}


class _StepLabels:
    """The task's ground truth for the steps that a signal scores: the task's own step at each one's last character."""

    def __init__(self, grader: TaskGrader) -> None:
        self.grader = grader

    def __call__(self, rollouts: Rollouts) -> list[Sequence[float | None]]:
        return [
            [next((s.score for s in truth if s.start < end <= s.end), None) for _, end in spans]
            for spans, truth in zip(rollouts.steps or (), self.grader.score(rollouts), strict=True)
        ]
