"""A loss is told from one that spreads token credit over its sequence."""

import pytest
import torch
from torch import Tensor

from stepcredit.lab.conform.following import follows


def token_mean(logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    return -(advantages * logprobs * mask).sum() / mask.sum()


def sequence_mean(logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    return (-(advantages * logprobs * mask).sum(1) / mask.sum(1)).mean()


def one_advantage_a_sequence(logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    return -((advantages * mask).sum(1) * (logprobs * mask).sum(1)).mean()


def turned_around(logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    return -token_mean(logprobs, advantages, mask)


def pulls_on_masked_tokens(logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    return token_mean(logprobs, advantages, mask) + (logprobs * (1 - mask)).sum()


def one_token_off(logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    return token_mean(logprobs, advantages.roll(1, 1), mask)


def wants_one_number(logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    return token_mean(logprobs, advantages.view(3, 1), mask)


@pytest.mark.parametrize("loss", [token_mean, sequence_mean])
def test_what_follows(loss: object) -> None:
    assert follows("loss", loss).outcome == "holds"


@pytest.mark.parametrize(
    "loss", [one_advantage_a_sequence, turned_around, pulls_on_masked_tokens, one_token_off, wants_one_number]
)
def test_what_does_not(loss: object) -> None:
    assert follows("loss", loss).outcome == "BROKEN"
    if loss is wants_one_number:
        assert follows("loss", loss).fact.startswith("raised RuntimeError: shape")


def test_no_gradient_at_all_is_none() -> None:
    assert follows("loss", lambda x, *_: (0 * x).sum()).outcome == "BROKEN"
    assert torch.is_grad_enabled()
