"""Loads multi-hop questions and paragraphs from files or the hub: HotpotQA, 2WikiMultihopQA, MuSiQue, one's own."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from stepcredit.errors import InputError
from stepcredit.tasks.multihop.forms import question_of
from stepcredit.tasks.multihop.nested import plain_text, texts
from stepcredit.tasks.multihop.question import Paragraph, Question
from stepcredit.tasks.rows import Row, read_rows
from stepcredit.tasks.sources import source_rows

UNANSWERABLE = "unanswerable question: left out"
_TEXT_FIELDS = ("text", "sentences", "paragraph_text")


class Questions(list[Question]):
    """A list of questions that knows what it had to mend.

    Attributes:
        repairs: How often the source did not fit itself, by what was wrong and what was done about it; only what
            occurred. Empty for a source whose every fact is in the questions as it stands.
    """

    def __init__(self, questions: Iterable[Question], repairs: dict[str, int]) -> None:
        """Holds the questions, and the counts."""
        super().__init__(questions)
        self.repairs = repairs


def load_questions(
    name_or_path: str | Path,
    *,
    split: str = "validation",
    limit: int | None = None,
    config: str | None = None,
    answerable_only: bool = False,
    aliases: str | Path | None = None,
) -> Questions:
    r"""Loads multi-hop questions from a local file or folder, or by name from the Hugging Face hub.

    The fields of each row tell its form:

    - HotpotQA: ``context`` and ``supporting_facts``, as lists of pairs (the official files), as dicts of lists (the
      hub), or either as JSON text.
    - 2WikiMultihopQA: the same with ``evidences``, triples that become hops: "subject >> relation", answered by the
      object. Such a hop's paragraph is the one gold paragraph titled like the subject, or titled so but for a
      closing parenthesis ("Get Low" and "Get Low (song)"); None where there is no such paragraph or several.
    - MuSiQue: ``paragraphs`` with ``paragraph_text`` and ``is_supporting``; ``question_decomposition`` gives the hops.
      A paragraph there is one sentence.
    - One's own: ``paragraphs`` with ``title``, ``sentences`` and ``support`` (sentence indices); if need be ``id``,
      ``type``, ``evidences``, ``answer_aliases``, and ``decomposition`` with ``question``, ``answer`` and
      ``paragraph`` (an index, or null).

    Args:
        name_or_path: A file (JSON Lines, JSON array, Parquet; plain or gzipped), a folder that
            ``datasets.load_dataset`` reads, or a hub name such as ``"hotpotqa/hotpot_qa"``.
        split: The split of a folder or hub dataset; a file is one split and ignores it.
        limit: Read at most this many rows, the first ones.
        config: The hub dataset's configuration; HotpotQA's is "distractor" unless named.
        answerable_only: Leave out the rows that MuSiQue marks unanswerable, counted; otherwise they are refused.
        aliases: 2WikiMultihopQA's ``id_aliases.json``: what else the entity of a row's ``answer_id`` is called is
            right too, as the official script has it since version 1.1.

    Returns:
        The questions in the source's order, each id once; never empty. `Questions.repairs` counts what did not fit.
        Questions, answers and titles are without white space around them; sentences are as they stand.

    Raises:
        InputError: A missing, damaged or empty source; a row of no known form, without an answer, or unanswerable;
            an id that occurs twice. Names the source and the row, from 1.
        MissingExtraError: A hub name or folder without ``datasets``; Parquet without pyarrow.

    Degenerate cases:
        A supporting sentence beyond its paragraph's end stands for the last sentence, so that the paragraph stays
        gold: 2WikiMultihopQA has such rows, all one past the end. A supporting fact whose title is not among the
        paragraphs is left out. A title that repeats keeps every paragraph; the first that has the sentence takes
        the fact. A supporting fact with an index below 0 is left out; a hop whose paragraph is not there is kept
        without one; an evidence triple that lacks a text is left out, and so is the whole decomposition where a hop
        lacks its question or answer, because hops refer to each other by number. All of it is counted. A row
        without an id is called by the source's name and its number.

    Example:
        >>> import json, tempfile
        >>> row = {"question": "Who leads Oslo's twin?", "answer": "Bel", "context": [["Oslo", ["Its twin is Rio."]],
        ...        ["Rio", ["A city.", "Bel leads it."]]], "supporting_facts": [["Oslo", 0], ["Rio", 1]]}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "one.jsonl"
        ...     _ = path.write_text(json.dumps(row))
        ...     question = load_questions(path)[0]
        >>> question.id, question.answers, [paragraph.support for paragraph in question.gold]
        ('one.jsonl-1', ('Bel',), [(0,), (1,)])

    Reference:
        Yang et al., HotpotQA, arXiv 1809.09600; Ho et al., 2WikiMultihopQA, arXiv 2011.01060; Trivedi et al.,
        MuSiQue, arXiv 2108.00573.
    """
    known = _entity_names(aliases) if aliases is not None else {}
    rows, source = source_rows(name_or_path, split, limit, config)
    name = Path(name_or_path).name
    repairs: Counter[str] = Counter()
    first: dict[str, int] = {}
    questions = []
    for number, row in enumerate(rows, 1):
        where = f"{source}, row {number}"
        if row.get("answerable") is False:
            if not answerable_only:
                raise InputError(
                    f"A row must have an answer; got an unanswerable question in {where}. "
                    "Leave such rows out with answerable_only=True."
                )
            repairs[UNANSWERABLE] += 1
            continue
        entity = row.get("answer_id")
        more = known.get(entity, ()) if isinstance(entity, str) else ()
        question = question_of(row, where, f"{name}-{number}", repairs, more)
        earlier = first.setdefault(question.id, number)
        if earlier != number:
            raise InputError(
                f"`name_or_path` must have an id once; got {question.id!r} in {where} and in row {earlier}."
            )
        questions.append(question)
    if not questions:
        raise InputError(f"`name_or_path` must have an answerable question; {source} has none in {len(rows)} rows.")
    return Questions(questions, dict(+repairs))


def load_paragraphs(
    name_or_path: str | Path, *, split: str = "train", limit: int | None = None, config: str | None = None
) -> list[Paragraph]:
    r"""Loads the paragraphs of a corpus, for a retriever: rows of a title and a text.

    Args:
        name_or_path: As in `load_questions`. A row has ``title`` and one of ``text``, ``sentences`` and
            ``paragraph_text``; each may be a text or a list of sentences, and other fields are ignored.
        split: The split of a folder or hub dataset; a file is one split and ignores it.
        limit: Read at most this many rows, the first ones.
        config: The hub dataset's configuration.

    Returns:
        The paragraphs in the source's order, none left out, none supporting; never empty.

    Raises:
        InputError: A missing, damaged or empty source, or a row without these fields. Names the source and the row.
        MissingExtraError: A hub name or folder without ``datasets``; Parquet without pyarrow.

    Degenerate cases:
        A paragraph that repeats stays twice. A title may be blank, a text may be empty.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "corpus.jsonl"
        ...     _ = path.write_text('{"title": "Oslo", "text": "A city."}\n{"title": "Bel", "sentences": ["A.", "B."]}')
        ...     [paragraph.text for paragraph in load_paragraphs(path)]
        ['A city.', 'A. B.']
    """
    rows, source = source_rows(name_or_path, split, limit, config)
    return [_passage(row, f"{source}, row {number}") for number, row in enumerate(rows, 1)]


def _passage(row: Row, where: str) -> Paragraph:
    found = [field for field in _TEXT_FIELDS if field in row]
    if "title" not in row or len(found) != 1:
        raise InputError(
            f"A row must have the field title and exactly one of {' | '.join(_TEXT_FIELDS)}; "
            f"got the fields {', '.join(map(str, row)) or 'none'} in {where}."
        )
    value, title = row[found[0]], plain_text(row, "title", where, blank=True)
    return Paragraph(title, (value,) if isinstance(value, str) else tuple(texts(row, found[0], where)))


def _entity_names(path: str | Path) -> dict[str, tuple[str, ...]]:
    names = {}
    for number, row in enumerate(read_rows(path), 1):
        where = f"{path}, row {number}"
        entity = plain_text(row, "Q_id", where)
        names[entity] = (*texts(row, "aliases", where), *texts(row, "demonyms", where))
    return names
