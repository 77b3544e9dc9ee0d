"""What is said when a checkpoint or its tokenizer does not fit a preset."""

from stepcredit.errors import InputError


def unfit(preset: str, source: object, rule: str, fact: str) -> InputError:
    """Says what a checkpoint lacks for its preset."""
    return InputError(f"`model` must have {rule} for the preset {preset!r}; got {fact} in {str(source)!r}.")


def line(error: BaseException) -> str:
    """An error's text in one line of at most 200 characters."""
    return " ".join(str(error).split())[:200]
