"""The verl adapter by verl's own dispatcher: our registered estimators on its columns, and its policy losses."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stepcredit.batch import RolloutBatch
from stepcredit.errors import MissingExtraError
from stepcredit.estimators import PASS, SPRO, Estimator, GRPOProcess
from stepcredit.lab.conform.following import follows
from stepcredit.lab.conform.golden import Golden, golden_batches, in_float32
from stepcredit.lab.conform.law import Trial, Twin, Verdict, invariance
from stepcredit.lab.conform.laws import LAWS
from stepcredit.lab.conform.running import Report, verdict_on
from stepcredit.lab.conform.target import Target
from stepcredit.lab.peers import UnsupportedError
from stepcredit.lab.peers.verl import token_rewards

_SKIPPED = {"packed", "shards", "options"}
_BY_DEFINITION = {"geo_mean": "has one ratio and one advantage a sequence"}


@dataclass(frozen=True, eq=False)
class ThroughVerl:
    """A registered estimator's credit by the way of verl's dispatcher, with its columns.

    Attributes:
        estimator: Its options are the config's ``algorithm.stepcredit``.
        joined: Cut every response into two rows of one session, as a rollout of several turns arrives.
    """

    estimator: Estimator
    joined: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def requires(self) -> frozenset[str]:
        """What the columns must be made of."""
        return self.estimator.requires | {"rewards"}

    @property
    def exempt(self) -> Any:
        """The scheme's own."""
        return self.estimator.exempt

    def __call__(self, batch: RolloutBatch) -> Tensor:
        """Advantages [batch, time], float32."""
        ray_trainer, proto = _verl()
        from stepcredit.adapters.verl.arriving import Brought, bringing

        if "process_rewards" in self.requires and batch.step_ids is None:
            raise UnsupportedError("the reward manager brings a signal in steps")
        f = batch.format_rewards
        if f is not None and not torch.equal((f > 0).double(), f.double()):
            raise UnsupportedError("formats other than 0 and 1 need a threshold")
        rows = _halves(batch) if self.joined else [(i, 0, batch.response_mask.shape[1]) for i in range(len(batch))]
        data = proto.from_dict(
            tensors={name: _cut(x, rows) for name, x in _columns(batch).items()},
            non_tensors={"uid": _objects([f"prompt {int(batch.group_ids[i])}" for i, *_ in rows])},
        )
        packages = [_package(batch, *row) for row in rows]
        sessions = [(f"session {i}", int(start > 0)) for i, start, _ in rows]
        config = _config({"adv_estimator": f"stepcredit_{self.estimator.type}", "stepcredit": self.options})
        with bringing(Brought(sessions, packages, None, 1)):
            done = ray_trainer.compute_advantage(data, config.adv_estimator, config=config)
        whole = torch.zeros(batch.response_mask.shape)
        for (i, start, end), values in zip(rows, done.batch["advantages"], strict=True):
            whole[i, start:end] = values[: end - start]
        return whole


def conform_verl() -> Report:
    """The laws on PASS by verl's dispatcher, other schemes' credit there, rows that are joined, and verl's losses."""
    begun = time.perf_counter()
    _verl()
    verdicts = _losses()
    for estimator in (PASS(), GRPOProcess(), SPRO()):
        trial = _trial(ThroughVerl(estimator))
        verdicts.append(_faithful(f"faithful {estimator.type}", trial, estimator))
    verdicts.append(_joined(PASS()))
    trial = _trial(ThroughVerl(PASS()))
    verdicts += [verdict_on(law, trial) for law in LAWS if law.name not in _SKIPPED]
    return Report("adapters.verl", verdicts, len(list(trial.answered())), time.perf_counter() - begun)


def _trial(through: ThroughVerl) -> Trial:
    return Trial(Target.of(through, f"{through.estimator.type} through verl"), golden_batches(through.requires))


def _faithful(name: str, trial: Trial, estimator: Estimator) -> Verdict:
    """What the dispatcher gives is what the estimator gives to the batch itself."""

    def twins(golden: Golden) -> Iterator[Twin]:
        want = estimator(in_float32(golden.batch)).advantages
        yield Twin(golden.batch, lambda x: x, lambda _: want)

    return invariance(name, twins)(trial)


def _joined(estimator: Estimator) -> Verdict:
    """A rollout that arrives in two rows is one rollout."""
    whole, halves = ThroughVerl(estimator), ThroughVerl(estimator, joined=True)
    trial = _trial(whole)
    trial.goldens = [golden for golden in trial.goldens if golden.name == "every token a step"]

    def twins(golden: Golden) -> Iterator[Twin]:
        got = halves(golden.batch)
        yield Twin(golden.batch, lambda _: got, lambda x: x)

    return invariance("joined rows", twins)(trial)


def _losses() -> list[Verdict]:
    """Each of verl's registered policy losses."""
    from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY
    from verl.workers.config import ActorConfig, PolicyLossConfig

    found = []
    for name, function in sorted(POLICY_LOSS_REGISTRY.items()):
        law = f"loss {name}"
        config = ActorConfig(
            strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, policy_loss=PolicyLossConfig(dro_beta=0.1)
        )

        def loss(x: Tensor, a: Tensor, mask: Tensor, function: Any = function, config: Any = config) -> Tensor:
            old = x.detach().clone()
            value: Tensor = function(
                old_log_prob=old, log_prob=x, advantages=a, response_mask=mask, loss_agg_mode="token-mean",
                config=config, rollout_is_weights=None,
            )[0]  # fmt: skip
            return value

        verdict = follows(law, loss)
        if verdict.outcome == "BROKEN" and name in _BY_DEFINITION:
            verdict = Verdict(law, "exempt", f"{_BY_DEFINITION[name]} ({verdict.fact})")
        elif verdict.outcome == "BROKEN" and verdict.fact.startswith("raised"):
            verdict = Verdict(law, "n.a.", f"needs settings of its own: {verdict.fact}")
        found.append(verdict)
    return found


def _columns(batch: RolloutBatch) -> dict[str, Tensor]:
    """Verl's tensor columns; a rollout that cannot be scored has an outcome of nan."""
    rewards = token_rewards(batch, dense=False)
    if batch.row_mask is not None:
        rewards[~batch.row_mask, 0] = float("nan")
    found = {"response_mask": batch.response_mask.long(), "token_level_rewards": rewards, "token_level_scores": rewards}
    for ours, verls in (("old_logprobs", "old_log_probs"), ("ref_logprobs", "ref_log_prob")):
        if getattr(batch, ours) is not None:
            found[verls] = getattr(batch, ours).float()
    return found


def _package(batch: RolloutBatch, row: int, start: int, end: int) -> str:
    """What the reward manager sends beside the outcome, of a row's part."""
    package: dict[str, Any] = {}
    if batch.correct is not None:
        package["correct"] = bool(batch.correct[row])
    if batch.format_rewards is not None:
        package["format"] = float(batch.format_rewards[row])
    if batch.extra_rewards:
        package["extra"] = {name: float(x[row]) for name, x in batch.extra_rewards.items()}
    if batch.step_ids is not None and batch.process_rewards is not None:
        steps = batch.step_ids[row, start:end].tolist()
        covered = [t for t in range(end - start) if steps[t] >= 0 and bool(batch.response_mask[row, start + t])]
        if batch.process_mask is not None:
            covered = [t for t in covered if bool(batch.process_mask[row, start + t])]
        least = steps[covered[0]] if covered else 0
        package["steps"] = [[steps[t] - least, t, t + 1, float(batch.process_rewards[row, start + t])] for t in covered]
    return json.dumps(package)


def _halves(batch: RolloutBatch) -> list[tuple[int, int, int]]:
    """Each row as two: row, first token, one after the last."""
    width = batch.response_mask.shape[1]
    return [(i, *part) for i in range(len(batch)) for part in ((0, width // 2), (width // 2, width))]


def _cut(x: Tensor, rows: list[tuple[int, int, int]]) -> Tensor:
    width = max(end - start for _, start, end in rows)
    out = x.new_zeros(len(rows), width)
    for k, (i, start, end) in enumerate(rows):
        out[k, : end - start] = x[i, start:end]
    return out


def _objects(values: list[str]) -> Any:
    import numpy

    return numpy.array(values, dtype=object)


def _config(algorithm: dict[str, Any]) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.create(algorithm)


def _verl() -> tuple[Any, Any]:
    """Verl's dispatcher and its batch, with our estimators registered."""
    import stepcredit.adapters.verl.plugin  # noqa: F401 - registers when verl's modules are imported

    try:
        from verl import DataProto
        from verl.trainer.ppo import ray_trainer
    except ImportError as error:
        raise MissingExtraError("verl", "verl", f"run its dispatcher ({error})") from None
    return ray_trainer, DataProto
