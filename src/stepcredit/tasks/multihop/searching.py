"""Multi-hop question answering with a search that brings the paragraphs, in several turns."""

import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from stepcredit.batch import ScoredSpan, Span
from stepcredit.errors import InputError
from stepcredit.tasks.grading import Grade
from stepcredit.tasks.multihop.answers import ANSWER, ANSWER_END
from stepcredit.tasks.multihop.environment import (
    CUT,
    SEARCH,
    SEARCH_END,
    Retriever,
    SearchEnvironment,
    neutral,
    words,
)
from stepcredit.tasks.multihop.loading import load_paragraphs
from stepcredit.tasks.multihop.question import Paragraph, Question
from stepcredit.tasks.multihop.results import Shown, shown_results
from stepcredit.tasks.multihop.retrieval import BM25, distinct, open_index
from stepcredit.tasks.multihop.source import STATE_ANSWER, WORLD, MultiHopTask, published
from stepcredit.tasks.multihop.world import World

TURN_KINDS = ("found", "missed", "again", "refused", "answer", "unanswered")

_ENVIRONMENTS = re.compile(r"</?\s*(?:information|tool_response)\b", re.IGNORECASE)  # tags that a policy may not fake


@dataclass(frozen=True)
class MultiHopSearch(MultiHopTask):
    r"""Multi-hop questions alone in the prompt; the policy searches for paragraphs, several times, then answers.

    What is searched is the question's own world, or all paragraphs of the split's questions and ``corpus`` together.

    Args:
        k: Paragraphs that a search brings.
        searches: The most searches of a rollout.
        result_tokens: The most tokens of a result, which is cut visibly beyond (words where no tokenizer counts).
        corpus: A file of further paragraphs to search in; empty for none.

    The other options are those of both settings: ``train``, ``test``, ``train_split``, ``test_split``, ``config``,
    ``aliases``, ``answerable_only``, ``hops``, ``reward``, ``instruction``.

    Raises:
        InputError: An option is out of its range.

    Example:
        >>> task = MultiHopSearch(hops=1)
        >>> example = task.examples("test", 1)[0]
        >>> example.prompt
        'Question: What is the seat of Metalis?\n'
        >>> found = task.environment(example.reference).reply("<search>Metalis</search>")
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
        for option in ("k", "searches", "result_tokens"):
            if type(getattr(self, option)) is not int:
                raise InputError(f"`{option}` must be a whole number; got {getattr(self, option)!r}.")
        if self.searches < 1:
            raise InputError(f"`searches` must be at least 1; got {self.searches}.")
        SearchEnvironment(_Nothing(), k=self.k, searches=self.searches, result_tokens=self.result_tokens)

    @property
    def measures(self) -> tuple[str, ...]:
        """``em``, ``f1``, results of searches, and the share of gold paragraphs found, in the end and along the way."""
        return ("em", "f1", "searches", "recall", *(f"recall_after_{i}" for i in range(1, self.searches + 1)))

    def of_world(self, world: World) -> Question:
        """The world's question, with the whole paragraphs that a search of the world brings."""
        return world.question(hops=self.hops, facts=None)

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
        source, part = self._source(gold["split"])
        return _index(self.corpus, source, part, self.config, self.aliases, self.answerable_only)

    def grade(
        self, reference: str, completion: str, *, finished: bool = True, turns: Sequence[Span] | None = None
    ) -> Grade:
        r"""Grades the answer, the form, and each turn: was a gold paragraph found that was not found before?

        A step is a turn of the policy. Its score and kind:

        - ``found``, 1: its searches brought a gold paragraph for the first time;
        - ``missed``, 0: they brought other paragraphs, at least one for the first time;
        - ``again``, 0: they brought only what was there before;
        - ``refused``, 0: they brought no paragraph;
        - ``answer``: the last turn; right or wrong, by exact match;
        - ``unanswered``, 0: the last turn without an answer.

        A paragraph is told by title and text, as in `retrieval.identity`: titles repeat. One whose text is cut,
        visibly by ``[cut]``, is the first gold one that has its title and begins with what is shown of it, one word
        at least. Paragraphs are looked for only outside the turns, as `shown_results` has them: what the policy
        writes finds nothing.

        Args:
            reference: The example's.
            completion: The whole text, the environment's included.
            finished: False where generation was cut by a length limit; the form is then not kept.
            turns: What the policy wrote; None for all of it.

        Returns:
            The grade. The form is kept where the last turn keeps it and holds no tag of a search, no earlier turn
            holds a tag of an answer, and no turn one of ``<information>`` or ``<tool_response>``, in any case.
            ``searches`` are the results that there are, ``recall_after_i`` is the recall after the first i of them, or
            after all where they are fewer; several calls in one turn have a result each.

        Degenerate cases:
            A question without gold paragraphs: every recall is 0. Of two gold paragraphs with the same title, of which
            a cut one may be either, the first is taken. A paragraph that is not gold is, where it is cut, another one
            than the whole.
        """
        gold = json.loads(reference)
        turns = [Span(0, len(completion))] if turns is None else list(turns)
        finds = _Finds(gold["gold"], self.searches)
        steps, kinds = [], []
        for turn, after in zip(turns, [*(turn.start for turn in turns[1:]), len(completion)], strict=True):
            if turn.end < after:
                kinds.append(finds.kind(shown_results(completion[turn.end : after])))
                steps.append(ScoredSpan(*turn, float(kinds[-1] == "found")))
        written = [completion[turn.start : turn.end] for turn in turns]
        last = written.pop() if turns and turns[-1].end == len(completion) else ""
        answered = self._answered(gold, last, finished, _in_form(written, last))
        if last:
            steps.append(ScoredSpan(*turns[-1], answered["measures"]["em"]))
            kinds.append("answer" if answered["parsed"] else "unanswered")
        answered["measures"] |= finds.measures
        return Grade(**answered, steps=tuple(steps), kinds=tuple(kinds))


class _Nothing:
    """A retriever that finds nothing."""

    def search(self, query: str, k: int) -> list[Paragraph]:  # noqa: ARG002
        return []


class _Finds:
    """What the searches of one rollout have found so far, of these gold paragraphs, in so many searches at most."""

    def __init__(self, gold: Sequence[Sequence[str]], searches: int) -> None:
        self._gold = list(dict.fromkeys((_told(title), _told(text)) for title, text in gold))
        self._searches = searches
        self._seen: set[Shown] = set()
        self._recalls: list[float] = []  # after each result

    def kind(self, results: Sequence[Sequence[Shown]]) -> str:
        """Takes the results of a turn; says what kind of turn it was."""
        before = set(self._seen)
        for result in results:
            self._seen.update(map(self._identity, result))
            self._recalls.append(len(self._seen.intersection(self._gold)) / max(len(self._gold), 1))
        new = self._seen - before
        if not any(results):
            return "refused"
        return "again" if not new else "found" if new.intersection(self._gold) else "missed"

    @property
    def measures(self) -> dict[str, float]:
        """Searches and recalls, by the names that the task has for them."""
        recalls = self._recalls or [0.0]
        along = {f"recall_after_{i}": recalls[min(i, len(recalls)) - 1] for i in range(1, self._searches + 1)}
        return {"searches": float(min(len(self._recalls), self._searches)), "recall": recalls[-1], **along}

    def _identity(self, shown: Shown) -> Shown:
        """The gold paragraph that is shown, whole or cut; else what is shown."""
        title, text = map(_told, shown)
        start = text.removesuffix(CUT).rstrip()
        if (title, text) in self._gold or start == text or not start:
            return title, text
        begun = (gold for gold in self._gold if gold[0] == title and f"{gold[1]} ".startswith(f"{start} "))
        return next(begun, (title, text))


def _told(text: str) -> str:
    """A title or text such that what a result shows and what a question has are equal.

    Results are neutral, and the tokenizers of many policies write characters in NFC.
    """
    return unicodedata.normalize("NFC", neutral(" ".join(text.split())))


def _in_form(earlier: Sequence[str], last: str) -> bool:
    """Whether no turn holds a tag that is not its own; that the last one ends in an answer is for others to say."""
    return not (
        any(tag in text for text in earlier for tag in (ANSWER, ANSWER_END))
        or any(tag in last for tag in (SEARCH, SEARCH_END))
        or any(_ENVIRONMENTS.search(text) for text in (*earlier, last))
    )


@lru_cache(maxsize=4)
def _index(corpus: str, *source: Any) -> Retriever:
    if source[0] == WORLD:
        raise InputError("`reference` must name its world; got none.")
    paragraphs = [paragraph for question in published(*source) for paragraph in question.paragraphs]
    paragraphs += load_paragraphs(corpus) if corpus else []
    return open_index(distinct(paragraphs))


@lru_cache(maxsize=1024)
def _index_of_world(seed: int) -> Retriever:
    return BM25.of(World(seed).paragraphs)
