"""Which inputs go through a model together."""

from collections.abc import Sequence
from itertools import pairwise

PASS_COST = 256  # tokens: about what a pass costs beside its tokens, as a model's weights are read once for all of them


def batches(lengths: Sequence[int], tokens: int, *, mixed: bool = True) -> list[list[int]]:
    """Parts inputs into batches of similar length, of at most ``tokens`` tokens each with their padding.

    Of all ways to cut the inputs, longest first, the one with the least cost is taken,

        sum over batches of (longest input * inputs + 256)

    so that a pass more is made where it saves more padding than it costs.

    Args:
        lengths: The length of each input, in tokens, at least 1. Shape: [inputs].
        tokens: The most tokens of a batch; an input that is longer has a batch to itself.
        mixed: Whether inputs of different lengths may be in one batch, and padding so be needed.

    Returns:
        Indices into ``lengths``, each once; the batch with the longest input is the first, since it needs most memory.

    Example:
        >>> batches([3, 1000, 2, 990], 4000)
        [[1, 3], [0, 2]]
        >>> batches([3, 1000, 2, 990], 1500)
        [[1], [3], [0, 2]]
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    least = [0.0] + [float("inf")] * len(order)  # the cost of the first so many inputs
    start = [0] * (len(order) + 1)  # where the last of their batches begins
    for first, index in enumerate(order):
        longest = lengths[index]
        for end in range(first + 1, len(order) + 1):
            padded = longest * (end - first)
            if end > first + 1 and (padded > tokens or not (mixed or lengths[order[end - 1]] == longest)):
                break
            if least[first] + padded + PASS_COST < least[end]:
                least[end], start[end] = least[first] + padded + PASS_COST, first
    cuts = [len(order)]
    while cuts[-1]:
        cuts.append(start[cuts[-1]])
    cuts.reverse()
    return [order[first:end] for first, end in pairwise(cuts)]
