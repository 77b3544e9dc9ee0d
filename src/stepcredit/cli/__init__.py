"""The command line: one file a verb; the only floor that prints."""

from stepcredit.cli.main import main

__all__ = ["main"]
