"""Implicit process rewards: how much likelier a model thinks the steps than its reference model does."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stepcredit.signals.causal import sequence_logprobs
from stepcredit.signals.prm.layouts import Input, Layout
from stepcredit.signals.prm.presets import Preset
from stepcredit.signals.prm.reading import Reader, positions


class RatioReader(Reader):
    """Reads ``beta * sum over t of (log pi(t) - log pi_ref(t))``, from the answer's beginning to the end of a step.

    Attributes:
        beta: The factor.
        cumulative: Whether a step's score is the whole sum, else its difference from that of the step before.
    """

    def __init__(
        self, preset: Preset, layout: Layout, model: Any, source: str, batch_tokens: int,
        *, reference: Any, beta: float, cumulative: bool,
    ) -> None:  # fmt: skip
        """Holds a second model, ``reference``, under the same tokenizer."""
        super().__init__(preset, layout, model, source, batch_tokens)
        self.beta, self.cumulative = beta, cumulative
        self._reference = reference.eval().requires_grad_(False)
        self.positions = min(self.positions, positions(reference))

    def rows(self, inputs: Sequence[Input]) -> list[Tensor]:
        """See `Reader.rows`: the scores themselves, [marks, 1]; summed in float64."""
        found = []
        for one, ratios in zip(inputs, self._log_ratios(inputs), strict=True):
            sums = self.beta * ratios.double().cumsum(0)[[mark - one.first for mark in one.marks]]
            if not self.cumulative:
                sums = sums.diff(prepend=sums.new_zeros(1))
            if not sums.isfinite().all():
                raise self.unfit("finite outputs", "nan or infinity")
            found.append(sums.float()[:, None])
        return found

    def _log_ratios(self, inputs: Sequence[Input]) -> list[Tensor]:
        """The log-ratio of each token from an input's first one on, nats."""
        prompts, answers = [one.ids[: one.first] for one in inputs], [one.ids[one.first :] for one in inputs]
        device = next(self.model.parameters()).device
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            own, others = (
                sequence_logprobs(model, prompts, answers, batch_tokens=self.batch_tokens)
                for model in (self.model, self._reference)
            )
        return [mine.cpu() - other.cpu() for mine, other in zip(own, others, strict=True)]
