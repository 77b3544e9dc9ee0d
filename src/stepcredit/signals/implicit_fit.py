"""How an implicit process reward model learns from outcomes: steps of cross-entropy on the sums of its rewards."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from stepcredit.errors import InputError
from stepcredit.signals.batching import batches
from stepcredit.signals.causal import sequence_logprobs


@dataclass(frozen=True)
class Lesson:
    """A rollout to learn from.

    Attributes:
        prompt: The ids before the completion.
        completion: The completion's ids. Shape: [tokens].
        mask: bool [tokens], the tokens that are summed.
        ref_logprobs: float [tokens], under the reference, nats.
        outcome: How likely it is right, in [0, 1].
    """

    prompt: Sequence[int]
    completion: Sequence[int]
    mask: Tensor
    ref_logprobs: Tensor
    outcome: float


@dataclass(frozen=True)
class Fit:
    """How to learn: the options of `ImplicitPRM` by the same names."""

    beta: float
    epochs: int
    mini_batch_size: int
    max_grad_norm: float
    batch_tokens: int

    def __call__(self, model: Any, optimizer: torch.optim.Optimizer, lessons: Sequence[Lesson]) -> dict[str, float]:
        """Takes all steps over at least one lesson; gives what `ImplicitPRM.update` does, but ``skipped``.

        Raises:
            InputError: A gradient is not finite; the step is not taken.
        """
        first: list[float] = []  # the logits as each lesson's first step found them
        norms: list[float] = []
        for epoch in range(self.epochs):
            for begin in range(0, len(lessons), self.mini_batch_size):
                chosen = lessons[begin : begin + self.mini_batch_size]
                optimizer.zero_grad()
                found = self._gradients(model, chosen)
                norm = float(torch.nn.utils.clip_grad_norm_(trained(model), self.max_grad_norm))
                if not isfinite(norm):
                    raise InputError(f"`model` must have finite gradients; got a norm of {norm}.")
                optimizer.step()
                norms.append(norm)
                first += found if epoch == 0 else []
        optimizer.zero_grad()
        return {**_metrics(first, [lesson.outcome for lesson in lessons]), "grad_norm": sum(norms) / len(norms)}

    def _gradients(self, model: Any, lessons: Sequence[Lesson]) -> list[float]:
        """Adds the gradient of the mean loss, a micro-batch at a time; gives the logits."""
        found = [0.0] * len(lessons)
        lengths = [len(lesson.prompt) + len(lesson.completion) for lesson in lessons]
        for rows in batches(lengths, self.batch_tokens):
            some = [lessons[row] for row in rows]
            with torch.enable_grad(), torch.autocast(model.device.type, enabled=False):
                logits = self._logits(model, some)
                outcomes = logits.new_tensor([lesson.outcome for lesson in some])
                loss = binary_cross_entropy_with_logits(logits, outcomes, reduction="sum") / len(lessons)
                torch.autograd.backward(loss)
            for row, logit in zip(rows, logits.tolist(), strict=True):
                found[row] = logit
        return found

    def _logits(self, model: Any, lessons: Sequence[Lesson]) -> Tensor:
        """Beta times the summed log-ratio of each rollout. Shape: [rollouts]."""
        prompts, completions = ([getattr(x, name) for x in lessons] for name in ("prompt", "completion"))
        read = sequence_logprobs(model, prompts, completions, batch_tokens=self.batch_tokens)
        sums = [(row - x.ref_logprobs)[x.mask].sum() for row, x in zip(read, lessons, strict=True)]
        return self.beta * torch.stack(sums)


def trained(model: Any) -> list[Any]:
    """The weights that a step changes."""
    return [weight for weight in model.parameters() if weight.requires_grad]


def _metrics(logits: Sequence[float], outcomes: Sequence[float]) -> dict[str, float]:
    """Loss, accuracy and margin of rollouts, from their logits."""
    x, y = torch.tensor(logits, dtype=torch.float64), torch.tensor(outcomes, dtype=torch.float64)
    right = y > 0.5
    numbers = {
        "loss": float(binary_cross_entropy_with_logits(x, y)),
        "accuracy": float(((x > 0) == right).double().mean()),
    }
    if right.any() and not right.all():
        numbers["margin"] = float(x[right].mean() - x[~right].mean())
    return numbers
