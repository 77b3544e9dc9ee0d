"""What a batch and its credit look like in numbers: the metrics that every trainer logs."""

from typing import NamedTuple

import torch
from torch import Tensor

from stepcredit.batch import Credit, RolloutBatch
from stepcredit.ops.groups import Pool, ProcessGroup, all_reduce
from stepcredit.ops.kernels.choosing import package, readable
from stepcredit.ops.kernels.operands import Signal
from stepcredit.ops.logprobs import kl_k3


def credit_metrics(
    batch: RolloutBatch, credit: Credit, *, process_group: ProcessGroup | None = None
) -> dict[str, float]:
    """Numbers about one batch, over all ranks, from the tensors that train.

    Args:
        batch: The rollouts.
        credit: What an estimator made of them: 0 wherever this batch does not count a token.
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
    layout = batch.layout
    live, lengths = layout.live, layout.lengths[layout.live].double()
    totals = _Totals(process_group)
    totals.add("length", lengths)
    right: Tensor | None = None
    if batch.rewards is not None or batch.correct is not None:
        right = (batch.rewards[live] > 0) if batch.correct is None else batch.correct[live]  # type: ignore[index]
        is_right, is_wrong = right.double(), (~right).double()
        totals.add("length_correct", lengths * is_right, is_right)
        totals.add("length_wrong", lengths * is_wrong, is_wrong)
    groups = Pool.of(batch.group_ids[live], process_group)
    varied: dict[str, Tensor] = {}  # channel -> bool [groups]
    for name, x in {
        "outcome": batch.rewards, "format": batch.format_rewards, **(batch.extra_rewards or {})
    }.items():  # fmt: skip
        if x is not None:
            values = x[live].double()
            totals.add(f"{name}/raw_mean", values)
            totals.add(f"{name}/raw_square", values.square())
            varied[name] = groups.varies(values)
    if batch.process_rewards is not None:
        steps = _steps(batch)
        totals.add("process/steps", steps.number)
        totals.add("process/raw_mean", steps.total, steps.number)
        totals.add("process/raw_square", steps.square, steps.number)
        if right is not None:
            totals.add("process/correct_mean", steps.total * is_right, steps.number * is_right)
            totals.add("process/wrong_mean", steps.total * is_wrong, steps.number * is_wrong)
        scored = steps.number > 0
        varied["process"] = groups.select(scored).varies(steps.first[scored]) | (groups.sum(steps.varied) > 0)
    for name, differ in varied.items():
        alike = (~differ).double().sum()  # the same on all ranks, and so is the mean
        totals.add(f"{name}/silent_groups", alike, differ.numel())
    terms = credit.terms()
    for name, term in {"": credit.advantages, **terms}.items():
        x = term.flatten().double()  # 0 off the response tokens
        totals.add(f"{name}/abs", x.abs().sum(), lengths)
        if name:
            totals.add(f"{name}/mean", x.sum(), lengths)
            totals.add(f"{name}/square", x.dot(x), lengths)
    if batch.old_logprobs is not None and batch.ref_logprobs is not None:
        old, ref = (layout.pack(x).double() for x in (batch.old_logprobs, batch.ref_logprobs))
        totals.add("kl_to_reference", kl_k3(old, ref).sum(), old.numel())
    totals.add("rollouts", lengths.new_zeros(()), live.numel())
    totals.add("excluded_rows", lengths.new_zeros(()), len(batch) - live.numel())
    return _named(totals, [*varied], [*terms])


class _Steps(NamedTuple):
    """Of the process signal of each live rollout, a step counting once; float64 [R]."""

    number: Tensor
    total: Tensor
    square: Tensor
    first: Tensor
    varied: Tensor


def _steps(batch: RolloutBatch) -> _Steps:
    """How many steps, the sums of their scores and of the squares of these, the first, and 1 where two differ."""
    layout, signal = batch.layout, batch.process_rewards
    assert signal is not None
    if readable(signal.numel(), layout.device, signal) is None:
        found = package(layout.device).moments(Signal.of(signal, batch.step_ids, batch.process_mask), layout.in_place)
        fields = found.count, found.mean, found.squares, found.first, found.varied
        count, mean, squares, first, varied = (x[layout.live].double() for x in fields)
        return _Steps(count, count * mean, squares + count * mean.square(), first, varied)
    ends, rows = batch.steps.ends, layout.rows
    scores, row = layout.pack(signal)[ends].double(), rows.ids[ends]
    none = scores.new_zeros(len(rows))
    opens = row != torch.cat([row.new_full((1,), -1), row])[:-1]
    first = none.index_copy(0, row[opens], scores[opens])
    differ = none.index_add(0, row, (scores != first[row]).double()) > 0
    count, total, square = (none.index_add(0, row, x) for x in (torch.ones_like(scores), scores, scores.square()))
    return _Steps(count, total, square, first, differ.double())


_PROCESS = ("process/steps", "process/correct_mean", "process/wrong_mean")


class _Totals:
    """Sums and what divides them, by name, reduced over the ranks and read in one go."""

    def __init__(self, process_group: ProcessGroup | None) -> None:
        self.process_group = process_group
        self.local: dict[str, tuple[Tensor, Tensor | int]] = {}

    def add(self, name: str, values: Tensor, counts: Tensor | int | None = None) -> None:
        """A sum, or what each live rollout adds to it, and as much of what divides it; each rollout is one by default.

        Args:
            name: Of the mean.
            values: float64 [] or [R].
            counts: float64 [R], or a number.
        """
        self.local[name] = values, values.numel() if counts is None else counts

    def reduced(self) -> dict[str, tuple[float, float]]:
        """Name -> sum and count; numbers a rollout are summed together, each once."""
        known = [x for pair in self.local.values() for x in pair]
        if self.process_group is not None:  # the other ranks count, too
            device = next(x.device for x in known if isinstance(x, Tensor))
            known = [torch.full((), x, dtype=torch.float64, device=device) if isinstance(x, int) else x for x in known]
        tensors = {id(x): x for x in known if isinstance(x, Tensor)}
        summed = {key: x for key, x in tensors.items() if x.ndim == 0}
        of_rollouts = {key: x for key, x in tensors.items() if x.ndim == 1}
        sums = torch.cat([torch.stack([*of_rollouts.values()]).sum(1), torch.stack([*summed.values()])])
        numbers = all_reduce(sums, self.process_group).tolist()
        found = dict(zip([*of_rollouts, *summed], numbers, strict=True))
        told = iter([float(x) if isinstance(x, int) else found[id(x)] for x in known])
        return {name: (next(told), next(told)) for name in self.local}


def _named(totals: _Totals, channels: list[str], terms: list[str]) -> dict[str, float]:
    sums = totals.reduced()
    means = {name: total / count if count else float("nan") for name, (total, count) in sums.items()}
    numbers: dict[str, float] = {
        "rollouts": sums["rollouts"][1],
        "excluded_rows": sums["excluded_rows"][1],
        "tokens": sums["length"][0],
        **{name: means[name] for name in ("length", "length_correct", "length_wrong") if name in means},
        "mean_abs": means["/abs"],
    }
    numbers |= {name: means[name] for name in _PROCESS if name in means}
    for name in channels:
        numbers[f"{name}/raw_mean"] = means[f"{name}/raw_mean"]
        numbers[f"{name}/raw_std"] = _std(means[f"{name}/raw_mean"], means[f"{name}/raw_square"])
        numbers[f"{name}/silent_groups"] = means[f"{name}/silent_groups"]
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
