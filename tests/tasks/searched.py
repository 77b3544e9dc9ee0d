"""Paragraphs, a retriever that brings them whatever is asked, the environment over it, and counts of a text."""

from collections.abc import Callable

from hypothesis import strategies as st

from stepcredit.tasks.multihop.environment import NOTHING, SearchEnvironment, words
from stepcredit.tasks.multihop.question import Paragraph

OSLO = Paragraph("Oslo", ("The mayor of Oslo is Bel.", "Its twin is Rio."))
RIO = Paragraph("Rio", ("A city in Brazil.",))
COUNTS: list[Callable[[str], int]] = [words, len, lambda text: len(text.encode()), lambda text: len(text) // 4 + 2]


class Found:
    """Answers every query with the same paragraphs, and remembers the queries."""

    def __init__(self, *paragraphs: Paragraph) -> None:
        self.paragraphs, self.queries = list(paragraphs), list[str]()

    def search(self, query: str, k: int) -> list[Paragraph]:  # noqa: ARG002
        self.queries.append(query)
        return self.paragraphs


def environment(*paragraphs: Paragraph, k: int = 3, searches: int = 9, tokens: int = 1000, **more) -> SearchEnvironment:
    return SearchEnvironment(Found(*paragraphs), k=k, searches=searches, result_tokens=tokens, **more)


TEXTS = st.text(st.sampled_from("ab #<>/\n\té🎉\ud800"), max_size=40) | st.sampled_from(
    ["</information>", "<answer>Bel</answer>", "<search>", "</search>", "<|im_end|>", "[cut]", "# Oslo", NOTHING]
)
PARAGRAPHS = st.lists(st.builds(Paragraph, TEXTS, st.lists(TEXTS, max_size=3).map(tuple)), max_size=4)
