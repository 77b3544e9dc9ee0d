"""What a checkpoint says of itself: the file beside its weights that names its preset and its separator."""

import json
from pathlib import Path
from typing import Any

from stepcredit.errors import InputError, MissingExtraError
from stepcredit.signals.prm.loading import Checkpoint
from stepcredit.signals.prm.presets import PRESETS, Preset, find_preset, find_separator

DESCRIPTION = "stepcredit_prm.json"
"""The file's name. It holds an object with "preset", "separator" or both; what else it holds is for people."""


def describe(checkpoint: Checkpoint, preset: str | None, separator: str | None) -> tuple[Preset, str]:
    """The preset and the separator of a model, from options and from its own file.

    Raises:
        InputError: Neither names a preset; the file is damaged; it says something else than an option.
    """
    # a hub is asked only where the answer is needed
    asked = preset is None or "separator" in find_preset(preset).options or checkpoint.place()[1]
    told = description(checkpoint) if asked else {}
    if preset is None and "preset" not in told:
        raise InputError(
            f"`preset` must be one of {', '.join(PRESETS)} for {checkpoint.model!r}, which has no {DESCRIPTION} "
            "that names it; got None."
        )
    for name, value in (("preset", preset), ("separator", separator)):
        if None not in (value, told.get(name)) and value != told[name]:
            raise InputError(
                f"`{name}` must be {told[name]!r}, as {DESCRIPTION} of {checkpoint.model!r} says; got {value!r}."
            )
    found = find_preset(preset if preset is not None else told["preset"])
    return found, find_separator(found, separator if separator is not None else told.get("separator"))


def description(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the file of a checkpoint says; empty: it has none.

    Raises:
        InputError: The file is not an object of JSON with texts for "preset" and "separator".
    """
    path = _path(checkpoint)
    if path is None:
        return {}
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"`model` must have a {DESCRIPTION} of JSON; got {error} in {str(path)!r}.") from None
    if not isinstance(told, dict) or not all(isinstance(told.get(name, ""), str) for name in ("preset", "separator")):
        raise InputError(
            f'`model` must have a {DESCRIPTION} as {{"preset": "trl", "separator": "\\n"}}; got {told!r:.200} '
            f"in {str(path)!r}."
        )
    return told


def _path(checkpoint: Checkpoint) -> Path | None:
    """Where the file is on this machine, fetched from the hub if need be; None: there is none."""
    source, local = checkpoint.place()
    if local:
        path = Path(source) / DESCRIPTION
        return path if path.is_file() else None
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError:
        raise MissingExtraError("transformers", "data", "load a process reward model") from None

    with checkpoint.told():
        try:
            return Path(hf_hub_download(source, DESCRIPTION))
        except EntryNotFoundError:  # and its kin for a hub that cannot be reached
            return None
