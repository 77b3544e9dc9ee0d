"""Readers: a loaded model, the layout of its input, and the logits where scores are read."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from stepcredit.signals.batching import batches
from stepcredit.signals.prm.fit import unfit
from stepcredit.signals.prm.layouts import PROBE, Input, Layout
from stepcredit.signals.prm.presets import Preset


class Reader(ABC):
    """A loaded model that has been tried on a problem of two steps.

    Attributes:
        preset: How the model is fed and read.
        layout: Makes its inputs.
        model: The model itself, in evaluation mode and without gradients.
        source: Where the model is from.
        positions: The most tokens of an input.
        batch_tokens: The most tokens of a batch, padding included.

    Raises:
        InputError: The model does not fit its preset: an embedding is missing for a token, its output has another
            shape than the preset reads, or its numbers are not finite.
    """

    def __init__(self, preset: Preset, layout: Layout, model: Any, source: str, batch_tokens: int) -> None:
        self.preset, self.layout, self.source, self.batch_tokens = preset, layout, source, batch_tokens
        self.model = model.eval().requires_grad_(False)
        rows = model.get_input_embeddings().num_embeddings
        if len(layout.words.tokenizer) > rows:
            tokens = len(layout.words.tokenizer)
            raise self.unfit("an embedding for every token", f"{rows} for {tokens} tokens")
        self.positions = positions(model)

    def probe(self) -> None:
        """Reads a problem of two steps."""
        self.read(self.layout.inputs(*PROBE))

    def read(self, inputs: Sequence[Input]) -> list[list[float]]:
        """The score at each mark of each input.

        Raises:
            InputError: See `Reader`; or the numbers are not finite.
        """
        return [self.preset.read(rows).tolist() for rows in self.rows(inputs)]

    @abstractmethod
    def rows(self, inputs: Sequence[Input]) -> list[Tensor]:
        """What `Preset.read` takes at the marks of each input: [marks, labels] in float32 on the CPU."""

    def unfit(self, rule: str, fact: str) -> Exception:
        """Says what the model lacks."""
        return unfit(self.preset.name, self.source, rule, fact)


class BatchReader(Reader):
    """Reads logits where the marks are, of many inputs in a pass."""

    mixed = True  # inputs of different lengths may be in one batch

    def rows(self, inputs: Sequence[Input]) -> list[Tensor]:
        """The logits at the marks of each input, [marks, labels] in float32 on the CPU: what `Preset.read` takes.

        Inputs of similar length go through the model together; what an input gets does not hang on the others, beyond
        what a different order of summation does to floating-point numbers.
        """
        found: list[Tensor] = [torch.empty(0)] * len(inputs)
        for batch in batches([len(ids) for ids, *_ in inputs], self.batch_tokens, mixed=self.mixed):
            some = [inputs[index] for index in batch]
            device = next(self.model.parameters()).device
            with torch.inference_mode(), torch.autocast(device.type, enabled=False):
                ids, mask = (part.to(device) for part in _padded(some))
                logits = self._logits(ids, mask, some).float().cpu()
            if not logits.isfinite().all():
                raise self.unfit("finite outputs", "nan or infinity")
            for index, part in zip(batch, torch.split(logits, [len(one.marks) for one in some]), strict=True):
                found[index] = part
        return found

    def _output(self, ids: Tensor, mask: Tensor, **options: Any) -> Any:
        """What the model's own forward gives; code of a checkpoint need not know of masks and caches."""
        given = {"attention_mask": mask, "use_cache": False, **options}
        known = signature(type(self.model).forward).parameters
        if not any(one.kind is one.VAR_KEYWORD for one in known.values()):
            given = {name: value for name, value in given.items() if name in known}
        return self.model(input_ids=ids, **given)

    @abstractmethod
    def _logits(self, ids: Tensor, mask: Tensor, inputs: Sequence[Input]) -> Tensor:
        """The logits at all marks of a batch, [marks, labels], from its ids and mask [inputs, tokens]."""


class LabelReader(BatchReader):
    """Reads the head's logits for a token."""

    def _logits(self, ids: Tensor, mask: Tensor, inputs: Sequence[Input]) -> Tensor:
        labels = self.preset.labels
        output = self._output(ids, mask)
        logits: Tensor = output[0] if getattr(output, "logits", None) is None else output.logits
        if labels == 1 and logits.shape == ids.shape:
            logits = logits[..., None]
        if logits.shape != (*ids.shape, labels):
            fact = f"an output {tuple(logits.shape)} for ids {tuple(ids.shape)}"
            raise self.unfit(f"{labels} label{'s' * (labels != 1)} for each token", fact)
        return logits[_places(inputs)]


class VocabularyReader(BatchReader):
    """Reads the logits of a few words of the vocabulary."""

    def __init__(self, preset: Preset, layout: Layout, model: Any, source: str, batch_tokens: int) -> None:
        """Takes the words' ids from the tokenizer."""
        super().__init__(preset, layout, model, source, batch_tokens)
        self._labels = preset.label_ids(layout.words.tokenizer)
        # only the positions of marks need a row over the whole vocabulary
        self._choosy = "logits_to_keep" in signature(type(model).forward).parameters

    def _logits(self, ids: Tensor, mask: Tensor, inputs: Sequence[Input]) -> Tensor:
        rows, marks = _places(inputs)
        kept = sorted(set(marks)) if self._choosy else list(range(ids.shape[1]))
        options = {"logits_to_keep": torch.tensor(kept, device=ids.device)} if self._choosy else {}
        logits: Tensor = self._output(ids, mask, **options).logits
        if logits.shape[:2] != (len(inputs), len(kept)) or logits.shape[2] <= max(self._labels):
            fact = f"an output {tuple(logits.shape)} for ids {tuple(ids.shape)}"
            raise self.unfit("a row over the vocabulary for each token", fact)
        place = {mark: index for index, mark in enumerate(kept)}
        return logits[rows, [place[mark] for mark in marks]][:, self._labels]


class SequenceReader(BatchReader):
    """Reads the one number of an input, whose only mark is its last token."""

    mixed = False  # which token a model of its own code takes for the last behind padding is not known

    def __init__(self, preset: Preset, layout: Layout, model: Any, source: str, batch_tokens: int) -> None:
        """Keeps Transformers' classifiers from taking a last token for padding that has the same id."""
        super().__init__(preset, layout, model, source, batch_tokens)
        if type(model).__module__.startswith("transformers."):
            model.config.get_text_config().pad_token_id = -1

    def _logits(self, ids: Tensor, mask: Tensor, inputs: Sequence[Input]) -> Tensor:
        output = self._output(ids, mask)
        logits: Tensor = output[0] if getattr(output, "logits", None) is None else output.logits
        if logits.numel() != len(inputs) or logits.shape[:1] != (len(inputs),):
            fact = f"an output {tuple(logits.shape)} for ids {tuple(ids.shape)}"
            raise self.unfit("one number for each input", fact)
        return logits.reshape(-1, 1)


def positions(model: Any) -> int:
    """The most tokens of an input, where the model's configuration says it."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize)


def _padded(inputs: Sequence[Input]) -> tuple[Tensor, Tensor]:
    """The ids of inputs, padded on the right, and where they are ids: two tensors [inputs, tokens]."""
    ids = torch.zeros(len(inputs), max(len(one.ids) for one in inputs), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, one in enumerate(inputs):
        ids[index, : len(one.ids)] = torch.tensor(one.ids)
        mask[index, : len(one.ids)] = 1
    return ids, mask


def _places(inputs: Sequence[Input]) -> tuple[list[int], list[int]]:
    """The row and the position of every mark of a batch."""
    rows = [row for row, one in enumerate(inputs) for _ in one.marks]
    return rows, [mark for one in inputs for mark in one.marks]
