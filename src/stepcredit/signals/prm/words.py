"""A tokenizer that makes special tokens where it is told to, and nowhere else."""

import re
from collections.abc import Iterable
from itertools import chain, pairwise
from typing import Any

Pieces = list["str | int"]  # runs of text, and the ids of the special tokens between them


class Mark(int):
    """The id of a token at which a score is read."""


class Words:
    """A tokenizer under which text of a problem or a step never acts as a special token: it is read as characters.

    Attributes:
        tokenizer: A tokenizer of Transformers.
        special: The id of each special token by its name.
    """

    def __init__(self, tokenizer: Any, also: int | None = None) -> None:
        """Takes ``also``, the id of an added token, for special too."""
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.items()
        self.special: dict[str, int] = {t.content: i for i, t in added if t.special or i == also}
        names = "|".join(re.escape(name) for name in sorted(self.special, key=len, reverse=True)) or "(?!)"
        self._spelled, self._parts = re.compile(f"(?={names})"), re.compile(f"({names})")

    @property
    def source(self) -> str:
        """Where the tokenizer is from."""
        return str(self.tokenizer.name_or_path)

    def pieces(self, template: str) -> Pieces:
        """A text of a template, in which special tokens are meant: its runs of text and their ids."""
        return [self.special.get(part, part) for part in self._parts.split(template) if part]

    def ids(self, text: str) -> list[int]:
        """The ids of a text, which is cut inside whatever spells a special token so that none is made of it."""
        _, runs = self._runs(text)
        return list(chain.from_iterable(self.tokenizer(runs, add_special_tokens=False, verbose=False)["input_ids"]))

    def spans(self, text: str) -> list[tuple[int, int]]:
        """The characters of each token that `ids` gives; needs a fast tokenizer."""
        cuts, runs = self._runs(text)
        found = self.tokenizer(runs, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets = found["offset_mapping"]
        return [(cut + s, cut + e) for cut, row in zip(cuts, offsets, strict=True) for s, e in row]

    def join(self, pieces: Iterable[str | int]) -> tuple[list[int], list[int]]:
        """The ids of pieces, and the positions of the marks among them.

        Encoding each run between special tokens alone gives the ids of the whole text, since a tokenizer parts a text
        at its special tokens first.
        """
        ids: list[int] = []
        marks: list[int] = []
        text = ""
        for piece in pieces:
            if isinstance(piece, str):
                text += piece
                continue
            ids += self.ids(text)
            text = ""
            if isinstance(piece, Mark):
                marks.append(len(ids))
            ids.append(int(piece))
        return ids + self.ids(text), marks

    def _runs(self, text: str) -> tuple[list[int], list[str]]:
        """A text in parts that spell no special token, and where each begins."""
        text = encodable(text)
        cuts = [0, *(match.start() + 1 for match in self._spelled.finditer(text)), len(text)]
        return cuts[:-1], [text[start:end] for start, end in pairwise(cuts)]

    def token(self, text: str) -> int | None:
        """The id of a text that is one known token, else None."""
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return int(ids[0]) if len(ids) == 1 and ids[0] != self.tokenizer.unk_token_id else None


def encodable(text: str) -> str:
    """The text without lone surrogates, which tokenizers refuse; each becomes a question mark."""
    return text.encode(errors="replace").decode()
