"""Published process reward models as text signals: how likely a trained judge thinks each step correct."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from stepcredit.batch.rollouts import Rollouts, ScoredSpan
from stepcredit.errors import InputError, MissingExtraError
from stepcredit.options import Options, option

PROBE = ("What is 2+3?", ["Add 2 and 3.", "The answer is 5."])  # a problem and its steps, to try a model on
Marked = tuple[list[int], list[int]]  # the ids of an input, and the positions of its separators in them


def label_probability(logits: Tensor, label: int) -> Tensor:
    """``softmax(logits)[..., label]``, in float32: logits [..., labels] to probabilities [...]."""
    return logits.float().softmax(-1)[..., label]


def two_layer_head(width: int, labels: int) -> nn.Module:
    """Linear, ReLU, Linear: hidden states [..., width] to logits [..., labels]."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, labels))


@dataclass(frozen=True)
class Preset:
    """How a family of published process reward models is fed and read.

    Attributes:
        system: The system message, ahead of the problem as the user's and the steps as the assistant's; None: none.
        separator: What ends every step. One token, and the place where the step's score is read.
        labels: The number of labels that the head tells apart at each token.
        good: The label that means correct.
        read: From the logits at separators, [steps, labels], and ``good`` to scores in [0, 1], [steps].
        architecture: The published modeling class, a Qwen2 with the head ``score``.
        head: Makes ``score`` from hidden size and number of labels.
    """

    system: str | None
    separator: str
    labels: int
    good: int
    read: Callable[[Tensor, int], Tensor]
    architecture: str
    head: Callable[[int, int], nn.Module]


PRESETS = {
    "qwen2.5-math-prm": Preset(
        system="Please reason step by step, and put your final answer within \\boxed{}.",
        separator="<extra_0>",
        labels=2,
        good=1,
        read=label_probability,
        architecture="Qwen2ForProcessRewardModel",
        head=two_layer_head,
    )
}
"""The known families by the name that configs use."""


@dataclass
class _State:
    """What a signal keeps between calls."""

    reader: "_Reader | None" = None
    unscored: int = 0


@dataclass(frozen=True)
class PRM(Options):
    r"""Scores steps with a published process reward model, fed and read as its authors publish it.

    The model sees the prompt and all the steps, each stripped of the white space around it and followed by the
    preset's separator, in the chat template of its own tokenizer; a step's score is read at its separator. It is
    loaded by the first call of `score` that has a step, whole on this process's device, and kept.

    Text of the prompt and the completion never acts as a special token: where it spells one, it is read as characters.

    A checkpoint of the published architecture is read by Transformers' own Qwen2, and one of a standard token
    classifier by Transformers, neither with code of the checkpoint. ``trust_remote_code`` runs that code instead.

    Attributes:
        name: What this signal is called in configurations and records.
        unit: What its scores mean.
        requires: The fields of `Rollouts` that it reads beside prompts and completions.
        model: A local folder or a hub name.
        preset: The family that the model belongs to, a name in `PRESETS`.
        batch_size: How many rollouts go through the model at once.
        dtype: Of the weights, by torch's name ("bfloat16"); None: the checkpoint's own.
        device: Where the model runs ("cuda:1"); None: the current CUDA device if there is one, else the CPU.
        trust_remote_code: Run the modeling code that the checkpoint ships.
        max_length: The most tokens of an input that the model is given.

    Raises:
        InputError: An empty model name, an unknown preset or dtype, or a number out of its range.

    Example:
        >>> PRM("Qwen/Qwen2.5-Math-PRM-7B", dtype="bfloat16").preset  # nothing is loaded yet
        'qwen2.5-math-prm'

    Reference:
        Zhang et al., The Lessons of Developing Process Reward Models in Mathematical Reasoning, arXiv 2501.07301, and
        the model card of Qwen/Qwen2.5-Math-PRM-7B; departs from the card in special tokens that a text spells.
    """

    name: ClassVar[str] = "prm"
    unit: ClassVar[str] = "probability that the step is correct"
    requires: ClassVar[frozenset[str]] = frozenset({"steps"})
    model: str
    preset: Literal["qwen2.5-math-prm"] = "qwen2.5-math-prm"
    batch_size: int = option(8, at_least=1)
    dtype: str | None = None
    device: str | None = None
    trust_remote_code: bool = False
    max_length: int = option(4096, at_least=1)
    _state: _State = field(init=False, repr=False, compare=False, default_factory=_State)

    def __post_init__(self) -> None:
        """Checks every option; touches neither network nor disk."""
        super().__post_init__()
        if not isinstance(self.model, str) or not self.model.strip():
            raise InputError(f"`model` must be a local folder or a hub name for PRM; got {self.model!r}.")
        _dtype(self.dtype)
        try:
            torch.device("cpu" if self.device is None else self.device)
        except (RuntimeError, TypeError):
            raise InputError(f"`device` must be a device of torch for PRM, as 'cuda:1'; got {self.device!r}.") from None

    @property
    def unscored(self) -> int:
        """The number of steps, over all calls, that have no score because they end beyond ``max_length`` tokens."""
        return self._state.unscored

    def score(self, rollouts: Rollouts) -> list[list[ScoredSpan]]:
        """Scores every step that fits.

        Args:
            rollouts: The rollouts to score; must have ``steps``. The prompt is the problem, word for word.

        Returns:
            For each rollout its steps in order, as the exact spans given, with scores in [0, 1].

        Raises:
            InputError: ``rollouts`` has no steps; the model cannot be loaded, does not fit the preset or needs its
                own code; its numbers are not finite.
            MissingExtraError: Transformers is not installed.

        Degenerate cases:
            - A step of white space alone is not in the list, and the model does not see it.
            - A step whose separator is beyond ``max_length`` tokens is not in the list and counts as `unscored`; the
              steps before it keep their scores.
            - No step with content in any rollout: nothing is loaded.
        """
        if rollouts.steps is None:
            raise InputError("`rollouts` must have steps; got none. Segment the completions first.")
        kept = [
            [((start, end), words) for start, end in spans if (words := text[start:end].strip())]
            for text, spans in zip(rollouts.completions, rollouts.steps, strict=True)
        ]
        scores: list[list[ScoredSpan]] = [[] for _ in kept]
        if not any(kept):
            return scores
        if self._state.reader is None:
            self._state.reader = _load(self)
        reader = self._state.reader
        inputs: list[Marked] = []
        for problem, steps in zip(rollouts.prompts, kept, strict=True):
            ids, marks = reader.layout.encode(problem, [words for _, words in steps])
            fitting = [mark for mark in marks if mark < self.max_length]
            inputs.append((ids[: self.max_length], fitting))
            self._state.unscored += len(marks) - len(fitting)
        rows = [row for row, (_, marks) in enumerate(inputs) if marks]
        rows.sort(key=lambda row: len(inputs[row][0]), reverse=True)  # little padding, and the most memory first
        for first in range(0, len(rows), self.batch_size):
            batch = rows[first : first + self.batch_size]
            for row, values in zip(batch, reader.read([inputs[row] for row in batch]), strict=True):
                fitted = kept[row][: len(values)]
                scores[row] = [ScoredSpan(*span, value) for (span, _), value in zip(fitted, values, strict=True)]
        return scores


class _Layout:
    """A preset's input under one tokenizer: runs of text between special tokens whose places are known.

    Encoding each run alone gives the ids of the whole text, since a tokenizer parts a text at its special tokens first.
    """

    def __init__(self, prm: PRM, tokenizer: Any) -> None:
        self._preset, self._tokenizer = PRESETS[prm.preset], tokenizer
        separator = self._preset.separator
        ids = tokenizer.encode(separator, add_special_tokens=False)
        if len(ids) != 1:
            raise _unfit(prm, f"one token for the separator {separator!r}", f"{len(ids)} tokens")
        self._separator: int = ids[0]
        added = tokenizer.added_tokens_decoder.items()
        self._special: dict[str, int] = {t.content: i for i, t in added if t.special or i == self._separator}
        names = "|".join(re.escape(name) for name in sorted(self._special, key=len, reverse=True))
        self._spelled, self._parts = re.compile(f"(?={names})"), re.compile(f"({names})")
        if separator not in self._special or self._separator in self._plain(separator):
            raise _unfit(prm, f"a token of its own for the separator {separator!r}", "an ordinary token")
        shown = self._render(prm, "[the problem]", "[the steps]")
        parts = re.split(r"\[the problem\]|\[the steps\]", shown)
        if len(parts) != 3:
            raise _unfit(prm, "a chat template that shows problem and steps once each", repr(shown))
        self._before, self._between, self._after = map(self._pieces, parts)
        whole = self._render(prm, PROBE[0], "".join(step + separator for step in PROBE[1]))
        if self.encode(*PROBE)[0] != tokenizer.encode(whole):
            raise _unfit(prm, "the same ids for its input in pieces and in one text", f"others for {whole!r}")

    def encode(self, problem: str, steps: Sequence[str]) -> Marked:
        """The ids of an input, and where each step's separator is in them."""
        body: list[str | int] = [piece for step in steps for piece in (step, self._separator)]
        ids: list[int] = []
        marks: list[int] = []
        text = ""
        for piece in (*self._before, problem, *self._between, *body, *self._after):
            if isinstance(piece, str):
                text += piece
                continue
            ids += self._plain(text)
            text = ""
            if piece == self._separator:
                marks.append(len(ids))
            ids.append(piece)
        return ids + self._plain(text), marks

    def _render(self, prm: PRM, problem: str, steps: str) -> str:
        """The input as published: the tokenizer's chat template around the problem and the joined steps."""
        system = [] if self._preset.system is None else [{"role": "system", "content": self._preset.system}]
        messages = [*system, {"role": "user", "content": problem}, {"role": "assistant", "content": steps}]
        try:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False))
        except Exception as error:
            raise _unfit(prm, "a chat template that takes its messages", _line(error)) from error

    def _pieces(self, template: str) -> list[str | int]:
        """A part of the template as texts and the ids of its special tokens."""
        return [self._special.get(part, part) for part in self._parts.split(template)]

    def _plain(self, text: str) -> list[int]:
        """The ids of a text, which is cut inside whatever spells a special token so that none is made of it."""
        text = text.encode(errors="replace").decode()  # tokenizers refuse lone surrogates
        cuts = [0, *(match.start() + 1 for match in self._spelled.finditer(text)), len(text)]
        pieces = [text[start:end] for start, end in pairwise(cuts)]
        return list(chain.from_iterable(self._tokenizer(pieces, add_special_tokens=False, verbose=False)["input_ids"]))


class _Reader:
    """A loaded model and the layout of its input."""

    def __init__(self, prm: PRM, tokenizer: Any, model: Any) -> None:
        self.layout = _Layout(prm, tokenizer)
        self._prm, self._model = prm, model.eval().requires_grad_(False)
        rows, positions = model.get_input_embeddings().num_embeddings, model.config.max_position_embeddings
        if len(tokenizer) > rows:
            raise _unfit(prm, "an embedding for every token", f"{rows} for {len(tokenizer)} tokens")
        if prm.max_length > positions:
            raise InputError(
                f"`max_length` must be <= the {positions} positions of {prm.model!r}; got {prm.max_length}."
            )
        self.read([self.layout.encode(*PROBE)])

    def read(self, inputs: Sequence[Marked]) -> list[list[float]]:
        """The score at each mark of each input, in one pass over all of them."""
        preset, device = PRESETS[self._prm.preset], next(self._model.parameters()).device
        ids = torch.zeros(len(inputs), max(len(row) for row, _ in inputs), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for index, (row, _) in enumerate(inputs):
            ids[index, : len(row)] = torch.tensor(row)
            mask[index, : len(row)] = 1
        ids, mask = ids.to(device), mask.to(device)
        rows = [index for index, (_, marks) in enumerate(inputs) for _ in marks]
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            output = self._model(input_ids=ids, attention_mask=mask, use_cache=False)
            logits = output[0] if getattr(output, "logits", None) is None else output.logits
            if logits.shape != (*ids.shape, preset.labels):
                fact = f"an output {tuple(logits.shape)} for ids {tuple(ids.shape)}"
                raise _unfit(self._prm, f"{preset.labels} labels for each token", fact)
            values = preset.read(logits[rows, [mark for _, marks in inputs for mark in marks]], preset.good)
        if not values.isfinite().all():
            raise _unfit(self._prm, "finite outputs", "nan or infinity")
        found = iter(values.tolist())
        return [[next(found) for _ in marks] for _, marks in inputs]


def _load(prm: PRM) -> _Reader:
    """The model of a signal, whole on its device and checked against its preset."""
    try:
        import transformers
    except ImportError:
        raise MissingExtraError("transformers", "data", "load a process reward model") from None
    folder = Path(prm.model).expanduser()
    local = folder.is_dir()
    if local and not (folder / "config.json").is_file():
        raise InputError(f"`model` must be a folder with a model for PRM; {prm.model!r} has no config.json.")
    if not local and (folder.exists() or prm.model.startswith((".", "~", "/")) or prm.model.count("/") > 1):
        raise InputError(
            f"`model` must be a local folder or a hub name for PRM; got {prm.model!r}, which is no folder."
        )
    source = str(folder) if local else prm.model
    device = prm.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        with _whole_models():
            config, _ = transformers.PreTrainedConfig.get_config_dict(source, local_files_only=local)
            kind, options = _model_class(prm, transformers, config)
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                source, local_files_only=local, trust_remote_code=prm.trust_remote_code
            )
            model, info = kind.from_pretrained(
                source, local_files_only=local, dtype=_dtype(prm.dtype), output_loading_info=True, **options
            )
            if type(model).__module__.startswith("transformers_modules"):
                _restore_buffers(model)
        if info["missing_keys"]:  # Transformers would go on with random numbers in their place
            raise _unfit(
                prm, "all weights of its architecture", f"none for {', '.join(sorted(info['missing_keys'])[:3])}"
            )
        return _Reader(prm, tokenizer, model.to(device))
    except (InputError, MissingExtraError, MemoryError):
        raise
    except Exception as error:
        fact = f"{type(error).__name__}: {_line(error)}"
        raise InputError(f"`model` must be loadable for PRM; got {prm.model!r}: {fact}") from error


def _model_class(prm: PRM, transformers: Any, config: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What loads a checkpoint of this configuration, and with which options."""
    preset = PRESETS[prm.preset]
    architecture = (config.get("architectures") or ["none"])[0]
    own = [name for name in ("AutoModel", "AutoModelForTokenClassification") if name in (config.get("auto_map") or {})]
    if own and prm.trust_remote_code:
        return getattr(transformers, own[0]), {"trust_remote_code": True}
    if architecture == preset.architecture:
        return _published_class(preset, transformers), {}
    if architecture.endswith("ForTokenClassification") and hasattr(transformers, architecture):
        return transformers.AutoModelForTokenClassification, {"trust_remote_code": False}
    if own:
        raise InputError(
            f"`trust_remote_code` must be True for {prm.model!r}, which needs the modeling code that it ships "
            f"({architecture}); got False. Read that code before you run it."
        )
    raise _unfit(prm, f"{preset.labels} labels for each token", f"the architecture {architecture}")


def _published_class(preset: Preset, transformers: Any) -> Any:
    """The published architecture on Transformers' own Qwen2, under the published names of its weights."""

    class Published(transformers.Qwen2PreTrainedModel):  # type: ignore[misc]
        _keys_to_ignore_on_load_unexpected = ("lm_head",)

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.model = transformers.Qwen2Model(config)
            self.score = preset.head(config.hidden_size, preset.labels)
            self.post_init()

        def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool) -> tuple[Tensor]:
            hidden = self.model(input_ids, attention_mask=attention_mask, use_cache=use_cache).last_hidden_state
            return (self.score(hidden),)

    return Published


def _restore_buffers(model: nn.Module) -> None:
    """Computes again what a class keeps outside its checkpoint, as the tables of rotary positions.

    Transformers 5 makes models without memory and fills in the checkpoint; such buffers of classes that are not its
    own are left as whatever the memory held.
    """
    try:
        from accelerate import init_empty_weights
    except ImportError:
        raise MissingExtraError("accelerate", "trl", "run the modeling code of a checkpoint") from None
    with init_empty_weights(include_buffers=False):
        made = dict(type(model)(model.config).named_buffers())
    saved = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        if name not in saved:
            buffer.copy_(made[name])


@contextmanager
def _whole_models() -> Iterator[None]:
    """Beside a trainer that shards, Transformers would load a model in shards (ZeRO-3) or empty (FSDP): not here."""
    from transformers.integrations import deepspeed

    held = getattr(deepspeed, "_hf_deepspeed_config_weak_ref", None)
    config = held() if held is not None else None
    ram_efficient = os.environ.pop("FSDP_CPU_RAM_EFFICIENT_LOADING", None)
    if config is not None:
        deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if config is not None:
            deepspeed.set_hf_deepspeed_config(config)
        if ram_efficient is not None:
            os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = ram_efficient


def _dtype(name: str | None) -> Any:
    """A floating-point type by name; "auto", the checkpoint's own, for None."""
    found = "auto" if name is None else getattr(torch, name, None) if isinstance(name, str) else None
    if found != "auto" and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise InputError(f"`dtype` must be a floating-point type of torch for PRM, as 'bfloat16'; got {name!r}.")
    return found


def _unfit(prm: PRM, rule: str, fact: str) -> InputError:
    """Says what a checkpoint lacks for its preset."""
    return InputError(f"`model` must have {rule} for the preset {prm.preset!r}; got {fact} in {prm.model!r}.")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
