"""What an engine cannot be given."""

from stepcredit.errors import StepCreditError


class UnsupportedError(StepCreditError):
    """A batch that an engine's trainer can never hand to its estimator; the message says why."""
