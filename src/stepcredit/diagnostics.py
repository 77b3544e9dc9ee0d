"""What a batch and its credit look like in numbers: the metrics that every trainer logs."""

import torch
from torch import Tensor

from stepcredit.batch import Credit, RolloutBatch
from stepcredit.ops.groups import Pool, ProcessGroup, all_reduce
from stepcredit.ops.logprobs import kl_k3


def credit_metrics(
    batch: RolloutBatch, credit: Credit, *, process_group: ProcessGroup | None = None
) -> dict[str, float]:
    """Numbers about one batch, over all ranks, from the tensors that train.

    Args:
        batch: The rollouts.
        credit: What an estimator made of them.
        process_group: The ranks that share the batch; a collective, all ranks call alike.

    Returns:
        Name -> number; a mean over nothing is nan:

        - ``rollouts``, ``excluded_rows``, ``tokens``: counts; excluded rows are in nothing below.
        - ``length``, ``length_correct``, ``length_wrong``: mean response tokens.
        - ``<channel>/raw_mean``, ``<channel>/raw_std``: a reward channel over rollouts, the process signal over its
          steps (without correction).
        - ``process/correct_mean``, ``process/wrong_mean``: the process signal over the steps of right and of wrong
          rollouts; ``process/steps``: steps a rollout. A signal that rises while outcomes fall is being gamed.
        - ``<channel>/silent_groups``: the share of groups in which the channel says nothing, all its values being
          equal (or, for the process signal, absent).
        - ``<term>/mean``, ``<term>/std``: a term of the credit, standardized as the scheme does, over tokens.
        - ``<term>/share``: its part of the summed absolute terms.
        - ``mean_abs``: mean absolute credit of a token.
        - ``kl_to_reference``: the k3 estimate of KL(policy || reference), nats a token, where both log-probabilities
          are in the batch.

    Example:
        >>> from stepcredit import GRPO
        >>> batch = RolloutBatch.from_lists([2, 4], [0, 0], [1.0, 0.0])
        >>> numbers = credit_metrics(batch, GRPO()(batch))
        >>> numbers["length_correct"], numbers["outcome/silent_groups"], numbers["outcome/share"]
        (2.0, 0.0, 1.0)
    """
    layout, rows = batch.layout, batch.layout.rows
    live = layout.live
    lengths = rows.offsets.diff().double()
    totals = _Totals(process_group, layout.device)
    totals.add("length", lengths)
    right: Tensor | None = None
    if batch.rewards is not None or batch.correct is not None:
        right = (batch.rewards[live] > 0) if batch.correct is None else batch.correct[live]  # type: ignore[index]
        totals.add("length_correct", lengths[right])
        totals.add("length_wrong", lengths[~right])
    channels: dict[str, tuple[Tensor, Tensor]] = {}  # name -> values, and the live rollout of each
    every = torch.arange(live.numel(), device=live.device)
    for name, x in {
        "outcome": batch.rewards, "format": batch.format_rewards, **(batch.extra_rewards or {})
    }.items():  # fmt: skip
        if x is not None:
            channels[name] = x[live].double(), every
    if batch.process_rewards is not None:
        ends = batch.steps.ends
        scores, row = layout.pack(batch.process_rewards)[ends].double(), rows.ids[ends]
        channels["process"] = scores, row
        totals.add("process/steps", torch.bincount(row, minlength=live.numel()).double())
        if right is not None:
            totals.add("process/correct_mean", scores[right[row]])
            totals.add("process/wrong_mean", scores[~right[row]])
    groups = Pool.of(batch.group_ids[live], process_group)
    silent = {}
    for name, (values, row) in channels.items():
        totals.add(f"{name}/raw_mean", values)
        totals.add(f"{name}/raw_square", values**2)
        pool = groups.select(row)
        silent[f"{name}/silent_groups"] = (pool.max(values) <= -pool.max(-values)).double().mean()  # nan of no group
    totals.add("mean_abs", layout.pack(credit.advantages).double().abs())
    terms = credit.terms()
    for name, term in terms.items():
        packed = layout.pack(term).double()
        totals.add(f"{name}/mean", packed)
        totals.add(f"{name}/square", packed**2)
        totals.add(f"{name}/abs", packed.abs())
    if batch.old_logprobs is not None and batch.ref_logprobs is not None:
        old, ref = (layout.pack(x).double() for x in (batch.old_logprobs, batch.ref_logprobs))
        totals.add("kl_to_reference", kl_k3(old, ref))
    totals.add("rollouts", torch.ones_like(lengths))
    totals.add("excluded_rows", lengths.new_ones(len(batch) - live.numel()))
    shares = torch.stack(list(silent.values())).tolist() if silent else []  # read at once, as the totals are
    return {**_named(totals, list(channels), list(terms)), **dict(zip(silent, shares, strict=True))}


_PROCESS = ("process/steps", "process/correct_mean", "process/wrong_mean")


class _Totals:
    """Sums and counts by name, reduced over the ranks in one go."""

    def __init__(self, process_group: ProcessGroup | None, device: torch.device) -> None:
        self.process_group, self.device = process_group, device
        self.local: dict[str, tuple[Tensor, int]] = {}

    def add(self, name: str, values: Tensor) -> None:
        self.local[name] = values.sum(), values.numel()

    def reduced(self) -> dict[str, tuple[float, float]]:
        sums = torch.stack([total for total, _ in self.local.values()])
        counts = torch.tensor([count for _, count in self.local.values()], dtype=sums.dtype, device=self.device)
        rows = all_reduce(torch.stack([sums, counts], 1), self.process_group).tolist()
        return {name: (total, count) for name, (total, count) in zip(self.local, rows, strict=True)}


def _named(totals: _Totals, channels: list[str], terms: list[str]) -> dict[str, float]:
    sums = totals.reduced()
    means = {name: total / count if count else float("nan") for name, (total, count) in sums.items()}
    numbers: dict[str, float] = {
        "rollouts": sums["rollouts"][1],
        "excluded_rows": sums["excluded_rows"][1],
        "tokens": sums["length"][0],
        **{name: means[name] for name in ("length", "length_correct", "length_wrong") if name in means},
        "mean_abs": means["mean_abs"],
    }
    numbers |= {name: means[name] for name in _PROCESS if name in means}
    for name in channels:
        numbers[f"{name}/raw_mean"] = means[f"{name}/raw_mean"]
        numbers[f"{name}/raw_std"] = _std(means[f"{name}/raw_mean"], means[f"{name}/raw_square"])
    whole = sum(sums[f"{name}/abs"][0] for name in terms)
    for name in terms:
        numbers[f"{name}/mean"] = means[f"{name}/mean"]
        numbers[f"{name}/std"] = _std(means[f"{name}/mean"], means[f"{name}/square"])
        numbers[f"{name}/share"] = sums[f"{name}/abs"][0] / whole if whole else 0.0
    if "kl_to_reference" in means:
        numbers["kl_to_reference"] = means["kl_to_reference"]
    return numbers


def _std(mean: float, square: float) -> float:
    return max(square - mean**2, 0.0) ** 0.5 if square == square else square
