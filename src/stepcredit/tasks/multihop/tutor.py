"""Demonstrations of multi-hop questions of the built-in world, right or wrong on purpose, for warm starts."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from stepcredit.errors import InputError
from stepcredit.tasks.multihop.question import Question
from stepcredit.tasks.multihop.world import KIND, Fact, World, sentence

Pieces = list[tuple[str, bool]]  # text, and whether the policy writes it


class Replies(Protocol):
    """What answers searches; `SearchEnvironment` does."""

    def reply(self, turn: str, room: int | None = None) -> str | None:
        """What follows a turn; None where the rollout ends."""
        ...


@dataclass(frozen=True)
class Tutor:
    """Follows a question's hops in the policy's form, and errs at these rates.

    At the default rates somewhat under a half of the answers to three hops are right.

    Attributes:
        early: Probability, before each hop but the first, of taking the entity at hand for the answer.
        swap: Probability, at each hop, of following another relation of the entity.
        stray: Probability, at each hop, of reading another entity of the right kind than the text says.
        repeat: Probability of saying (or searching) the same again.

    Raises:
        InputError: A rate is outside [0, 1], or ``repeat`` is 1.

    Degenerate cases:
        Where it has strayed to an entity whose paragraph is not there, it stops and answers that. All rates 0: it
        is always right.

    Example:
        >>> world = World(seed=3)
        >>> print(CLEAN.read(world.question(hops=2), seed=0))
        The author of Kestrel is Mirel.
        The spouse of Mirel is Kelda.
        <answer> Kelda</answer>
    """

    early: float = 0.15
    swap: float = 0.2
    stray: float = 0.1
    repeat: float = 0.1

    def __post_init__(self) -> None:
        """Checks the rates."""
        for name in ("early", "swap", "stray", "repeat"):
            rate = getattr(self, name)
            if not 0.0 <= rate <= 1.0 or (name == "repeat" and rate == 1.0):
                raise InputError(f"`{name}` must be a probability (`repeat` below 1); got {rate}.")

    def read(self, question: Question, seed: int) -> str:
        """A completion in the distractor setting: a line a hop, then the answer."""
        rng = random.Random(f"{seed}/{question.id}/read")  # noqa: S311 - reproducible, no secret
        shown = _facts(s for paragraph in question.paragraphs for s in paragraph.sentences)
        lines = []
        answer = _start(question)
        for fact in self._followed(rng, question, shown):
            lines.append(sentence(fact) + "\n")
            while rng.random() < self.repeat:
                lines.append(lines[-1])
            answer = fact[2]
        return "".join(lines) + f"<answer> {answer}</answer>"

    def search(self, question: Question, world: World, environment: Replies, seed: int) -> Pieces:
        """A completion in the search setting: queries, what the environment answers them, then the answer."""
        rng = random.Random(f"{seed}/{question.id}/search")  # noqa: S311 - reproducible, no secret
        pieces: Pieces = []
        answer = _start(question)
        for entity, relation, value in self._followed(rng, question, world.facts):
            query = f"<search> {relation} of {entity}</search>"
            again = True
            while again:
                result = environment.reply(query)
                pieces.append((query, True))
                if result is None:  # no searches are left, and that was said before
                    return pieces
                pieces.append((result, False))
                again = rng.random() < self.repeat
            answer = value
        return [*pieces, (f"<answer> {answer}</answer>", True)]

    def _followed(
        self, rng: random.Random, question: Question, known: Mapping[str, Mapping[str, str]]
    ) -> Iterator[Fact]:
        """The facts as the tutor takes them, errors included, as far as it gets."""
        at = _start(question)
        for number, hop in enumerate(question.hops):
            if number and rng.random() < self.early:
                return
            relation = hop.question.split(" of ")[0]
            if rng.random() < self.swap and known.get(at):
                relation = rng.choice(sorted(known[at]))
            value = known.get(at, {}).get(relation)
            if value is None:
                return
            if rng.random() < self.stray:
                value = rng.choice(sorted(name for name in known if KIND[name] == KIND[value]) or [value])
            yield at, relation, value
            at = value


CLEAN = Tutor(early=0.0, swap=0.0, stray=0.0, repeat=0.0)
"""Never errs: for teachers."""


def _start(question: Question) -> str:
    return question.hops[0].question.split(" of ")[1]


def _facts(sentences: Iterator[str]) -> dict[str, dict[str, str]]:
    """The facts that sentences of the world state."""
    facts: dict[str, dict[str, str]] = {}
    for text in sentences:
        _, relation, _, entity, _, value = text.rstrip(".").split(" ")
        facts.setdefault(entity, {})[relation] = value
    return facts
