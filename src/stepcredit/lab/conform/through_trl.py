"""The TRL adapter on a real trainer: our credit through it, laws and all, to the loss and the gradient."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from stepcredit.batch import RolloutBatch, Rollouts
from stepcredit.errors import InputError
from stepcredit.estimators import GRPO, PASS, Estimator
from stepcredit.lab.conform.golden import Golden, golden_batches, in_float32
from stepcredit.lab.conform.law import Trial, Twin, Verdict, invariance, one_line
from stepcredit.lab.conform.laws import LAWS
from stepcredit.lab.conform.running import Report, verdict_on
from stepcredit.lab.conform.target import Target
from stepcredit.lab.peers.trl_host import Host

LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")
_SKIPPED = {"packed", "shards", "options"}


@dataclass(frozen=True, eq=False)
class _AsGiven:
    """A process signal that is the golden batch's own, row by row in the order that the trainer has them."""

    name: ClassVar[str] = "as given"
    unit: ClassVar[str] = "as given"
    requires: ClassVar[frozenset[str]] = frozenset()
    through: "ThroughTRL"

    def score(self, _rollouts: Rollouts) -> list[list[float]]:
        raise InputError("`signal` must be called on tensors; got rollouts.")

    def __call__(self, batch: RolloutBatch) -> RolloutBatch:
        given, order = self.through.given, self.through.order
        assert given is not None
        width = min(batch.response_mask.shape[1], given.response_mask.shape[1])
        fields = {}
        for name, fill in (("process_rewards", 0.0), ("step_ids", -1), ("process_mask", False)):
            x = getattr(given, name)
            if x is not None:
                wide = x.new_full(batch.response_mask.shape, fill)
                wide[:, :width] = x[order][:, :width]
                fields[name] = wide.float() if name == "process_rewards" else wide
        return batch.replace(**fields)


@dataclass(eq=False)
class ThroughTRL:
    """An estimator's credit by the way of TRL: sampled, masked, rewarded, grouped and scored by its trainer.

    Attributes:
        estimator: What is attached; it may read outcome and process signal.
        given: The batch on its way, and ``order`` its rows' order there.
    """

    estimator: Estimator
    given: RolloutBatch | None = None
    order: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Makes the host; its trainer is made with the first batch."""
        self.host = Host("GRPOTrainer", {}, self._attach)
        self.requires = self.estimator.requires | {"rewards"}
        self.exempt = self.estimator.exempt

    def _attach(self, trainer: Any) -> Any:
        from stepcredit.adapters.trl import attach

        signal = _AsGiven(self) if "process_rewards" in self.estimator.requires else None
        correct = None if self.given is None else lambda _: [bool(self.given.correct[i]) for i in self.order]  # type: ignore[union-attr,index]
        return attach(trainer, self.estimator, signal=signal, correct=correct)

    def __call__(self, batch: RolloutBatch) -> Tensor:
        """Advantages [batch, time] as TRL's loss gets them."""
        assert batch.rewards is not None
        labels = batch.group_ids.tolist()
        self.given = batch
        self.order = sorted(range(len(labels)), key=lambda i: (labels.index(labels[i]), i))
        return self.host.advantages(batch, {"outcome": batch.rewards})


def conform_trl() -> Report:
    """Every loss of `GRPOTrainer` after our advantages, the laws on PASS through the trainer, and the gradient."""
    begun = time.perf_counter()
    verdicts = [_loss(loss) for loss in LOSSES]
    verdicts += [_refused("sequence level", "GRPOTrainer", {"importance_sampling_level": "sequence"})]
    verdicts += [_refused("RLOOTrainer", "RLOOTrainer", {})]
    through = ThroughTRL(PASS())
    trial = Trial(Target.of(through, "PASS through TRL"), golden_batches(through.requires))
    verdicts += [_gradient(through, golden) for golden, _ in list(trial.answered())[:1]]
    verdicts += [_faithful(trial, through.estimator)]
    verdicts += [verdict_on(law, trial) for law in LAWS if law.name not in _SKIPPED]
    return Report("adapters.trl", verdicts, len(list(trial.answered())), time.perf_counter() - begun)


def _loss(loss: str) -> Verdict:
    """The adapter proves a loss when it is attached."""
    from stepcredit.adapters.trl import attach

    name = f"loss {loss}"
    try:
        attach(Host("GRPOTrainer", {"loss_type": loss}).trainer(), GRPO())
    except Exception as error:  # noqa: BLE001 - TRL's own, or the adapter's refusal
        return Verdict(name, "BROKEN", one_line(error))
    return Verdict(name, "holds", "the gradient follows token-level advantages", tried=1)


def _refused(what: str, kind: str, settings: dict[str, Any]) -> Verdict:
    """What would average token credit over the sequence is refused by name."""
    from stepcredit.adapters.trl import attach

    name = f"refuses {what}"
    try:
        attach(Host(kind, settings).trainer(), GRPO())
    except InputError as error:
        return Verdict(name, "holds", one_line(error), tried=1)
    return Verdict(name, "BROKEN", "is attached to, though its loss loses token credit")


def _faithful(trial: Trial, estimator: Estimator) -> Verdict:
    """What arrives at the loss is what the estimator gives to the batch itself."""

    def twins(golden: Golden) -> Iterator[Twin]:
        # TRL has no format reward here, and a batch that lacks one is another for PASS
        plain = golden.batch.replace(format_rewards=None, format_ok=None, extra_rewards=None)
        want = estimator(in_float32(plain)).advantages
        yield Twin(golden.batch, lambda x: x, lambda _: want)

    return invariance("faithful", twins)(trial)


def _gradient(through: ThroughTRL, golden: Golden) -> Verdict:
    """The trainer's own gradient against that of minus sum of credit times log-probability, by a plain forward."""
    credit = through(golden.batch)
    trainer, order = through.host.trainer(), through.order
    size = len(order) // len(set(golden.batch.group_ids.tolist()))
    assert golden.batch.rewards is not None
    output = through.host.scored(golden.batch, order, size, {"outcome": golden.batch.rewards[order].tolist()})
    trainer.current_gradient_accumulation_steps = 1
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    taken = torch.autograd.grad(trainer.compute_loss(trainer.model, dict(output)), parameters, allow_unused=True)
    ids = torch.cat([output["prompt_ids"], output["completion_ids"]], 1)
    attention = torch.cat([output["prompt_mask"], output["completion_mask"]], 1)
    logits = type(trainer.model).forward(trainer.model, input_ids=ids, attention_mask=attention).logits
    start = output["prompt_ids"].shape[1] - 1
    logprobs = logits[:, start:-1].log_softmax(-1).gather(2, output["completion_ids"][..., None])[..., 0]
    wide = torch.zeros_like(logprobs)
    wide[:, : credit.shape[1]] = credit[order][:, : wide.shape[1]]
    wanted = torch.autograd.grad(-(wide * logprobs).sum(), parameters, allow_unused=True)
    cosine = _cosine(taken, wanted)
    return Verdict(
        "gradient", "holds" if cosine > 1 - 1e-4 else "BROKEN",
        f"1 - cosine is {1 - cosine:.1g} to minus the sum of credit times log-probability", 1 - cosine, str(golden), 1,
    )  # fmt: skip


def _cosine(one: Sequence[Tensor | None], other: Sequence[Tensor | None]) -> float:
    pairs = [(x.flatten().double(), y.flatten().double()) for x, y in zip(one, other, strict=True)
             if x is not None and y is not None]  # fmt: skip
    x, y = torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs])
    return float(x @ y / (x.norm() * y.norm()))
