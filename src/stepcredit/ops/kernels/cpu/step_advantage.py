"""SPRO's masked step advantage over raw log-probabilities, and the outcome beside it."""

import numpy as np
from torch import Tensor

from stepcredit.ops.kernels.cpu.compiling import Kernel, array, over_groups
from stepcredit.ops.kernels.operands import Grouped


def prefix_step_advantage(
    policy_logprobs: Tensor, ref_logprobs: Tensor, each: Tensor, grouped: Grouped, out: Tensor, *, beta: float
) -> None:
    """`masked_step_advantage` of the "prefix" `process_return`, plus ``each``."""
    over_groups(_prefix, grouped, *map(array, (policy_logprobs, ref_logprobs, each)), beta, array(out))


@Kernel
def _prefix(  # type: ignore[no-untyped-def]
    lo, hi, policy, ref, each, beta, out, order, edges, mask, begin, end, first, stop, length
):
    longest = 0
    for place in range(edges[lo], edges[hi]):
        longest = max(longest, stop[order[place]] - first[order[place]])
    sums, alive, so_far = np.empty(longest), np.empty(longest), np.empty(longest)
    for g in range(lo, hi):
        sums[:] = 0.0
        alive[:] = 0.0
        for turn in range(2):  # first what the group's mean is made of, then each row less the mean
            for place in range(edges[g], edges[g + 1]):
                r = order[place]
                a, b, n = first[r], stop[r], 0
                p, q, total, credit = policy[a:b], ref[a:b], 0.0, out[a:b]
                whole = b - a == length[r]
                if whole:
                    n = b - a
                    for j in range(p.size):
                        so_far[j] = beta * (np.float64(p[j]) - np.float64(q[j]))
                else:
                    for t in range(b - a):
                        if mask[a + t]:
                            so_far[n] = beta * (np.float64(p[t]) - np.float64(q[t]))
                            n += 1
                for j in range(n):
                    total += so_far[j]
                    so_far[j] = total
                if turn == 0:
                    for j in range(n):
                        sums[j] += so_far[j]
                    for j in range(n):
                        alive[j] += 1.0
                    continue
                out[begin[r] : a] = 0
                out[b : end[r]] = 0
                if whole:
                    for j in range(credit.size):
                        credit[j] = each[r] + (so_far[j] - sums[j])
                    continue
                j = 0
                for t in range(b - a):
                    credit[t] = 0
                    if mask[a + t]:
                        credit[t] = each[r] + (so_far[j] - sums[j])
                        j += 1
            if turn == 0:
                for j in range(sums.size):
                    sums[j] /= max(alive[j], 1.0)
