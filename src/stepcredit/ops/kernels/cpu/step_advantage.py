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
    lo, hi, policy, ref, each, beta, out, order, edges, begin, end, length, runs, starts, stops
):
    longest = 0
    for place in range(edges[lo], edges[hi]):
        longest = max(longest, length[order[place]])
    sums, alive, so_far = np.empty(longest), np.empty(longest), np.empty(longest)
    for g in range(lo, hi):
        sums[:] = 0.0
        alive[:] = 0.0
        for turn in range(2):  # first what the group's mean is made of, then each row less the mean
            for place in range(edges[g], edges[g + 1]):
                r, n, total = order[place], 0, 0.0
                for i in range(runs[r], runs[r + 1]):
                    p, q, here = policy[starts[i] : stops[i]], ref[starts[i] : stops[i]], so_far[n:]
                    for j in range(p.size):
                        here[j] = beta * (np.float64(p[j]) - np.float64(q[j]))
                    n += p.size
                for j in range(n):
                    total += so_far[j]
                    so_far[j] = total
                if turn == 0:
                    for j in range(n):
                        sums[j] += so_far[j]
                    for j in range(n):
                        alive[j] += 1.0
                    continue
                n, at = 0, begin[r]
                for i in range(runs[r], runs[r + 1]):
                    out[at : starts[i]] = 0
                    at = stops[i]
                    credit, here, mean = out[starts[i] : at], so_far[n:], sums[n:]
                    for j in range(credit.size):
                        credit[j] = each[r] + (here[j] - mean[j])
                    n += credit.size
                out[at : end[r]] = 0
            if turn == 0:
                for j in range(sums.size):
                    sums[j] /= max(alive[j], 1.0)
