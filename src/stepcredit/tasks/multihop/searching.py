"""Multi-hop question answering with a search that brings the paragraphs, in several turns."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from stepcredit.batch import ScoredSpan, Span
from stepcredit.errors import InputError
from stepcredit.tasks.grading import Grade
from stepcredit.tasks.multihop.answers import stated_answer
from stepcredit.tasks.multihop.environment import INFORMATION, Retriever, SearchEnvironment, neutral, words
from stepcredit.tasks.multihop.loading import load_paragraphs
from stepcredit.tasks.multihop.question import Paragraph
from stepcredit.tasks.multihop.retrieval import BM25, distinct, open_index
from stepcredit.tasks.multihop.source import STATE_ANSWER, WORLD, MultiHopTask, published
from stepcredit.tasks.multihop.world import World

TURN_KINDS = ("found", "missed", "again", "refused", "answer", "unanswered")


@dataclass(frozen=True)
class MultiHopSearch(MultiHopTask):
    r"""Multi-hop questions alone in the prompt; the policy searches for paragraphs, several times, then answers.

    What is searched is the question's own world, or all paragraphs of the split's questions and ``corpus`` together.

    Args:
        k: Paragraphs that a search brings.
        searches: The most searches of a rollout.
        result_tokens: The most tokens of a result, which is cut visibly beyond (words where no tokenizer counts).
        corpus: A file of further paragraphs to search in; empty for none.

    The other options are those of both settings: ``train``, ``test``, ``train_split``, ``test_split``, ``hops``,
    ``reward``, ``instruction``.

    Raises:
        InputError: An option is out of its range.

    Example:
        >>> task = MultiHopSearch(hops=1)
        >>> example = task.examples("test", 1)[0]
        >>> example.prompt
        'Question: What is the seat of Metalis?\n'
        >>> found = "\n<information>\n# Metalis\nThe seat of Metalis is Lunden.\n</information>\n"
        >>> query, answer = "<search>seat of Metalis</search>", "<answer>Lunden</answer>"
        >>> turns = [Span(0, len(query)), Span(len(query + found), len(query + found + answer))]
        >>> grade = task.grade(example.reference, query + found + answer, turns=turns)
        >>> grade.kinds, [step.score for step in grade.steps], grade.measures["recall"]
        (('found', 'answer'), [1.0, 1.0], 1.0)
    """

    name: ClassVar[str] = "multihop-search"
    kinds: ClassVar[tuple[str, ...]] = TURN_KINDS
    _instruction: ClassVar[str] = (
        "Answer the question. Search for what you need, one thing at a time: with the search tool where there is one, "
        f"else by writing <search>query</search>. {STATE_ANSWER}"
    )
    k: int = 3
    searches: int = 4
    result_tokens: int = 512
    corpus: str = ""

    def __post_init__(self) -> None:
        """Checks the options, those of the environment by making one."""
        super().__post_init__()
        if self.searches < 1:
            raise InputError(f"`searches` must be at least 1; got {self.searches}.")
        SearchEnvironment(_Nothing(), k=self.k, searches=self.searches, result_tokens=self.result_tokens)

    @property
    def measures(self) -> tuple[str, ...]:
        """``em``, ``f1``, searches made, and the share of gold paragraphs found: in the end and along the way."""
        return ("em", "f1", "searches", "recall", *(f"recall_after_{i}" for i in range(1, self.searches + 1)))

    def environment(self, reference: str, count: Callable[[str], int] | None = None) -> SearchEnvironment:
        """The environment of one rollout.

        Args:
            reference: The example's.
            count: Measures a text in the policy's tokens; None for words.

        Raises:
            InputError: The source or the corpus cannot be read.
            MissingExtraError: Without bm25s.
        """
        return SearchEnvironment(
            self._retriever(json.loads(reference)), k=self.k, searches=self.searches,
            result_tokens=self.result_tokens, count=count or words,
        )  # fmt: skip

    def _retriever(self, gold: dict[str, Any]) -> Retriever:
        if "world" in gold:
            return _index_of_world(gold["world"])
        return _index(*self._source(gold["split"]), self.corpus)

    def grade(
        self, reference: str, completion: str, *, finished: bool = True, turns: Sequence[Span] | None = None
    ) -> Grade:
        r"""Grades the answer, the form, and each turn: was a gold paragraph found that was not found before?

        A step is a turn of the policy. Its score and kind:

        - ``found``, 1: its search brought a gold paragraph for the first time;
        - ``missed``, 0: it brought other paragraphs;
        - ``again``, 0: it brought only what was there before;
        - ``refused``, 0: it brought no paragraph;
        - ``answer``: the last turn; right or wrong, by exact match;
        - ``unanswered``, 0: the last turn without an answer.

        Paragraphs are told apart by title, and only outside the turns: what the policy writes finds nothing.

        Args:
            reference: The example's.
            completion: The whole text, the environment's included.
            finished: False where generation was cut by a length limit; the form is then not kept.
            turns: What the policy wrote; None for all of it.

        Returns:
            The grade. The form is kept where the last turn keeps it and no earlier one states an answer, and where
            the policy writes no ``<information>`` itself.

        Degenerate cases:
            A question without gold paragraphs: every recall is 0.
        """
        gold = json.loads(reference)
        turns = [Span(0, len(completion))] if turns is None else list(turns)
        wanted = {neutral(" ".join(title.split())) for title in gold["gold"]}
        seen: set[str] = set()
        steps, kinds, recalls = [], [], []
        for turn, after in zip(turns, [*(turn.start for turn in turns[1:]), len(completion)], strict=True):
            if turn.end == after:
                continue
            titles = _titles(completion[turn.end : after])
            new = titles - seen
            kind = "refused" if not titles else "again" if not new else "found" if new & wanted else "missed"
            seen |= titles
            steps.append(ScoredSpan(*turn, float(kind == "found")))
            kinds.append(kind)
            recalls.append(len(seen & wanted) / max(len(wanted), 1))
        last = completion[turns[-1].start : turns[-1].end] if turns and turns[-1].end == len(completion) else ""
        earlier = [completion[turn.start : turn.end] for turn in turns[: len(turns) - bool(last)]]
        in_form = not any(stated_answer(text) is not None for text in earlier)
        in_form = in_form and not any(INFORMATION in text for text in (*earlier, last))
        answered = self._answered(gold, last, finished, in_form)
        if last:
            steps.append(ScoredSpan(*turns[-1], answered["measures"]["em"]))
            kinds.append("answer" if answered["parsed"] else "unanswered")
        along = [recalls[min(i, len(recalls)) - 1] if recalls else 0.0 for i in range(1, self.searches + 1)]
        answered["measures"] |= {"searches": float(len(recalls)), "recall": recalls[-1] if recalls else 0.0}
        answered["measures"] |= {f"recall_after_{i}": share for i, share in enumerate(along, 1)}
        return Grade(**answered, steps=tuple(steps), kinds=tuple(kinds))


class _Nothing:
    """A retriever that finds nothing."""

    def search(self, query: str, k: int) -> list[Paragraph]:  # noqa: ARG002
        return []


def _titles(result: str) -> set[str]:
    """The titles in what an environment wrote: a line of text follows each, and is no title whatever it looks like."""
    titles, lines = set(), iter(result.split("\n"))
    for line in lines:
        if line.startswith("# "):
            titles.add(line[2:].strip())
            next(lines, None)
    return titles


@lru_cache(maxsize=4)
def _index(source: str, split: str, corpus: str) -> Retriever:
    if source == WORLD:
        raise InputError("`reference` must name its world; got none.")
    paragraphs = [paragraph for question in published(source, split) for paragraph in question.paragraphs]
    paragraphs += load_paragraphs(corpus) if corpus else []
    return open_index(distinct(paragraphs))


@lru_cache(maxsize=1024)
def _index_of_world(seed: int) -> Retriever:
    return BM25.of(World(seed).paragraphs)
