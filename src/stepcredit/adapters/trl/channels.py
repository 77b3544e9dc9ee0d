"""Which of the trainer's reward functions are outcome, format and further channels, and what they say of a batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stepcredit.errors import InputError


@dataclass(frozen=True)
class Channels:
    """The reward functions by role, as indices into the trainer's list.

    Attributes:
        outcome: What `RolloutBatch.rewards` sums.
        format: What `RolloutBatch.format_rewards` sums.
        extra: The others, each a channel of its own, by name.
        format_threshold: A rollout keeps the format where every format function gives at least this much; None asks
            that they give 0 or 1, and 1 keeps it.
    """

    outcome: tuple[int, ...]
    format: tuple[int, ...]
    extra: dict[str, int]
    format_threshold: float | None

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        outcome: Sequence[str] | None,
        format: Sequence[str],
        format_threshold: float | None,
    ) -> "Channels":
        """Sorts reward functions into channels.

        Args:
            names: The trainer's, in order.
            outcome: The outcome functions; None for all that are not format.
            format: The format functions.
            format_threshold: See the class.

        Raises:
            InputError: A name that no function has or that two have, one in both roles, or no outcome at all.
        """
        outcome = [name for name in names if name not in format] if outcome is None else list(outcome)
        for role, asked in (("outcome", outcome), ("format", format)):
            for name in asked:
                if list(names).count(name) != 1:
                    found = "no" if name not in names else "more than one"
                    raise InputError(
                        f"`{role}` must name reward functions of the trainer ({', '.join(names)}); "
                        f"got {name!r}, which is the name of {found} function."
                    )
        both = sorted(set(outcome) & set(format))
        if both:
            raise InputError(f"`format` must not name an outcome function; got {both[0]!r} in both.")
        if not outcome:
            raise InputError("`outcome` must name at least one reward function; got none.")
        extra = {name: i for i, name in enumerate(names) if name not in outcome and name not in format}
        index = {name: i for i, name in enumerate(names)}
        return cls(tuple(index[n] for n in outcome), tuple(index[n] for n in format), extra, format_threshold)

    def fields(self, rewards: Tensor, weights: Tensor) -> dict[str, Tensor | dict[str, Tensor]]:
        """The reward fields of a `RolloutBatch`.

        A function that gives a rollout nothing (nan) adds nothing to its channel. A rollout for which all functions of
        a channel give nothing cannot be scored: `row_mask` is False there, and it counts in no statistic.

        Args:
            rewards: What each function gave each rollout, nan for nothing. Shape: [batch, functions].
            weights: The trainer's reward weights; they apply inside a channel. Shape: [functions].

        Raises:
            InputError: Format rewards other than 0 and 1 without a threshold.
        """
        given = ~rewards.isnan()
        weighted = torch.where(given, rewards, 0) * weights
        fields: dict[str, Tensor | dict[str, Tensor]] = {"rewards": _columns(weighted, self.outcome).sum(1)}
        scorable = _columns(given, self.outcome).any(1)
        if self.format:
            fields["format_rewards"] = _columns(weighted, self.format).sum(1)
            fields["format_ok"] = self._kept(_columns(rewards, self.format))
            scorable &= _columns(given, self.format).any(1)
        if self.extra:
            fields["extra_rewards"] = {name: weighted[:, i] for name, i in self.extra.items()}
            for i in self.extra.values():
                scorable &= given[:, i]
        return {**fields, "row_mask": scorable}

    def _kept(self, rewards: Tensor) -> Tensor:
        """Whether each rollout keeps the format, bool [batch]; functions that give nothing have no say."""
        if self.format_threshold is None:
            odd = rewards[~rewards.isnan() & (rewards != 0) & (rewards != 1)]
            if odd.numel():
                raise InputError(
                    f"`format_threshold` must be given when format rewards are other than 0 and 1; got {odd[0].item()}."
                )
        bar = 1.0 if self.format_threshold is None else self.format_threshold
        return (rewards.isnan() | (rewards >= bar)).all(1)


def _columns(x: Tensor, which: tuple[int, ...]) -> Tensor:
    """Some columns; of one, as mostly, a view."""
    return x[:, which[0] : which[0] + 1] if len(which) == 1 else x[:, list(which)]
