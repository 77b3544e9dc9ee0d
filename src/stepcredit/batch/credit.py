"""`Credit`: what an estimator gives back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Credit:
    """Per-token credit for one batch.

    Attributes:
        advantages: float [batch, time] ([tokens] in the packed layout), detached, exactly 0 off-mask: float64 if the
            batch holds a float64 field, else float32.

    Example:
        >>> import torch, stepcredit as sc
        >>> batch = sc.RolloutBatch.from_lists([2, 1], [0, 0], [1.0, 0.0])
        >>> sc.DrGRPO()(batch).advantages.tolist()
        [[0.5, 0.5], [-0.5, 0.0]]
    """

    advantages: Tensor
    _terms: Callable[[], Mapping[str, Tensor]] = field(repr=False)
    _segment_ids: Callable[[], Tensor] = field(repr=False)
    _counts: Callable[[], Mapping[str, int]] = field(repr=False)

    def terms(self) -> dict[str, Tensor]:
        """What each stream of reward contributes: name -> tensor like `advantages`, summing to it.

        Computed on the call, and paid for only then, from the batch's tensors: write to them afterward. With a process
        group it is a collective: all ranks call it.
        """
        return dict(self._terms())

    def segment_ids(self) -> Tensor:
        """int64, like `advantages`: the segments that share one credit; -1 off-mask.

        Chunks for PASS; the batch's own step ids, -1 on uncovered tokens too, for GRPOProcess and for a REINFORCEpp
        that reads the process signal, in step mode; else 0 for the whole response.
        """
        return self._segment_ids()

    def counts(self) -> dict[str, int]:
        """What was left out or came to nothing, by name; nothing is dropped in silence.

        This rank's: ``excluded_rows`` (masked out, or without a response token) and, with a process signal,
        ``unscored_rollouts`` (live, but the signal covers none of their tokens). The batch's, over all ranks:
        ``groups``, ``singleton_groups``, and for PASS ``violating_groups`` (every rollout breaks the format and the
        group's credit is 0).
        """
        return dict(self._counts())
