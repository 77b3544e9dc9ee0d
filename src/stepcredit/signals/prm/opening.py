"""Opening a model: its checkpoint, its layout and its reader, tried on a problem of two steps."""

from dataclasses import dataclass
from typing import Any

from stepcredit.signals.prm.fit import unfit
from stepcredit.signals.prm.loading import Checkpoint
from stepcredit.signals.prm.presets import Preset, make_layout
from stepcredit.signals.prm.ratio import RatioReader
from stepcredit.signals.prm.reading import LabelReader, Reader, SequenceReader, VocabularyReader

_READERS: dict[str, type[LabelReader] | type[VocabularyReader] | type[SequenceReader]] = {
    "labels": LabelReader,
    "vocabulary": VocabularyReader,
    "sequence": SequenceReader,
}


@dataclass(frozen=True)
class Ratio:
    """What a log-ratio is taken to and how: see the options of `PRM`."""

    reference: Checkpoint
    beta: float
    boundary: str
    cumulative: bool


def open_reader(
    checkpoint: Checkpoint, preset: Preset, separator: str, batch_tokens: int, ratio: Ratio | None = None
) -> Reader:
    """Loads a model and tries it.

    Args:
        checkpoint: The model.
        preset: How it is fed and read.
        separator: What ends every step in its input.
        batch_tokens: The most tokens, padding included, that go through it at once.
        ratio: For a preset whose scores are log-ratios.

    Raises:
        InputError: It cannot be loaded, does not fit the preset, or needs its own code.
        MissingExtraError: Transformers is not installed.
    """
    tokenizer, model = checkpoint.load(preset)
    reader: Reader
    with checkpoint.told():
        if ratio is None:
            layout = make_layout(preset, tokenizer, separator=separator)
            reader = _READERS[preset.output](preset, layout, model, checkpoint.model, batch_tokens)
        else:
            layout = make_layout(preset, tokenizer, separator=separator, boundary=ratio.boundary)
            other, reference = ratio.reference.load(preset)
            if _words(tokenizer) != _words(other):
                fact = f"another vocabulary than that of {checkpoint.model!r}"
                raise unfit(preset.name, ratio.reference.model, "a reference model with its own tokenizer", fact)
            reader = RatioReader(
                preset, layout, model, checkpoint.model, batch_tokens,
                reference=reference, beta=ratio.beta, cumulative=ratio.cumulative,
            )  # fmt: skip
        reader.probe()
    return reader


def _words(tokenizer: Any) -> dict[str, int]:
    """A tokenizer's vocabulary without the tokens that were added to it."""
    added = tokenizer.get_added_vocab()
    return {word: index for word, index in tokenizer.get_vocab().items() if word not in added}
