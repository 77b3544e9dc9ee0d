"""Finds the rows of a published set: in a local file, in a folder, or by name on the Hugging Face hub."""

import re
from pathlib import Path

from stepcredit.errors import InputError, MissingExtraError
from stepcredit.tasks.rows import SUFFIXES, Row, read_rows

# Hub datasets with more than one configuration load only with one named.
_CONFIGS = {
    "openai/gsm8k": "main",
    "gsm8k": "main",
    "hotpotqa/hotpot_qa": "distractor",
    "hotpot_qa": "distractor",
    "bdsaglam/musique": "answerable",
}
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def source_rows(
    name_or_path: str | Path, split: str, limit: int | None = None, config: str | None = None
) -> tuple[list[Row], str]:
    """Reads the rows of a file, a folder or a hub dataset, in order.

    Args:
        name_or_path: A file that `read_rows` reads; a folder that ``datasets.load_dataset`` reads; or, where nothing
            of this name exists here and it has no file's ending, the name of a hub dataset.
        split: The split of a folder or hub dataset; a file is one split and ignores it.
        limit: At most this many rows, the first ones.
        config: The hub dataset's configuration; known for some that do not load without one.

    Returns:
        The rows, never empty, and what to call their source in a message.

    Raises:
        InputError: A missing, damaged or empty source, or a limit below 1.
        MissingExtraError: A hub name or folder without ``datasets``; Parquet without pyarrow.
    """
    path = Path(name_or_path)
    if path.is_dir() or (not path.exists() and _is_hub_name(str(name_or_path))):
        return _dataset_rows(str(name_or_path), split, limit, config), f"{name_or_path}[{split}]"
    return read_rows(path, limit), str(path)


def _is_hub_name(name: str) -> bool:
    stem = name.removesuffix(".gz")
    return _HUB_NAME.fullmatch(name) is not None and not stem.endswith(SUFFIXES) and not name.startswith(".")


def _dataset_rows(name: str, split: str, limit: int | None, config: str | None) -> list[Row]:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("datasets", "data", f"load {name!r} (a file needs no extra)") from error
    if limit is not None and limit < 1:
        raise InputError(f"`limit` must be at least 1 row, or None for all; got {limit}.")
    try:
        table = datasets.load_dataset(name, config or _CONFIGS.get(name), split=split)
    except Exception as error:
        # Whatever goes wrong inside `datasets` (no network, no such name, no such split) means one thing here.
        raise InputError(
            f"`name_or_path` must be a file, or a dataset that loads; got {name!r}, split {split!r}, "
            f"which is no file here and failed as a dataset: {type(error).__name__}: {error}"
        ) from error
    count = len(table) if limit is None else min(limit, len(table))
    if not count:
        raise InputError(f"`name_or_path` must have at least one row; {name!r}, split {split!r} is empty.")
    return [dict(table[index]) for index in range(count)]
