"""The error tree.

    StepCreditError
    ├── InputError (also a ValueError)            an argument breaks its rule
    └── MissingExtraError (also an ImportError)   an optional dependency is not installed

A message reads: `` `argument` must <rule>; got <fact>. <what to do> ``. What is legal but probably not meant is a
`StepCreditWarning`.
"""


class StepCreditError(Exception):
    """Base of every error that this package raises on purpose."""


class InputError(StepCreditError, ValueError):
    """An argument breaks its documented rule; the message names the argument, the rule and the fact."""


class MissingExtraError(StepCreditError, ImportError):
    """An optional dependency is needed and absent; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        """Names the package, the extra and what for: ``MissingExtraError("pyarrow", "data", "read Parquet")``."""
        super().__init__(f"`{package}` is needed to {purpose}; install it with: pip install 'stepcredit[{extra}]'")


class StepCreditWarning(UserWarning):
    """An input is legal but is probably not what the caller means."""
