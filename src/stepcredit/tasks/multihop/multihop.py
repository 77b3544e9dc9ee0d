"""Multi-hop question answering as tasks: with the paragraphs in the prompt, and with a search that brings them."""

import json
import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

from stepcredit.batch import ScoredSpan, Span
from stepcredit.errors import InputError, StepCreditWarning
from stepcredit.tasks.grading import Grade
from stepcredit.tasks.multihop.answers import exact_match, f1, keeps_form, stated_answer
from stepcredit.tasks.multihop.environment import INFORMATION, Retriever, SearchEnvironment, neutral, words
from stepcredit.tasks.multihop.loading import load_paragraphs, load_questions
from stepcredit.tasks.multihop.question import Paragraph, Question, render_paragraphs
from stepcredit.tasks.multihop.retrieval import BM25, distinct, open_index
from stepcredit.tasks.multihop.world import World
from stepcredit.tasks.task import Example, Split

WORLD = "world"
"""The source that is the built-in generator."""
TURN_KINDS = ("found", "missed", "again", "refused", "answer", "unanswered")

_TEST_SEED = 0
_TRAIN_SEEDS = 2**32  # a run's training worlds start at (1 + its seed) times this
_ANSWER = "Then state the final answer, in as few words as possible, inside <answer> and </answer>."


@dataclass(frozen=True)
class _Questions:
    """Where the questions come from and what an answer earns: what both settings share.

    Attributes:
        train: The training questions: "world" (a fresh `World` each), or a file, folder or hub name; see
            `load_questions`.
        test: The same for the test questions.
        train_split: The split of a folder or hub dataset to train on.
        test_split: The split to test on.
        hops: Relations to follow in the world's questions, 1 to 4; published questions have what they have.
        reward: The outcome: "em", exact match, or "f1", word overlap; see `exact_match` and `f1`.
        instruction: The system message; "default" for a plain one, or none where the test questions are the world's.
    """

    train: str = WORLD
    test: str = WORLD
    train_split: str = "train"
    test_split: str = "validation"
    hops: int = 2
    reward: Literal["em", "f1"] = "em"
    instruction: str = "default"

    name: ClassVar[str]
    _instruction: ClassVar[str]

    def __post_init__(self) -> None:
        """Checks the options; the instruction is settled here."""
        if not isinstance(self.hops, int) or not 1 <= self.hops <= 4:
            raise InputError(f"`hops` must be a whole number from 1 to 4; got {self.hops!r}.")
        if self.reward not in ("em", "f1"):
            raise InputError(f"`reward` must be em or f1; got {self.reward!r}.")
        if self.instruction == "default":
            object.__setattr__(self, "instruction", "" if self.test == WORLD else self._instruction)

    @property
    def endless(self) -> bool:
        """Whether the training questions never end: the world's do not."""
        return self.train == WORLD

    def questions(self, split: Split, count: int | None = None, *, seed: int = 0) -> list[Question]:
        """The questions behind `examples`.

        Raises:
            InputError: No count for the world, more questions than there are, or a source that cannot be read.
        """
        source, part = self._source(split)
        if source == WORLD:
            if count is None or count < 1:
                raise InputError(f"`count` must be at least 1 for the world, which has no end; got {count}.")
            first = _TEST_SEED if split == "test" else _TRAIN_SEEDS * (1 + seed)
            return [self.of_world(World(first + i)) for i in range(count)]
        questions = list(_published(source, part))
        if split == "train":
            random.Random(seed).shuffle(questions)  # noqa: S311 - reproducible order, no secret
        if count is not None and not 1 <= count <= len(questions):
            raise InputError(f"`count` must be from 1 to the {len(questions)} questions of {source!r}; got {count}.")
        return questions[:count]

    def of_world(self, world: World) -> Question:
        """The world's question in this task."""
        return world.question(hops=self.hops)

    def prompt(self, question: Question) -> str:
        """What the policy is given of a question."""
        return f"Question: {question.question}\n"

    def examples(self, split: Split, count: int | None = None, *, seed: int = 0) -> list[Example]:
        """The questions as a policy meets them: test in the source's order, train shuffled or drawn by the seed."""
        source, _ = self._source(split)
        made = []
        for question in self.questions(split, count, seed=seed):
            where = {"world": int(question.id.split("-")[1])} if source == WORLD else {"split": split}
            made.append(Example(question.id, self.prompt(question), question.reference(**where)))
        return made

    def _source(self, split: str) -> tuple[str, str]:
        return (self.train, self.train_split) if split == "train" else (self.test, self.test_split)

    def _answered(self, gold: dict[str, Any], text: str, finished: bool, in_form: bool) -> dict[str, Any]:
        """What a grade says of the answer and the form; ``text`` is what the policy wrote last."""
        answer = stated_answer(text)
        em = float(answer is not None and exact_match(answer, gold["answers"]))
        overlap = 0.0 if answer is None else f1(answer, gold["answers"])
        form = finished and in_form and keeps_form(text)
        return {
            "outcome": em if self.reward == "em" else overlap,
            "format_reward": float(form),
            "format_ok": form,
            "parsed": answer is not None,
            "reason": "no answer" if answer is None else "right" if em else "wrong",
            "measures": {"em": em, "f1": overlap},
        }


@dataclass(frozen=True)
class MultiHop(_Questions):
    r"""Multi-hop questions with their paragraphs, gold ones and distractors, in the prompt.

    The policy reasons and writes its answer inside ``<answer>`` and ``</answer>``.

    Args:
        paragraphs: Paragraphs in a prompt. None: all that a published question has; 5 for the world's. A published
            question keeps its gold ones, and the first others, in their order.
        facts: Sentences a paragraph of the world's, at most.

    The other options are those of both settings: ``train``, ``test``, ``train_split``, ``test_split``, ``hops``,
    ``reward``, ``instruction``.

    Raises:
        InputError: An option is out of its range.

    Example:
        >>> task = MultiHop(paragraphs=2)
        >>> example = task.examples("test", 1)[0]
        >>> print(example.prompt, end="")
        # Lunden
        The mayor of Lunden is Nadir. The region of Lunden is Brovenia.
        # Metalis
        The founder of Metalis is Dalia. The seat of Metalis is Lunden.
        Question: Who is the mayor of the seat of Metalis?
        >>> task.grade(example.reference, "<answer>the Nadir</answer>").outcome
        1.0
    """

    name: ClassVar[str] = "multihop"
    kinds: ClassVar[tuple[str, ...]] = ()
    measures: ClassVar[tuple[str, ...]] = ("em", "f1")
    _instruction: ClassVar[str] = f"Answer the question from the paragraphs. Reason step by step. {_ANSWER}"
    paragraphs: int | None = None
    facts: int = 2

    def __post_init__(self) -> None:
        """Checks the options."""
        super().__post_init__()
        if self.facts < 1:
            raise InputError(f"`facts` must be at least 1; got {self.facts}.")
        if self.paragraphs is not None and self.paragraphs < (self.hops if WORLD in (self.train, self.test) else 1):
            raise InputError(f"`paragraphs` must be at least 1, and the hops of the world; got {self.paragraphs}.")

    def of_world(self, world: World) -> Question:
        """The world's question in this task."""
        return world.question(hops=self.hops, paragraphs=self.paragraphs or 5, facts=self.facts)

    def prompt(self, question: Question) -> str:
        """The paragraphs, then the question."""
        shown, spare = question.paragraphs, self.paragraphs
        if spare is not None:
            left = max(spare - len(question.gold), 0)
            others = [p for p in shown if not p.support][:left]
            shown = tuple(p for p in shown if p.support or p in others)
        return render_paragraphs(shown) + super().prompt(question)

    def grade(self, reference: str, completion: str, *, finished: bool = True) -> Grade:
        """Grades the answer and the form; there are no steps.

        Args:
            reference: The example's.
            completion: The exact text that the model wrote.
            finished: False where generation was cut by a length limit; its form is then not kept.
        """
        return Grade(**self._answered(json.loads(reference), completion, finished, in_form=True))


@dataclass(frozen=True)
class MultiHopSearch(_Questions):
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
    _instruction: ClassVar[str] = f"Answer the question. Search for what you need, one thing at a time. {_ANSWER}"
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
def _published(source: str, split: str) -> tuple[Question, ...]:
    questions = load_questions(source, split=split)
    for what, count in questions.repairs.items():
        warnings.warn(f"{source}: {what} ({count} times)", StepCreditWarning, stacklevel=2)
    return tuple(questions)


@lru_cache(maxsize=4)
def _index(source: str, split: str, corpus: str) -> Retriever:
    if source == WORLD:
        raise InputError("`reference` must name its world; got none.")
    paragraphs = [paragraph for question in _published(source, split) for paragraph in question.paragraphs]
    paragraphs += load_paragraphs(corpus) if corpus else []
    return open_index(distinct(paragraphs))


@lru_cache(maxsize=1024)
def _index_of_world(seed: int) -> Retriever:
    return BM25.of(World(seed).paragraphs)
