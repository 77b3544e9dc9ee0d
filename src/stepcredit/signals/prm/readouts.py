"""What a score is, given the logits where it is read."""

from torch import Tensor


def label_probability(rows: Tensor, label: int = 1) -> Tensor:
    """``softmax(rows)[..., label]``, in float32: logits [steps, labels] to probabilities [steps]."""
    return rows.float().softmax(-1)[..., label]


def margin(rows: Tensor) -> Tensor:
    """``p(label 1) - p(label 0)``, in float32: logits [steps, 2] to numbers in [-1, 1], [steps]."""
    probabilities = rows.float().softmax(-1)
    return probabilities[..., 1] - probabilities[..., 0]


def logistic(rows: Tensor) -> Tensor:
    """``sigmoid(rows[..., 0])``, in float32: one logit a step [steps, 1] to probabilities [steps]."""
    return rows.float()[..., 0].sigmoid()


def first_number(rows: Tensor) -> Tensor:
    """``rows[..., 0]``, in float32: numbers that are scores as they are, [steps, 1] to [steps]."""
    return rows.float()[..., 0]
