"""Credit that is scaled over the batch's response tokens, in the form that kernels write."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from stepcredit.estimators.base import Assignment, total
from stepcredit.estimators.in_place import InPlace, Writing
from stepcredit.ops.kernels.operands import Line, Returns, Signal

Rule = Callable[[Tensor], Tensor]


def whitened_rows(place: InPlace, streams: Mapping[str, Tensor], rule: Rule, correction: int) -> Writing:
    """One number a rollout, scaled over the tokens that will hold it.

    Args:
        place: The batch.
        streams: The numbers, which add up; float64 [batch] each.
        rule: The variance -> the scale.
        correction: Delta degrees of freedom of the variance.
    """
    x, nothing = total(streams), torch.zeros_like(total(streams))
    scale = _scale(place, Returns(x, nothing, x, x, x, place.rows.length), rule, correction)
    return Assignment.linear(streams, lambda part: (part - _mean(place, part)) * scale).writing(place.spread)


def whitened_returns(
    place: InPlace, signal: Signal, process: Line, beside: Mapping[str, Tensor], rule: Rule, correction: int
) -> Writing:
    """The returns-to-go of a process signal and numbers a rollout beside them, scaled over all tokens.

    Args:
        place: The batch.
        signal: The process signal.
        process: What becomes of it, with what every token of a rollout gets from it.
        beside: float64 [batch] each.
        rule: The variance -> the scale.
        correction: Delta degrees of freedom of the variance.
    """
    nothing = torch.zeros_like(process.each)
    others = {name: Line(process.center, nothing, x) for name, x in beside.items()}
    found = place.kernels.returns(signal, sum(others.values(), start=process), place.rows)
    scale = _scale(place, found, rule, correction)
    means = {name: _mean(place, x) for name, x in beside.items()}
    means["process"] = _mean(place, found.mean) - sum(means.values(), start=nothing.sum())
    lines = {
        name: (line + Line(line.center, nothing, nothing - means[name])).scaled(scale)
        for name, line in {**others, "process": process}.items()
    }

    def write(line: Line, out: Tensor) -> None:
        place.kernels.return_to_go_of_steps(signal, line, place.rows, out)

    first, *rest = lines.values()
    return Writing(sum(rest, start=first), lambda: lines, write)


def _mean(place: InPlace, x: Tensor) -> Tensor:
    """float64 []: the mean over the batch's response tokens of each row's mean, float64 [batch]."""
    length = place.rows.length
    return (length * x).sum() / length.sum().clamp(min=1)


def _scale(place: InPlace, found: Returns, rule: Rule, correction: int) -> Tensor:
    """float64 []: the rule's scale of what all tokens hold, 0 where no two of them differ."""
    length, far = place.rows.length, found.mean.new_full((1,), torch.inf)
    tokens, mean = length.sum(), _mean(place, found.mean)
    squares = (found.squares + length * (found.mean - mean).square()).sum()
    least = torch.cat([far, torch.where(length > 0, found.least, far)]).amin()
    greatest = torch.cat([-far, torch.where(length > 0, found.greatest, -far)]).amax()
    varied = (greatest > least) & (tokens > correction)
    variance = torch.where(varied, squares / (tokens - correction).clamp(min=1), 1.0)
    return torch.where(varied, rule(variance), 0.0)
