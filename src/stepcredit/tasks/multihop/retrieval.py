"""Finds paragraphs by their words: BM25 over title and text, in memory or saved once and memory-mapped."""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepcredit.errors import InputError, MissingExtraError, StepCreditWarning
from stepcredit.files import new_folder
from stepcredit.tasks.multihop.question import Paragraph
from stepcredit.tasks.multihop.terms import query_terms, terms

K1, B = 1.2, 0.75

_CHECKSUMS = "checksums.json"
_PROBE = "The J. R. R. Tolkien society's 3 studies, Ærø's İstanbul straße, 1990s classes, virus: O'Neil_x"


def identity(paragraph: Paragraph) -> tuple[str, str]:
    """What makes two paragraphs the same one: title and text, whatever the spacing and whatever supports an answer."""
    return " ".join(paragraph.title.split()), paragraph.text


def distinct(paragraphs: Iterable[Paragraph]) -> list[Paragraph]:
    """Each paragraph once, by `identity`, in the order of their first occurrence."""
    return list({identity(paragraph): paragraph for paragraph in reversed(list(paragraphs))}.values())[::-1]


class BM25:
    r"""Paragraphs ranked by BM25, in Lucene's form.

    ``score(q, d) = sum over words w of q: log(1 + (N - n_w + 1/2) / (n_w + 1/2)) f / (f + K1 (1 - B + B l_d / l))``,
    where f is how often w comes in title and text of d, n_w the paragraphs with w, N all of them, l_d the words of d
    and l their mean. Made by `BM25.of` or `open_index`.

    Attributes:
        paragraphs: What is searched.
        folder: Where the index is saved; None for one in memory.
        reused: True where it was saved before and only read.

    Example:
        >>> index = BM25.of([Paragraph("Oslo", ("A city.",)), Paragraph("Bel", ("The mayor of Oslo.",))])
        >>> [paragraph.title for paragraph in index.search("the mayors of Oslo", k=2)], index.search("Rome", k=2)
        (['Bel', 'Oslo'], [])

    Reference:
        Robertson and Zaragoza, The Probabilistic Relevance Framework: BM25 and Beyond, 2009; Kamphuis et al., Which
        BM25 Do You Mean?, ECIR 2020, "Lucene (accurate)". Departs from them in counting a repeated word of the query
        once, which finds more on published multi-hop questions.
    """

    def __init__(
        self, paragraphs: Sequence[Paragraph], index: Any, *, folder: Path | None = None, reused: bool = False
    ) -> None:
        self.paragraphs = paragraphs
        self.folder = folder
        self.reused = reused
        self._index = index

    @classmethod
    def of(cls, paragraphs: Sequence[Paragraph]) -> "BM25":
        """Indexes paragraphs in memory.

        Raises:
            InputError: There are none.
            MissingExtraError: bm25s is not installed.

        Degenerate cases:
            Paragraphs without a single letter or digit are never found.
        """
        return cls(paragraphs, _built(paragraphs))

    def scores(self, query: str) -> NDArray[np.float32]:
        """How well each paragraph matches: float32 [paragraphs], 0 where no word of the query is in it."""
        known = self._index.vocab_dict
        ids = [known[word] for word in query_terms(query) if word in known]
        if not ids:
            return np.zeros(len(self.paragraphs), dtype=np.float32)
        found: NDArray[np.float32] = self._index.get_scores_from_ids(ids)
        return found

    def rank(self, query: str, k: int) -> list[int]:
        """Indices of the ``k`` best paragraphs, best first, the earlier one first among equals; none with score 0.

        Raises:
            InputError: ``k`` is below 1.
        """
        if k < 1:
            raise InputError(f"`k` must be at least 1 paragraph; got {k}.")
        scores = self.scores(query)
        least = np.partition(scores, -k)[-k] if k < len(scores) else 0.0
        candidates = np.flatnonzero((scores >= least) & (scores > 0))  # in order, and with all that tie at the end
        best: list[int] = candidates[np.argsort(-scores[candidates], kind="stable")[:k]].tolist()
        return best

    def search(self, query: str, k: int) -> list[Paragraph]:
        """The ``k`` best paragraphs, best first; fewer, or none, where fewer have a word of the query. See `rank`."""
        return [self.paragraphs[index] for index in self.rank(query, k)]

    def search_many(self, queries: Iterable[str], k: int) -> list[list[Paragraph]]:
        """`search` for each query."""
        return [self.search(query, k) for query in queries]


def cache_folder() -> Path:
    """Where indices are kept unless another folder is named: ``stepcredit/retrieval`` in the user's cache folder."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    return Path(named or Path.home() / ".cache") / "stepcredit" / "retrieval"


def open_index(paragraphs: Sequence[Paragraph], folder: str | Path | None = None) -> BM25:
    """The index of these paragraphs: read from a folder, memory-mapped, or built and saved there for the next time.

    Each set of paragraphs has a folder of its own in ``folder``, named by `digest`; so another set, another version
    of bm25s or another way to cut words never meets an index that is not its own. An index appears whole or not at
    all; processes that build one at the same time each get it. One that is damaged is built again, with a warning.

    Args:
        paragraphs: What to search.
        folder: Made where it does not exist; may hold many indices. None: `cache_folder`.

    Raises:
        InputError: There are no paragraphs.
        MissingExtraError: bm25s is not installed.
        OSError: The folder cannot be made or written.
    """
    bm25s = _library()
    target = (cache_folder() if folder is None else Path(folder)) / digest(paragraphs)
    saved, damage = _saved(target, bm25s)
    if saved is not None:
        return BM25(paragraphs, saved, folder=target, reused=True)
    if damage:
        warnings.warn(f"The index {target} is damaged and is built again: {damage}.", StepCreditWarning, stacklevel=2)
        _remove(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    index = _built(paragraphs)
    try:
        with new_folder(target) as made:
            index.save(made)
            sums = {path.name: _sum(path) for path in sorted(made.iterdir())}
            (made / _CHECKSUMS).write_text(json.dumps(sums, indent=1) + "\n")
    except (InputError, OSError):
        if _saved(target, bm25s)[0] is None:  # else another process was faster, and its index is as good
            raise
    return BM25(paragraphs, index, folder=target)


def digest(paragraphs: Sequence[Paragraph]) -> str:
    """Names an index: 32 hex digits of the paragraphs in order, the settings, the way to cut words and bm25s' version.

    Raises:
        MissingExtraError: bm25s is not installed.
    """
    settings = (_library().__version__, K1, B, terms(_PROBE), len(paragraphs))
    state = hashlib.sha256(repr(settings).encode())
    for paragraph in paragraphs:
        state.update((json.dumps(identity(paragraph)) + "\n").encode())
    return state.hexdigest()[:32]


def _built(paragraphs: Sequence[Paragraph]) -> Any:
    bm25s = _library()
    if not paragraphs:
        raise InputError("`paragraphs` must hold at least one paragraph; got none.")
    vocabulary: dict[str, int] = {}
    ids = [
        [vocabulary.setdefault(word, len(vocabulary)) for word in terms(f"{paragraph.title} {paragraph.text}")]
        for paragraph in paragraphs
    ]
    index = bm25s.BM25(k1=K1, b=B, method="lucene", backend="numpy")
    with np.errstate(invalid="ignore"):  # 0 / 0 in a paragraph without words; nothing is kept of it
        index.index((ids, vocabulary), create_empty_token=False, show_progress=False)
    return index


def _saved(target: Path, bm25s: Any) -> tuple[Any, str]:
    """The saved index, or None and what is wrong with it; nothing is wrong where there is none."""
    if not target.exists():
        return None, ""
    try:
        sums: dict[str, str] = json.loads((target / _CHECKSUMS).read_text())
        wrong = next((name for name, right in sums.items() if _sum(target / name) != right), None)
        if wrong is not None:
            return None, f"{wrong} has changed"
        return bm25s.BM25.load(target, mmap=True), ""
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:  # cut, emptied, or not ours
        return None, f"{type(error).__name__}: {error}"


def _remove(target: Path) -> None:
    """Takes the name away at once and the content after it, so that nobody meets half of it."""
    aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        target.rename(aside / "damaged")
    except FileNotFoundError:
        return  # another process was faster
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _library() -> Any:
    try:
        import bm25s
    except ImportError:
        raise MissingExtraError("bm25s", "qa", "search paragraphs") from None
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # its import asks for DEBUG: a line about every index built
    return bm25s
