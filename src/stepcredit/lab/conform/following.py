"""Whether a loss's gradient follows the credit of each token."""

from collections.abc import Callable

import torch
from torch import Tensor

from stepcredit.lab.conform.law import Verdict, one_line


def follows(law: str, loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Verdict:
    """A verdict on one loss, at the policy that sampled.

    The gradient at each log-probability must be minus a positive multiple of that token's advantage, one multiple a
    rollout, and 0 on tokens that are masked or have none.

    Args:
        law: What the verdict is called.
        loss: Log-probabilities, advantages and mask, [batch, time] each -> a number.
    """
    mask = torch.ones(3, 5, dtype=torch.long)
    mask[1, 4] = mask[2, 3:] = 0
    advantages = torch.tensor([[1.0, -2, 0, 0.5, 3], [-1, 0.25, 2, 0, 0], [0, 1.5, -0.5, 0, 0]])
    logprobs = torch.full((3, 5), -1.0, requires_grad=True)
    try:
        (gradient,) = torch.autograd.grad(loss(logprobs, advantages, mask), logprobs)
    except Exception as error:  # noqa: BLE001 - a loss of somebody else's
        return Verdict(law, "BROKEN", f"raised {one_line(error)}")
    scale = -(advantages * gradient).sum(1, keepdim=True) / (advantages**2).sum(1, keepdim=True)
    off = (gradient + scale * advantages).abs() / scale.abs().clamp(min=1e-12)
    apart = float(off.max())
    if bool((scale > 0).all()) and apart < 1e-3:
        return Verdict(law, "holds", f"the gradient is minus the advantage, {apart:.1g} apart", apart, None, 3)
    row = int(off.amax(1).argmax())
    shown = [round(float(x), 4) for x in gradient[row]]
    return Verdict(law, "BROKEN", f"advantages {advantages[row].tolist()} give the gradient {shown}", apart, None, 3)
