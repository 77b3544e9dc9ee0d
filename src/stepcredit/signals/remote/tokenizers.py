"""The local side of a served model's tokenizer."""

from pathlib import Path
from typing import Any

from stepcredit.errors import InputError, MissingExtraError


def load_tokenizer(name: str) -> Any:
    """A tokenizer of Transformers by its local folder or hub name.

    Raises:
        InputError: There is none.
        MissingExtraError: Transformers is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise MissingExtraError("transformers", "data", "load the tokenizer of a served model") from None
    folder = Path(name).expanduser()
    local = folder.is_dir()
    if not local and (folder.exists() or name.startswith((".", "~", "/")) or name.count("/") > 1):
        raise InputError(f"`tokenizer` must be a local folder or a hub name; got {name!r}, which is no folder.")
    try:
        return transformers.AutoTokenizer.from_pretrained(str(folder) if local else name, local_files_only=local)
    except Exception as error:
        fact = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise InputError(f"`tokenizer` must be loadable; got {name!r}: {fact}") from error
