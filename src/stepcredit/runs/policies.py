"""Policies by name: the built-in ones, local folders and hub names, whole models and adapters."""

import difflib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from stepcredit.config.build import hint
from stepcredit.errors import InputError, MissingExtraError

BUILT_IN = {  # names -> folders in `models` beside this file
    "tiny-arithmetic": "tiny_arithmetic",
    "tiny-arithmetic-teacher": "tiny_arithmetic_teacher",
    "tiny-multihop": "tiny_multihop",
    "tiny-multihop-teacher": "tiny_multihop_teacher",
}
BUILT_IN_PRMS = {"tiny-arithmetic-prm": "tiny_arithmetic_prm"}

_ADAPTER = "adapter_config.json"
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True)
class Policy:
    """A causal language model, its tokenizer, and what it was called.

    Attributes:
        model: A Transformers causal language model, or Peft's around one.
        tokenizer: Its fast tokenizer, with a padding and an end-of-sequence token.
        name: The built-in name, folder or hub name that it was loaded by.
    """

    model: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    name: str


def load_policy(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    trust_remote_code: bool = False,
) -> Policy:
    """Loads a policy, in eval mode. Built-in names and local folders never touch the network.

    Args:
        name_or_path: A name in `BUILT_IN`; a local folder with a whole model or a Peft adapter; or a hub name.
        dtype: Of the weights, as torch's or by name ("bfloat16"); None and "auto" are the checkpoint's own.
        device: Where to put the model; the CPU by default.
        trust_remote_code: Run the checkpoint's own modelling code.

    Returns:
        The policy. A tokenizer without a padding token pads with its end of sequence. An adapter stays an adapter
        over its base model, with frozen weights.

    Raises:
        InputError: There is no such policy, it is not whole, it has no fast tokenizer with an end of sequence, or
            ``dtype`` or ``device`` is none.
        MissingExtraError: Transformers is not installed; or Peft, for an adapter.

    Degenerate cases:
        A folder called like a built-in policy: the built-in one; ``./name`` is the folder. An adapter without a
        tokenizer of its own has its base model's.

    Example:
        >>> policy = load_policy("tiny-arithmetic")
        >>> policy, policy.model.training
        (Policy(name='tiny-arithmetic'), False)
    """
    name = str(name_or_path)
    folder, kind = _folder(name), _dtype(dtype)
    _check_device(device)
    if folder is not None and (folder / _ADAPTER).is_file():
        model, tokenizer = _load_adapter(name, folder, kind, trust_remote_code)
    else:
        if folder is not None and not (folder / "config.json").is_file():
            raise InputError(f"`policy` must be a folder with a model; {name!r} has no config.json.")
        model, tokenizer = _load_whole(name, folder, kind, trust_remote_code)
    return Policy((model if device is None else model.to(device)).eval(), tokenizer, name)


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> Any:
    """A policy's tokenizer, without its weights; an adapter's own, or its base model's.

    Raises:
        InputError: There is no such policy, or it has no fast tokenizer with an end of sequence.
    """
    folder = _folder(name)
    if folder is not None and (folder / _ADAPTER).is_file() and not _has_tokenizer(folder):
        with reading("policy", name):
            name = str(json.loads((folder / _ADAPTER).read_text(encoding="utf-8"))["base_model_name_or_path"])
        folder = _folder(name)
    return _load_tokenizer(name, folder, trust_remote_code)


def source_of(name: str) -> str:
    """What loaders of Transformers know a model by: the folder of a built-in one, else the name itself."""
    folder = (BUILT_IN | BUILT_IN_PRMS).get(name)
    return name if folder is None else str(files("stepcredit.runs").joinpath("models", folder))


def add_lora(model: Any, options: Mapping[str, Any]) -> Any:
    """Wraps a model so that only low-rank adapters train.

    Args:
        model: A Transformers causal language model, changed in place.
        options: Of Peft's ``LoraConfig`` by name: ``r``, ``lora_alpha``, ``target_modules``, ... Every linear layer
            but the output has an adapter unless ``target_modules`` says otherwise.

    Returns:
        Peft's model around it. At first it computes what the model alone does.

    Raises:
        InputError: No such option (the nearest names are given), a value that Peft refuses, or a model that has
            an adapter already.
        MissingExtraError: Peft is not installed.

    Reference:
        Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, arXiv 2106.09685.
    """
    peft = _peft("train an adapter")
    if isinstance(model, peft.PeftModel):
        raise InputError("`model` must be without an adapter to add LoRA to; got one that has an adapter already.")
    known = [option.name for option in fields(peft.LoraConfig) if option.init]
    for name in options:
        if name not in known:
            raise InputError(f"`lora` must have options of Peft's LoraConfig; got {name!r}{hint(str(name), known)}.")
    try:
        config = peft.LoraConfig(**{"task_type": "CAUSAL_LM", "target_modules": "all-linear", **options})
        return peft.get_peft_model(model, config)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"`lora` must have values that LoraConfig takes; got {dict(options)}: {_line(error)}"
        ) from error


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Transformers' progress bars stay away, for what takes no time."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def reading(option: str, name: str, rule: str = "loadable") -> Iterator[None]:
    """Whatever a checkpoint's files make the readers raise is about that checkpoint, and the option that named it.

    Raises:
        InputError: In place of every other error but a lack of memory.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        fact = f"{type(error).__name__}: {_line(error)}"
        raise InputError(f"`{option}` must be {rule}; got {name!r}: {fact}") from error


def _folder(name: str) -> Path | None:
    """The local folder that a name means; None for a hub name."""
    if name in BUILT_IN:
        return Path(source_of(name))
    path = Path(os.path.expanduser(name))
    if name and path.is_dir():
        return path
    rule = f"`policy` must be {', '.join(BUILT_IN)}, a local folder or a hub name; got {name!r}"
    if not name or path.exists() or name.startswith((".", "~", "/")) or name.count("/") > 1 or "\\" in name:
        raise InputError(f"{rule}, which is no folder.")
    near = difflib.get_close_matches(name, BUILT_IN, n=1, cutoff=0.7)
    if near:
        raise InputError(f"{rule}; did you mean {near[0]}?")
    return None


def _load_whole(name: str, folder: Path | None, dtype: Any, trust_remote_code: bool) -> tuple[Any, Any]:
    transformers = _transformers()
    source = name if folder is None else str(folder)
    options = {"local_files_only": folder is not None, "trust_remote_code": trust_remote_code}
    with no_progress_bars() if name in BUILT_IN else nullcontext(), reading("policy", name):
        auto = transformers.AutoModelForCausalLM
        model, info = auto.from_pretrained(source, dtype=dtype, output_loading_info=True, **options)
    missing = sorted(info["missing_keys"])
    if missing:  # Transformers would go on with random numbers in their place
        raise InputError(
            f"`policy` must have all weights of its {type(model).__name__}; {name!r} lacks {len(missing)}, "
            f"{missing[0]} first."
        )
    tokenizer = _load_tokenizer(name, folder, trust_remote_code)
    _settle_padding(tokenizer, model)
    return model, tokenizer


def _load_adapter(name: str, folder: Path, dtype: Any, trust_remote_code: bool) -> tuple[Any, Any]:
    """An adapter over its base, without Peft's auto class: it asks the hub about a folder without a tokenizer."""
    peft = _peft("load an adapter")
    with reading("policy", name):
        base = json.loads((folder / _ADAPTER).read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not isinstance(base, str) or not any((folder / file).is_file() for file in _ADAPTER_WEIGHTS):
        raise InputError(
            f"`policy` must be an adapter with its weights and the name of its base; {name!r} has {_ADAPTER} alone."
        )
    try:
        below = _folder(base)
        if below is not None and not (below / "config.json").is_file():
            raise InputError(f"the base must be a folder with a whole model; {base!r} is none.")
        model, tokenizer = _load_whole(base, below, dtype, trust_remote_code)
    except InputError as error:
        raise InputError(f"`policy` {name!r} is an adapter whose base could not be loaded: {error}") from error
    if _has_tokenizer(folder):
        tokenizer = _load_tokenizer(name, folder, trust_remote_code)
        if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(len(tokenizer))  # training added tokens; the adapter holds their rows
        _settle_padding(tokenizer, model)
    with reading("policy", name):
        adapted = peft.PeftModel.from_pretrained(model, str(folder))
    return (adapted if dtype == "auto" else adapted.to(dtype)), tokenizer


def _load_tokenizer(name: str, folder: Path | None, trust_remote_code: bool) -> Any:
    if folder is not None and not _has_tokenizer(folder):  # else Transformers may make one up, without a vocabulary
        raise InputError(f"`policy` must have a tokenizer; {name!r} has no tokenizer files.")
    source = name if folder is None else str(folder)
    with reading("policy", name):
        tokenizer = _transformers().AutoTokenizer.from_pretrained(
            source, local_files_only=folder is not None, trust_remote_code=trust_remote_code
        )
    if not tokenizer.is_fast:
        raise InputError(f"`policy` must have a fast tokenizer; {name!r} has a {type(tokenizer).__name__}.")
    if tokenizer.eos_token_id is None:
        raise InputError(f"`policy` must have a tokenizer with an end of sequence; {name!r} has no eos_token.")
    return tokenizer


def _settle_padding(tokenizer: Any, model: Any) -> None:
    """Pads with the end of sequence where there is no padding token, or only a made-up one without an embedding."""
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= model.get_input_embeddings().weight.shape[0]:
        tokenizer.pad_token = tokenizer.eos_token


def _has_tokenizer(folder: Path) -> bool:
    patterns = ("tokenizer.json", "tokenizer.model", "vocab.*", "*.tiktoken", "tekken.json", "spiece.model")
    return any(path.is_file() for pattern in patterns for path in folder.glob(pattern))


def _dtype(dtype: torch.dtype | str | None) -> Any:
    if dtype is None or dtype == "auto":
        return "auto"
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InputError(f"`dtype` must be a floating-point type of torch, as 'bfloat16'; got {dtype!r}.")
    return found


def _check_device(device: torch.device | str | None) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"`device` must be one of this machine; got {str(device)!r}: {_line(error)}") from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise MissingExtraError("transformers", "trl", "load a policy") from None
    return transformers


def _peft(purpose: str) -> Any:
    try:
        import peft
    except ImportError:
        raise MissingExtraError("peft", "trl", purpose) from None
    return peft
