"""PRIME's advantage as its authors' public recipe for verl computes it: in no package, so written out here, plainly."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from stepcredit.batch import RolloutBatch
from stepcredit.lab.peers.unsupported import UnsupportedError

_WHITENED = "whitens over the batch's tokens"


@dataclass(frozen=True)
class PrimeEstimator:
    """RLOO over implicit process rewards and outcomes, whitened: a loop over rollouts, a tensor for every step of it.

    1. p = the process rewards, 0 from each response's last token on, over the batch's max |reverse sum| + 1e-6.
    2. Of each group of n: ``p n / (n - 1)`` minus the sum of its responses' means over n - 1, on response tokens.
    3. The same of the outcome, which has one token, the response's last.
    4. The sum of both, summed from the end, minus the batch's mean, over its standard deviation.

    Everything is in the float dtype of the batch. What the recipe leaves on other tokens, which no loss reads, is 0.

    Reference:
        Cui et al., PRIME, arXiv 2502.01456; ``recipe/prime`` of verl (``prime_core_algos``, ``prime_dp_rm``), with the
        recipe's coefficients of 1 for both sources, and "batch_norm".
    """

    name: str = "rloo"
    requires = frozenset({"rewards", "process_rewards"})

    @property
    def exempt(self) -> Mapping[str, str]:
        """The laws that its method breaks by definition."""
        whitened = dict.fromkeys(("alone", "leak", "unscored", "coverage"), _WHITENED)
        return {**whitened, "edges": "sets the last token's process reward to 0"}

    def __call__(self, batch: RolloutBatch) -> Tensor:
        """Advantages [batch, time].

        Raises:
            UnsupportedError: Rows that do not count or have no response token, uncovered tokens, groups that do not
                stand in a row or differ in size, or groups of one, which the recipe never sees.
        """
        return self.ready(batch)()

    def ready(self, batch: RolloutBatch) -> Callable[[], Tensor]:
        """The call with its arguments checked, to be timed apart; raises as the call does."""
        n = _group_size(batch)
        mask, p, r = batch.response_mask, batch.process_rewards, batch.rewards
        assert p is not None
        assert r is not None
        return lambda: prime_advantages(p, r.to(p.dtype), mask, n)


def prime_advantages(p: Tensor, r: Tensor, mask: Tensor, n: int) -> Tensor:
    """The four steps of `PrimeEstimator`.

    Args:
        p: float [batch, time], implicit process rewards.
        r: float [batch], outcomes.
        mask: bool [batch, time], response tokens, at least one a row.
        n: Rollouts a group, at least 2; groups stand in a row.

    Returns:
        Advantages [batch, time].
    """
    rows, last = torch.arange(len(mask)), mask.shape[1] - 1 - mask.long().flip(1).argmax(1)
    p = torch.where(mask, p, 0.0)
    p[rows, last] = 0
    p = p / (p.flip(1).cumsum(1).flip(1).abs().max() + 1e-6)
    at_last, outcome = torch.zeros_like(mask), torch.zeros_like(p)
    at_last[rows, last] = True
    outcome[rows, last] = r
    rewards = _leave_one_out(p, mask, n) + _leave_one_out(outcome, at_last, n)
    returns = (rewards * mask).flip(1).cumsum(1).flip(1)
    count = mask.sum()
    mean = (returns * mask).sum() / count
    variance = ((returns - mean) ** 2 * mask).sum() / (count - 1)
    return (returns - mean) * torch.rsqrt(variance + 1e-8) * mask


def _leave_one_out(x: Tensor, mask: Tensor, n: int) -> Tensor:
    """Step 2: a loop over groups, and in each over its rollouts."""
    found = torch.zeros_like(x)
    for first in range(0, len(x), n):
        group = slice(first, first + n)
        means = torch.stack([x[row][mask[row]].mean() for row in range(first, first + n)])
        found[group] = torch.where(mask[group], x[group] * (n / (n - 1)) - means.sum() / (n - 1), 0.0)
    return found


def _group_size(batch: RolloutBatch) -> int:
    if batch.cu_seqlens is not None:
        raise UnsupportedError("the recipe knows padded rows")
    if not bool(batch.response_mask.any(1).all()) or (batch.row_mask is not None and not bool(batch.row_mask.all())):
        raise UnsupportedError("the recipe has a response in every row")
    if not bool(batch.covered.all()):
        raise UnsupportedError("the recipe's process rewards cover every response token")
    labels, sizes = torch.unique_consecutive(batch.group_ids, return_counts=True)
    size = int(sizes[0]) if sizes.numel() else 0
    if size < 2 or bool((sizes != size).any()) or torch.unique_consecutive(labels.sort().values).numel() != len(labels):
        raise UnsupportedError("the recipe's groups stand in a row and have one size, of two and more")
    return size


def estimator(name: str) -> PrimeEstimator:
    """One by its name in `PEERS`."""
    return PrimeEstimator(name)
