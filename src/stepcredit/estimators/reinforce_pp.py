"""REINFORCE++: discounted token returns, whitened over the whole batch."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from stepcredit.estimators.base import Assignment, total
from stepcredit.estimators.compacted import Compacted
from stepcredit.estimators.in_place import InPlace, Kernel, Writing
from stepcredit.estimators.reward_sum import RewardSum
from stepcredit.estimators.rollout_view import RolloutView
from stepcredit.estimators.whitened import whitened_returns, whitened_rows
from stepcredit.ops.kernels.operands import Line
from stepcredit.ops.returns import return_to_go
from stepcredit.ops.scaling import by_whitening, center, on_rollouts, whitener
from stepcredit.options import option


@dataclass(frozen=True, kw_only=True)
class REINFORCEpp(RewardSum):
    """REINFORCE++ and its baseline variant.

        G[t] = sum over u >= t of gamma^(u - t) r[u],   r = step signals at step ends + R_i at the last token
        A = (G - mean G) / sqrt(var G + 1e-8) over all response tokens of the batch

    The reward R is that of `RewardSum`: ``w_outcome`` (1) and ``w_format`` (0) times outcome and format, plus each
    extra reward times its weight in ``w_extra`` (1 where it is not named). ``singletons``: what a group of one gets,
    "zero" or its "raw" reward.

    Attributes:
        gamma: Discount a response token.
        w_process: Weight of the process signal; it takes part if the batch has one.
        baseline: REINFORCE++-baseline instead: R_i minus its group's mean on every token, whitened the same way. It
            reads no process signal; ``gamma`` and ``w_process`` have no part in it.

    Degenerate cases:
        A batch whose returns are all equal, or of one token, gets exactly 0.

    Example:
        >>> from stepcredit import RolloutBatch
        >>> batch = RolloutBatch.from_lists([1, 1], [0, 1], [1.0, 0.0])
        >>> [round(a, 4) for [a] in REINFORCEpp()(batch).advantages.tolist()]
        [0.7071, -0.7071]

    Reference:
        Hu, REINFORCE++, arXiv 2501.03262. The process signal's weight is an addition.
    """

    type: ClassVar[str] = "reinforce_pp"
    gamma: float = option(1.0, at_least=0, at_most=1)
    w_process: float = 1.0
    baseline: bool = False

    @property
    def exempt(self) -> Mapping[str, str]:
        """Whitening is over the batch, and returns are sums of raw signals."""
        found = dict.fromkeys(("alone", "leak", "unscored"), "whitens over the batch's tokens")
        if not self.baseline:
            found["coverage"] = "a return is a sum: a signal of 0 adds what none does"
            if self.gamma < 1:
                found |= dict.fromkeys(("constant", "equal"), "discounts a reward by its distance")
            return found
        return {**super().exempt, **found}

    def assign(self, view: Compacted) -> Assignment:
        """Whitened returns."""
        returns = self._centered_rewards(view) if self.baseline else self._returns(view)
        whole = whitener(total(returns), view.token_groups.merged())
        by_step = "process" in returns
        return Assignment.linear(returns, whole, segment_ids=(lambda: view.step_ids) if by_step else None)

    def kernel(self, place: InPlace) -> Kernel | str:
        """The same in two passes, of returns that are not discounted."""
        if self.baseline:
            return place.refusal() or (lambda: whitened_rows(place, self._centered(place), by_whitening, 1))
        known = {"gamma": (self.gamma, 1.0)}
        if place.batch.process_rewards is None:
            return place.refusal(**known) or (lambda: whitened_rows(place, self.weighted(place), by_whitening, 1))
        return place.refusal("process_rewards", **known) or partial(self._whitened_returns, place)

    def _whitened_returns(self, place: InPlace) -> Writing:
        nothing = torch.zeros_like(place.rows.length, dtype=torch.float64)
        process = Line(nothing, nothing + self.w_process, nothing)
        return whitened_returns(place, place.signal, process, self.weighted(place), by_whitening, 1)

    def _centered(self, view: RolloutView) -> dict[str, Tensor]:
        """Each weighted channel less its group's mean, float64 [R]."""
        per_rollout = on_rollouts(lambda x: center(x, view.groups), view.groups, self.singletons)
        return {name: per_rollout(x) for name, x in self.weighted(view).items()}

    def _centered_rewards(self, view: Compacted) -> dict[str, Tensor]:
        return {name: view.rows.spread(x) for name, x in self._centered(view).items()}

    def _returns(self, view: Compacted) -> dict[str, Tensor]:
        found = {name: self._return_of(x, view) for name, x in self.weighted(view).items()}
        if view.batch.process_rewards is not None:
            placed = view.steps.place(self.w_process * view.step_signal)
            found["process"] = return_to_go(placed, view.rows, self.gamma)
        return found

    def _return_of(self, reward: Tensor, view: Compacted) -> Tensor:
        """A reward [R] on each response's last token, as a return [N]."""
        if self.gamma == 1:
            return view.rows.spread(reward)
        return return_to_go(view.at_last_token(reward), view.rows, self.gamma)
