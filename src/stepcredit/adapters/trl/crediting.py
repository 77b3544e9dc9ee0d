"""One generation batch: its log-probabilities, its process signal, its credit, and what is logged of it."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stepcredit.adapters.trl import learning
from stepcredit.adapters.trl.channels import Channels
from stepcredit.adapters.trl.models import Start, reference_logprobs, token_logprobs
from stepcredit.adapters.trl.rollouts import Cut, group_ids, loss_mask, text_rollouts
from stepcredit.batch import Credit, RolloutBatch, Rollouts
from stepcredit.diagnostics import credit_metrics
from stepcredit.errors import InputError
from stepcredit.estimators import Estimator
from stepcredit.ops.groups import ProcessGroup, refusing_alike
from stepcredit.signals import (
    Guard,
    LearningSignal,
    LogProbSource,
    Signal,
    TensorSignal,
    are_token_values,
    place_scores,
    place_steps,
)


@dataclass(frozen=True, eq=False)
class CreditStep:
    """What an observer sees of one generation batch: the very tensors that train.

    Attributes:
        step: The trainer's global step.
        mode: "train" or "eval".
        rollouts: This rank's rollouts as text; offsets only where a text signal is scored, steps only where it reads
            them (`Signal.requires`) or ``steps`` were asked for.
        batch: This rank's rollouts as tensors.
        credit: This rank's credit.
    """

    step: int
    mode: str
    rollouts: Rollouts
    batch: RolloutBatch
    credit: Credit


Observer = Callable[[CreditStep], Mapping[str, float] | None]
Verdict = Callable[[Rollouts], Sequence[bool]]


@dataclass(frozen=True, eq=False)
class Settings:
    """What `attach` was given, checked; ``models`` holds what scores tokens beside the policy, by role."""

    estimator: Estimator
    signal: Signal | None
    guard: Guard | None
    channels: Channels
    cut: Cut
    by_steps: bool
    reference: str
    needs: frozenset[str]
    models: dict[str, nn.Module | LogProbSource | Start | None]
    gspo_token: bool
    on_credit: Observer | None
    kl_every: int
    correct: Verdict | None


def with_credit(
    trainer: Any, output: dict[str, Any], inputs: Any, completion_ids: Any, rewards: Tensor
) -> dict[str, Any]:
    """TRL's batch with the estimator's advantages in place of its own."""
    credit: Settings = trainer._credit
    mode = "train" if trainer.model.training else "eval"
    metrics = trainer._metrics[mode]
    group = dist.group.WORLD if trainer.accelerator.num_processes > 1 else None
    reads = credit.needs | (_KL if _watches_kl(trainer) else frozenset())
    logprobs = _own_logprobs(trainer, output, reads)

    begun = time.perf_counter()
    mask = loss_mask(output)
    numbers: dict[str, float] = {}
    with refusing_alike(group, mask.device):  # another rank would wait for one that raises
        rollouts, batch = _batch(trainer, output, inputs, completion_ids, rewards, logprobs, reads)
    batch = _with_signal(trainer, credit, rollouts, batch, mode, numbers, group)
    assigned = credit.estimator(batch, process_group=group)
    output["advantages"] = assigned.advantages.to(output["advantages"].dtype)
    _log_advantages(trainer, output["advantages"], mask)
    for name, value in credit_metrics(batch, assigned, process_group=group).items():
        numbers[f"credit/{name}"] = value
    if credit.on_credit is not None:
        numbers |= credit.on_credit(CreditStep(trainer.state.global_step, mode, rollouts, batch, assigned)) or {}
    numbers["credit/seconds"] = time.perf_counter() - begun
    for name, value in numbers.items():
        metrics[name].append(value)
    return output


def _batch(
    trainer: Any, output: dict[str, Any], inputs: Any, completion_ids: Any, rewards: Tensor, logprobs: dict[str, Any],
    reads: frozenset[str],
) -> tuple[Rollouts, RolloutBatch]:  # fmt: skip
    """This rank's rollouts, as text and as tensors; no collective."""
    credit: Settings = trainer._credit
    mask = loss_mask(output)
    n_rows, rank = len(mask), trainer.accelerator.process_index
    generations = trainer.num_generations if trainer.model.training else trainer.num_generations_eval
    groups = group_ids(n_rows, generations, rank, mask.device)
    local = rewards[rank * n_rows : (rank + 1) * n_rows].to(mask.device)
    fields: dict[str, Any] = credit.channels.fields(local, trainer.reward_weights.to(mask.device))
    sources = {role: x for role, x in credit.models.items() if _is_source(x) and f"{role}_logprobs" in reads}
    signal = credit.signal if not isinstance(credit.signal, TensorSignal) else None  # one that reads text
    cuts = credit.by_steps or (signal is not None and "steps" in signal.requires)
    rollouts = text_rollouts(
        inputs, completion_ids, mask, groups, trainer.processing_class,
        cut=credit.cut if cuts else None, offsets=signal is not None or bool(sources), reference=credit.reference,
        prompt_ids=_unpadded(output["prompt_ids"], output["prompt_mask"]),
    )  # fmt: skip
    logprobs = logprobs | _source_logprobs(sources, rollouts, logprobs, mask)
    if credit.correct is not None:
        fields["correct"] = torch.tensor(list(credit.correct(rollouts)), dtype=torch.bool, device=mask.device)
    return rollouts, RolloutBatch(mask, groups, **fields, **logprobs)


def _with_signal(
    trainer: Any, credit: Settings, rollouts: Rollouts, batch: RolloutBatch, mode: str, numbers: dict[str, float],
    group: ProcessGroup | None,
) -> RolloutBatch:  # fmt: skip
    """The batch with process rewards, guarded; a signal that learns does, and says how."""
    signal = credit.signal
    if signal is None:
        return batch
    learner = signal if isinstance(signal, LearningSignal) and mode == "train" else None
    first = getattr(signal, "when", "after") == "before"
    if learner and first:
        numbers |= learning.update(trainer, learner, rollouts, batch)
    with refusing_alike(group, batch.response_mask.device):
        if isinstance(signal, TensorSignal):
            scored = signal(place_steps(batch, rollouts) if credit.by_steps else batch)
        else:
            scores = signal.score(rollouts)
            in_steps = credit.by_steps and are_token_values(scores)
            scored = place_scores(place_steps(batch, rollouts) if in_steps else batch, rollouts, scores)
    if learner and not first:
        numbers |= learning.update(trainer, learner, rollouts, batch)
    return scored if credit.guard is None else credit.guard(scored)


_KL = frozenset({"old_logprobs", "ref_logprobs"})


def _watches_kl(trainer: Any) -> bool:
    """Whether this batch is one whose KL to the reference is measured; by the step, which a resumed run knows."""
    updates = trainer.args.steps_per_generation * trainer.num_iterations // trainer.args.gradient_accumulation_steps
    every: int = trainer._credit.kl_every
    return every > 0 and trainer.state.global_step // max(updates, 1) % every == 0


def _own_logprobs(trainer: Any, output: dict[str, Any], reads: frozenset[str]) -> dict[str, Any]:
    """What is read under the trainer's own forward: never the sampler's. Roles that share a model share its pass."""
    models = trainer._credit.models
    found: dict[str, Any] = {}
    seen: dict[int, Tensor] = {}
    for name in sorted(reads, reverse=True):  # the reference before the base, which may be the same
        role = name.removesuffix("_logprobs")
        role = "ref" if role == "base" and "base" not in models else role
        if _is_source(models.get(role)):
            continue
        if role == "old":
            old = output.get("old_per_token_logps")
            found[name] = token_logprobs(trainer, trainer.model, output) if old is None else old.detach()
            continue
        model = models[role]
        if id(model) not in seen:
            score = reference_logprobs if role == "ref" else token_logprobs
            seen[id(model)] = score(trainer, model, output)
        found[name] = seen[id(model)]
    return found


def _source_logprobs(
    sources: dict[str, Any], rollouts: Rollouts, own: dict[str, Any], mask: Tensor
) -> dict[str, Tensor]:
    """What is read from elsewhere, for the same tokens; roles that share a source are asked once."""
    if not sources:
        return {}
    lengths = [len(ids) for ids in rollouts.token_ids or []]
    if "old_logprobs" in own:
        rows = [row[:n] for row, n in zip(own["old_logprobs"].tolist(), lengths, strict=True)]
        rollouts = rollouts.replace(old_logprobs=rows)
    found: dict[str, Tensor] = {}
    asked: dict[int, Tensor] = {}
    for role, source in sources.items():
        if id(source) not in asked:
            asked[id(source)] = tensor = torch.zeros(mask.shape)
            answers = source.logprobs(rollouts)
            for i, (row, n) in enumerate(zip(answers, lengths, strict=True)):
                if len(row) != n:
                    raise InputError(
                        f"`{role}_model` must give one number a token; got {len(row)} for {n} tokens, row {i}."
                    )
                tensor[i, :n] = torch.as_tensor(row)
        found[f"{role}_logprobs"] = asked[id(source)].to(mask.device)
    return found


def _is_source(model: Any) -> bool:
    return isinstance(model, LogProbSource) and not isinstance(model, nn.Module)


def _unpadded(ids: Tensor, mask: Tensor) -> list[list[int]]:
    rows = torch.where(mask.bool(), ids, -1).cpu().numpy()  # one reading: a GPU would be waited for twice
    kept = rows >= 0
    flat, ends = rows[kept].tolist(), kept.sum(1).cumsum().tolist()
    return [flat[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def gspo_old_logprobs(inputs: dict[str, Any], logprobs: Tensor) -> None:
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
