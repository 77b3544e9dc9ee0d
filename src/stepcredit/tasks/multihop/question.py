"""One multi-hop question, whatever data set it comes from: answers, paragraphs, supporting facts, hops."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stepcredit.errors import InputError


@dataclass(frozen=True)
class Paragraph:
    """A titled paragraph.

    Attributes:
        title: Its heading, the name of what it is about.
        sentences: Its sentences in order; one long "sentence" where a set does not cut paragraphs.
        support: Indices of the sentences that the answer rests on; empty for a distractor.
    """

    title: str
    sentences: tuple[str, ...]
    support: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Checks that every supporting sentence is there."""
        for index in self.support:
            if not 0 <= index < len(self.sentences):
                raise InputError(
                    f"`support` must be indices of the {len(self.sentences)} sentences; got {index} in {self.title!r}."
                )

    @property
    def heading(self) -> str:
        """The title on one line, single spaces inside."""
        return " ".join(self.title.split())

    @property
    def text(self) -> str:
        """The sentences as one text on one line: white space between them, and inside, becomes a single space."""
        return " ".join(" ".join(self.sentences).split())

    def render(self) -> str:
        r"""The paragraph as policies read it: a line ``# title``, and a line of text.

        Example:
            >>> Paragraph("Oslo", ("The mayor of Oslo is Bel.",)).render()
            '# Oslo\nThe mayor of Oslo is Bel.\n'
        """
        return f"# {self.heading}\n{self.text}\n"


@dataclass(frozen=True)
class Hop:
    """One step of a question's decomposition.

    Attributes:
        question: The sub-question, as the set writes it; may refer to an earlier answer as ``#1``.
        answer: Its answer.
        paragraph: Index of the paragraph that answers it; None where the set does not say.
    """

    question: str
    answer: str
    paragraph: int | None = None


@dataclass(frozen=True)
class Question:
    """A question over several paragraphs.

    Attributes:
        id: The set's own id.
        question: The question.
        answers: The gold answer, then its aliases; any of them is right. At least one.
        paragraphs: What comes with the question: gold paragraphs and distractors, in the set's order.
        hops: The decomposition, in order; empty where the set gives none.
        kind: The set's word for the type of question ("bridge", "comparison", "2hop", ...); may be empty.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    paragraphs: tuple[Paragraph, ...] = ()
    hops: tuple[Hop, ...] = ()
    kind: str = ""

    def __post_init__(self) -> None:
        """Checks that there is an answer and that hops point at paragraphs."""
        if not self.answers:
            raise InputError(f"`answers` must hold at least one answer; got none for {self.id!r}.")
        for hop in self.hops:
            if hop.paragraph is not None and not 0 <= hop.paragraph < len(self.paragraphs):
                raise InputError(
                    f"`paragraph` must be an index of the {len(self.paragraphs)} paragraphs; got {hop.paragraph} "
                    f"in a hop of {self.id!r}."
                )

    @property
    def gold(self) -> tuple[Paragraph, ...]:
        """The paragraphs with supporting sentences, in order, each once."""
        return tuple(dict.fromkeys(paragraph for paragraph in self.paragraphs if paragraph.support))

    def reference(self, **more: Any) -> str:
        """What a grader needs, as `Example.reference`: JSON with ``answers``, ``gold``, and ``more``.

        ``gold`` has title and text, ``[title, text]``, of each gold paragraph once; titles alone may repeat.
        """
        gold = list(dict.fromkeys((paragraph.heading, paragraph.text) for paragraph in self.gold))
        return json.dumps({"answers": self.answers, "gold": gold, **more}, ensure_ascii=False)


def render_paragraphs(paragraphs: Sequence[Paragraph]) -> str:
    """The paragraphs one under another."""
    return "".join(paragraph.render() for paragraph in paragraphs)
