"""A little world of people, places, works and companies, made from a seed: short paragraphs and multi-hop questions.

    paragraph   # Orlan
                The employer of Orlan is Quvex. The spouse of Orlan is Mirel.
    question    Who is the founder of the employer of the spouse of Mirel?

Every entity has one word for a name and a paragraph of its own, and every relation has one value. A world is
consistent: marriage is mutual, and nobody is the teacher of a teacher of theirs, nor a region a part of itself. The
names are the same in every world and the facts are not, so nothing can be learnt by heart: a policy has to read.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from stepcredit.errors import InputError
from stepcredit.tasks.multihop.question import Hop, Paragraph, Question

NAMES = {
    "person": (
        "Orlan", "Mirel", "Tavik", "Besna", "Corvin", "Dalia", "Eskil", "Fenna",
        "Garo", "Hesper", "Ivona", "Jorun", "Kelda", "Lasko", "Nadir", "Petra",
    ),
    "place": (
        "Ambria", "Brovenia", "Calder", "Dunmoor", "Elstow", "Farrow", "Glenna", "Harvik",
        "Istria", "Kolmar", "Lunden", "Morava", "Norwick", "Ostrava", "Pellworm", "Rivona",
    ),
    "work": (
        "Afterglow", "Bluebell", "Cinder", "Driftwood", "Embers", "Fireflies", "Gossamer", "Hourglass",
        "Icefall", "Juniper", "Kestrel", "Lanterns", "Moonrise", "Nightfall", "Overture", "Pilgrims",
    ),
    "company": (
        "Axiflow", "Bantrix", "Cryolab", "Dextron", "Enviro", "Fluxcorp", "Gridware", "Hydrex",
        "Inovex", "Kinetico", "Luxora", "Metalis", "Nanotek", "Optivia", "Primex", "Quvex",
    ),
}  # fmt: skip
"""The entities of the largest world by kind."""

RELATIONS = {
    "person": {"spouse": "person", "teacher": "person", "birthplace": "place", "employer": "company"},
    "place": {"mayor": "person", "region": "place"},
    "work": {"author": "person", "setting": "place"},
    "company": {"founder": "person", "seat": "place"},
}
"""What each kind has, and of which kind it is."""

KIND = {name: kind for kind, names in NAMES.items() for name in names}
HOPS = (1, 4)
_ORDERED = ("teacher", "region")  # relations without circles

Fact = tuple[str, str, str]  # entity, relation, value


def sentence(fact: Fact) -> str:
    """The fact in words.

    Example:
        >>> sentence(("Orlan", "employer", "Quvex"))
        'The employer of Orlan is Quvex.'
    """
    entity, relation, value = fact
    return f"The {relation} of {entity} is {value}."


@dataclass(frozen=True)
class World:
    """The world of a seed, the same on every machine.

    Args:
        seed: Any whole number; chooses every fact.
        size: Entities of each kind, 4 to 16.

    Raises:
        InputError: The size is out of its range.

    Degenerate cases:
        The last in the order of teaching has no teacher, the largest region no region; where the size is odd, one
        person has no spouse.

    Example:
        >>> world = World(seed=3)
        >>> question = world.question(hops=2, paragraphs=4, facts=2)
        >>> question.question, question.answers
        ('Who is the spouse of the author of Kestrel?', ('Kelda',))
        >>> [hop.question + " " + hop.answer for hop in question.hops]
        ['author of Kestrel Mirel', 'spouse of Mirel Kelda']
    """

    seed: int
    size: int = 16

    def __post_init__(self) -> None:
        """Checks the size."""
        most = len(NAMES["person"])
        if not isinstance(self.size, int) or not 4 <= self.size <= most:
            raise InputError(f"`size` must be a whole number from 4 to {most}; got {self.size!r}.")

    @cached_property
    def facts(self) -> dict[str, dict[str, str]]:
        """By entity, relation to value; entities in a fixed order."""
        rng = self._rng("facts")
        names = {kind: list(some[: self.size]) for kind, some in NAMES.items()}
        facts: dict[str, dict[str, str]] = {name: {} for some in names.values() for name in some}
        for kind, relations in RELATIONS.items():
            for relation, of_kind in relations.items():
                some = names[kind][:]
                rng.shuffle(some)
                if relation == "spouse":
                    for one, other in zip(some[0::2], some[1::2], strict=False):
                        facts[one][relation], facts[other][relation] = other, one
                    continue
                for i, name in enumerate(some):
                    values = some[i + 1 :] if relation in _ORDERED else names[of_kind]
                    if values:
                        facts[name][relation] = rng.choice(values)
        return facts

    @cached_property
    def paragraphs(self) -> tuple[Paragraph, ...]:
        """One of every entity, with everything that is known of it."""
        return tuple(Paragraph(name, tuple(map(sentence, self._known(name)))) for name in self.facts)

    def question(self, *, hops: int, paragraphs: int = 6, facts: int | None = 2, number: int = 0) -> Question:
        """A question of the world, with the paragraphs to read.

        Args:
            hops: Relations to follow, 1 to 4. No entity comes twice on the way.
            paragraphs: How many come with it, gold ones included; the others are of entities like those on the way.
            facts: Sentences a paragraph at most, the supporting one included. None: the world's whole paragraphs, as
                `paragraphs` has them. The question, its answer and which entities come with it are the same.
            number: Which of the world's questions.

        Raises:
            InputError: ``hops`` is out of its range, there are fewer paragraphs than hops or more than entities, or
                no sentence is asked for.

        Degenerate cases:
            Two numbers may draw the same question, and show other paragraphs with it.
        """
        if not HOPS[0] <= hops <= HOPS[1]:
            raise InputError(f"`hops` must be from {HOPS[0]} to {HOPS[1]}; got {hops}.")
        if not hops <= paragraphs <= len(self.facts):
            raise InputError(f"`paragraphs` must be from {hops}, the hops, to {len(self.facts)}; got {paragraphs}.")
        if facts is not None and facts < 1:
            raise InputError(f"`facts` must be at least 1; got {facts}.")
        rng = self._rng(f"question {number}")
        path = self._path(rng, hops)
        on_path = [entity for entity, _, _ in path]
        shown = [*path, *((entity, "", "") for entity in self._others(rng, on_path, paragraphs - hops))]
        rng.shuffle(shown)
        made = tuple(self._excerpt(rng, entity, relation, facts) for entity, relation, _ in shown)
        return Question(
            id=f"world-{self.seed}-{number}",
            question=wording([relation for _, relation, _ in path], on_path[0]),
            answers=(path[-1][2],),
            paragraphs=made,
            hops=tuple(
                Hop(f"{relation} of {entity}", value, shown.index((entity, relation, value)))
                for entity, relation, value in path
            ),
            kind=f"{hops}hop",
        )

    def _path(self, rng: random.Random, hops: int) -> list[Fact]:
        entities = list(self.facts)
        while True:
            at = rng.choice(entities)
            path: list[Fact] = []
            seen = {at}
            for _ in range(hops):
                onward = [fact for fact in self._known(at) if fact[2] not in seen]
                if not onward:
                    break
                path.append(rng.choice(onward))
                at = path[-1][2]
                seen.add(at)
            if len(path) == hops:
                return path

    def _others(self, rng: random.Random, on_path: Sequence[str], count: int) -> Iterator[str]:
        """Entities off the path, of kinds that are on it as long as there are any."""
        kinds = {KIND[name] for name in on_path}
        others = [name for name in self.facts if name not in on_path]
        rng.shuffle(others)
        others.sort(key=lambda name: KIND[name] not in kinds)
        yield from others[:count]

    def _excerpt(self, rng: random.Random, entity: str, relation: str, facts: int | None) -> Paragraph:
        """Some of an entity's facts, or all; that of ``relation``, where there is one, is among them and supports."""
        some = known = self._known(entity)
        gold = [fact for fact in known if fact[1] == relation]
        if facts is not None:
            rest = [fact for fact in known if fact[1] != relation]
            some = gold + rng.sample(rest, min(len(rest), facts - len(gold)))
            rng.shuffle(some)
        return Paragraph(entity, tuple(map(sentence, some)), tuple(i for i, fact in enumerate(some) if fact in gold))

    def _known(self, entity: str) -> list[Fact]:
        return [(entity, relation, value) for relation, value in self.facts[entity].items()]

    def _rng(self, purpose: str) -> random.Random:
        return random.Random(f"{self.seed}/{self.size}/{purpose}")  # noqa: S311 - reproducible, no secret


def wording(relations: Sequence[str], entity: str) -> str:
    """The question after the relations, followed in order from the entity.

    Example:
        >>> wording(["author", "employer", "seat"], "Embers")
        'What is the seat of the employer of the author of Embers?'
    """
    kinds = {relation: kind for table in RELATIONS.values() for relation, kind in table.items()}
    asks = "Who" if kinds[relations[-1]] == "person" else "What"
    return f"{asks} is {' '.join(f'the {relation} of' for relation in reversed(relations))} {entity}?"
