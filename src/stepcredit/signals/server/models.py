"""What can be served: a process reward model or a causal language model, loaded by name."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from stepcredit.errors import InputError, MissingExtraError
from stepcredit.signals.causal import sequence_logprobs
from stepcredit.signals.prm import PRM, Input
from stepcredit.signals.prm.loading import torch_dtype

Kind = Literal["prm", "teacher"]


class Model(Protocol):
    """A loaded model.

    Attributes:
        name: What requests call it.
        kind: What it gives: rows of labels ("prm") or log-probabilities ("teacher").
        longest: The most tokens of an input.
        tokenizer: Of Transformers.
    """

    name: str
    kind: Kind
    longest: int
    tokenizer: Any

    def run(self, inputs: Sequence[Sequence[int]]) -> list[Tensor]:
        """For each input logits [tokens, labels], or the log-probability of each token but the first, nats."""
        ...


@dataclass
class ServedPRM:
    """A process reward model, given token ids and giving its labels' logits for every token.

    Args:
        prm: The signal whose model it is; loaded here.
        name: What requests call it.
    """

    prm: PRM
    name: str
    kind: Kind = "prm"

    def __post_init__(self) -> None:
        """Loads the model."""
        self._reader = self.prm.reader
        if self._reader.preset.output not in ("labels", "vocabulary"):
            raise InputError(
                f"`--prm` must give a row of numbers for each token; {self._reader.preset.name!r} does not."
            )
        self.tokenizer = self._reader.layout.words.tokenizer
        self.longest = self.prm.max_length or self._reader.positions

    def run(self, inputs: Sequence[Sequence[int]]) -> list[Tensor]:
        """Logits [tokens, labels] of each input.

        Raises:
            InputError: They are not finite.
        """
        return self._reader.rows([Input(list(ids), list(range(len(ids)))) for ids in inputs])


@dataclass
class ServedTeacher:
    """A causal language model, given token ids and giving the log-probability of each.

    Args:
        model: A local folder or a hub name; loaded here.
        name: What requests call it.
        dtype: Of the weights, by torch's name; None: the checkpoint's own.
        device: Where the model runs; None: the current CUDA device if there is one, else the CPU.
        batch_tokens: How many tokens, padding included, go through the model at once.
        max_length: The most tokens of an input; None: as many as the model has positions.
    """

    model: str
    name: str
    dtype: str | None = None
    device: str | None = None
    batch_tokens: int = 16384
    max_length: int | None = None
    kind: Kind = "teacher"

    def __post_init__(self) -> None:
        """Loads the model."""
        self._model, self.tokenizer = _load_causal(self.model, self.dtype, self.device)
        positions = int(self._model.config.get_text_config().max_position_embeddings)
        if self.max_length is not None and self.max_length > positions:
            raise InputError(
                f"`max_length` must be <= the {positions} positions of {self.model!r}; got {self.max_length}."
            )
        self.longest = self.max_length or positions

    def run(self, inputs: Sequence[Sequence[int]]) -> list[Tensor]:
        """Log-probabilities [tokens - 1] of each input, nats, on the CPU."""
        first, rest = [ids[:1] for ids in inputs], [ids[1:] for ids in inputs]
        with torch.inference_mode():
            found = sequence_logprobs(self._model, first, rest, batch_tokens=self.batch_tokens)
        return [row.float().cpu() for row in found]


def _load_causal(name: str, dtype: str | None, device: str | None) -> tuple[Any, Any]:
    """A causal language model, ready to read with, and its tokenizer."""
    try:
        import transformers
    except ImportError:
        raise MissingExtraError("transformers", "data", "serve a language model") from None
    folder = Path(name).expanduser()
    local = folder.is_dir()
    if not local and (folder.exists() or name.startswith((".", "~", "/")) or name.count("/") > 1):
        raise InputError(f"`--teacher` must be a local folder or a hub name; got {name!r}, which is no folder.")
    source = str(folder) if local else name
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, local_files_only=local)
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            source, local_files_only=local, dtype=torch_dtype(dtype), output_loading_info=True
        )
        if info["missing_keys"]:  # Transformers would go on with random numbers in their place
            missing = ", ".join(sorted(info["missing_keys"])[:3])
            raise InputError(
                f"`--teacher` must have all weights of a language model; got none for {missing} in {name!r}."
            )
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return model.eval().requires_grad_(False).to(device), tokenizer
    except (InputError, MissingExtraError, MemoryError):
        raise
    except Exception as error:
        fact = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise InputError(f"`--teacher` must be loadable as a language model; got {name!r}: {fact}") from error
