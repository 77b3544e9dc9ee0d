"""Loading: a checkpoint, whole on its device, without code of its own unless that is asked for."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stepcredit.errors import InputError, MissingExtraError
from stepcredit.signals.prm.fit import line, unfit
from stepcredit.signals.prm.presets import Preset

_CLASSES = {  # how the name of the standard class ends that gives an output, and what that output is
    "labels": ("ForTokenClassification", "a head with labels for each token"),
    "vocabulary": ("ForCausalLM", "a head over the vocabulary"),
    "sequence": ("ForSequenceClassification", "a head with one number for each input"),
    "log-ratio": ("ForCausalLM", "a head over the vocabulary"),
}


@dataclass(frozen=True)
class Checkpoint:
    """Where a model is and how it is loaded.

    Attributes:
        model: A local folder or a hub name.
        dtype: Of the weights, by torch's name; None: the checkpoint's own.
        device: Where the model runs; None: the current CUDA device if there is one, else the CPU.
        trust_remote_code: Run the modeling code that the checkpoint ships.
        option: The option that named the model, for messages.
    """

    model: str
    dtype: str | None = None
    device: str | None = None
    trust_remote_code: bool = False
    option: str = "model"

    def place(self) -> tuple[str, bool]:
        """What Transformers loads from, and whether it is a folder.

        Raises:
            InputError: A path that is no folder, or a folder without a model.
        """
        folder = Path(self.model).expanduser()
        local = folder.is_dir()
        if local and not (folder / "config.json").is_file():
            raise InputError(
                f"`{self.option}` must be a folder with a model for PRM; {self.model!r} has no config.json."
            )
        path = folder.exists() or self.model.startswith((".", "~", "/")) or self.model.count("/") > 1
        if not local and path:
            raise InputError(
                f"`{self.option}` must be a local folder or a hub name for PRM; got {self.model!r}, which is no folder."
            )
        return str(folder) if local else self.model, local

    def load(self, preset: Preset) -> tuple[Any, Any]:
        """The tokenizer, and the model on its device.

        Raises:
            InputError: It cannot be loaded, does not fit the preset or needs its own code.
            MissingExtraError: Transformers is not installed.
        """
        try:
            import transformers
        except ImportError:
            raise MissingExtraError("transformers", "data", "load a process reward model") from None
        source, local = self.place()
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        with self.told(), whole_models():
            plain, _ = transformers.PreTrainedConfig.get_config_dict(source, local_files_only=local)
            kind, options = self._model_class(preset, transformers, plain)
            if options.get("trust_remote_code"):
                options["config"] = config = transformers.AutoConfig.from_pretrained(
                    source, local_files_only=local, trust_remote_code=True
                )
                config.pad_token_id = getattr(config, "pad_token_id", None)  # Transformers 4 gave all of them one
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                source, local_files_only=local, trust_remote_code=self.trust_remote_code
            )
            model, info = kind.from_pretrained(
                source, local_files_only=local, dtype=torch_dtype(self.dtype), output_loading_info=True, **options
            )
            if type(model).__module__.startswith("transformers_modules"):
                _restore_buffers(model)
            if info["missing_keys"]:  # Transformers would go on with random numbers in their place
                missing = ", ".join(sorted(info["missing_keys"])[:3])
                raise unfit(preset.name, self.model, "all weights of its architecture", f"none for {missing}")
            return tokenizer, model.to(device)

    @contextmanager
    def told(self) -> Iterator[None]:
        """Says of any other error that the model could not be loaded, and why."""
        try:
            yield
        except (InputError, MissingExtraError, MemoryError):
            raise
        except Exception as error:
            fact = f"{type(error).__name__}: {line(error)}"
            raise InputError(f"`{self.option}` must be loadable for PRM; got {self.model!r}: {fact}") from error

    def _model_class(self, preset: Preset, transformers: Any, config: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """What loads a checkpoint of this configuration, and with which options."""
        ending, rule = _CLASSES[preset.output]
        architecture = (config.get("architectures") or ["none"])[0]
        own = [name for name in ("AutoModel", f"AutoModel{ending}") if name in (config.get("auto_map") or {})]
        if own and self.trust_remote_code:
            return getattr(transformers, own[0]), {"trust_remote_code": True}
        if preset.head is not None and architecture == preset.head.architecture:
            return preset.head.model_class(transformers), {}
        if architecture.endswith(ending) and hasattr(transformers, architecture):
            return getattr(transformers, f"AutoModel{ending}"), {"trust_remote_code": False}
        if own:
            raise InputError(
                f"`trust_remote_code` must be True for {self.model!r}, which needs the modeling code that it ships "
                f"({architecture}); got False. Read that code before you run it."
            )
        raise unfit(preset.name, self.model, rule, f"the architecture {architecture}")


def torch_dtype(name: str | None) -> Any:
    """A floating-point type by name; "auto", the checkpoint's own, for None.

    Raises:
        InputError: No such type.
    """
    found = "auto" if name is None else getattr(torch, name, None) if isinstance(name, str) else None
    if found != "auto" and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise InputError(f"`dtype` must be a floating-point type of torch for PRM, as 'bfloat16'; got {name!r}.")
    return found


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
def whole_models() -> Iterator[None]:
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
