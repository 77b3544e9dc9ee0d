"""Rollouts of several turns: the policy writes one, an environment answers, until a budget or the policy ends it."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

_REMEMBERED = 4096  # texts whose length in tokens is remembered: results repeat from rollout to rollout

Writer = Callable[[Sequence[int], list[list[int]], list[int]], list[list[int]]]
"""(indices of the rollouts, their contexts, the most tokens of each turn, at least 1) -> the ids of each turn, the
token that ended it included."""


@dataclass(eq=False)
class Dialogue:
    """One rollout, as far as it has come.

    Attributes:
        prompt_ids: What the policy was given first.
        environment: What answers it; None where nothing does.
        ids: The completion: what the policy and its environment wrote.
        mask: For each of these ids 1 where the policy wrote it, 0 where the environment did.
        turns: How many turns the policy has written.
        finished: It ended with an end token, in a turn that asks for nothing.
    """

    prompt_ids: list[int]
    environment: Any = None
    ids: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    turns: int = 0
    finished: bool = False

    @property
    def context(self) -> list[int]:
        """What the policy reads before its next turn."""
        return [*self.prompt_ids, *self.ids]

    def add(self, ids: Sequence[int], *, policy: bool) -> None:
        """Appends what one of the two wrote."""
        self.ids += ids
        self.mask += [int(policy)] * len(ids)


def token_count(tokenizer: Any) -> Callable[[str], int]:
    """The length of a text in a tokenizer's tokens, special ones not added."""

    @lru_cache(_REMEMBERED)
    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    return count


class TurnProtocol(Protocol):
    """How a policy talks to an environment.

    Attributes:
        stop_ids: Ids that end a turn, beside the policy's end tokens.
    """

    stop_ids: frozenset[int]

    @property
    def stops(self) -> Callable[[Sequence[int]], bool] | None:
        """Says whether the ids of a turn so far end it, where single ids cannot; None where they can."""
        ...

    def prompt(self, prompt: str) -> list[int]:
        """The ids after which the policy's first turn begins."""
        ...

    def environment(self, reference: str) -> Any:
        """What answers one rollout; None where nothing does."""
        ...

    def asks(self, turn: Sequence[int]) -> bool:
        """Whether the ids of a whole turn ask the environment for something."""
        ...

    def reply(self, dialogue: Dialogue, turn: Sequence[int], room: int) -> list[int] | None:
        """The ids to append after a turn that asks for something.

        Args:
            dialogue: The rollout before the turn.
            turn: The turn, not yet part of it.
            room: The most ids that may be appended.

        Returns:
            At most ``room`` ids; None where the rollout ends here.
        """
        ...


def converse(
    protocol: TurnProtocol,
    prompts: Sequence[Sequence[int]],
    references: Sequence[str],
    write: Writer,
    *,
    max_new_tokens: int,
    ends: Collection[int],
) -> list[Dialogue]:
    """Writes rollouts turn by turn, all unfinished ones at a time.

    Args:
        protocol: How they talk to their environments.
        prompts: The ids of each prompt. Shape: [batch][tokens].
        references: What makes each rollout's environment. Shape: [batch].
        write: Writes the next turn of some of them.
        max_new_tokens: Limit of a completion, what the environment wrote included.
        ends: The policy's end tokens.

    Returns:
        The rollouts, in order. One whose limit or budget of searches ends it is unfinished.

    Degenerate cases:
        A reply that fills the completion up to its limit stays, and the rollout ends with it.
    """
    pairs = zip(prompts, references, strict=True)
    dialogues = [Dialogue(list(ids), protocol.environment(reference)) for ids, reference in pairs]
    live = list(range(len(dialogues)))
    while live:
        limits = [max_new_tokens - len(dialogues[i].ids) for i in live]
        turns = write(live, [dialogues[i].context for i in live], limits)
        for i, turn, limit in zip(live, turns, limits, strict=True):
            dialogue, asks = dialogues[i], protocol.asks(turn)
            dialogue.finished = turn[-1] in ends and not asks
            reply = protocol.reply(dialogue, turn, limit - len(turn)) if asks and limit > len(turn) else None
            dialogue.add(turn, policy=True)
            dialogue.turns += 1
            dialogue.add(reply or [], policy=False)
            turns_left = bool(reply) and len(dialogue.ids) < max_new_tokens
            live = live if turns_left else [j for j in live if j != i]
    return dialogues
