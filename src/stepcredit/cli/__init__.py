"""The command line: one file a verb; the only floor that prints."""
