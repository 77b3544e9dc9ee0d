"""Cuts texts and queries into the words that a search compares."""

import re
import unicodedata

# What questions are made of besides their words. "Will", "no" and "I" are not here: they name people, doctors, wars.
STOPWORDS = frozenset((
    "a", "an", "and", "are", "as", "at", "be", "been", "being", "but", "by", "did", "do", "does", "for", "from",
    "had", "has", "have", "he", "her", "him", "his", "if", "in", "into", "is", "it", "its", "not", "of", "on", "or",
    "she", "so", "such", "than", "that", "the", "their", "them", "then", "there", "these", "they", "this", "those",
    "to", "was", "we", "were", "what", "when", "where", "which", "who", "whom", "whose", "why", "how", "with", "you",
))  # fmt: skip

_WORD = re.compile(r"[^\W_]+")


def terms(text: str) -> list[str]:
    """The words that are indexed: runs of letters and digits, without case, accents and the plural's s.

    Every run counts, of one character too ("J. R. R. Tolkien", "World War I"). The plural goes by Harman's rules, for
    words of four characters or more: ``ies`` after neither a nor e becomes ``y``, ``es`` after neither a, e nor o
    becomes ``e``, ``s`` after neither u nor s goes.

    Degenerate cases:
        A script that puts no space between words is indexed by its runs, which match as wholes.

    Example:
        >>> terms("Brontë's 3 cities, J. R. R.")
        ['bronte', 's', '3', 'city', 'j', 'r', 'r']

    Reference:
        Harman, How effective is suffixing?, Journal of the American Society for Information Science 42(1), 1991.
    """
    return [_singular(word) if word[-1] == "s" else word for word in _words(text)]


def query_terms(query: str) -> list[str]:
    """The words of a query, each once, without `STOPWORDS` unless it has no others ("The Who").

    Example:
        >>> query_terms("Who was the mayor of Oslo, the Oslo of 1905?"), query_terms("The Who")
        (['mayor', 'oslo', '1905'], ['the', 'who'])
    """
    words = _words(query)
    telling = [word for word in words if word not in STOPWORDS]
    return list(dict.fromkeys(_singular(word) for word in telling or words))


def _words(text: str) -> list[str]:
    if text.isascii():
        return _WORD.findall(text.lower())
    apart = unicodedata.normalize("NFKD", text).casefold()
    return _WORD.findall("".join(character for character in apart if not unicodedata.combining(character)))


def _singular(word: str) -> str:
    if len(word) < 4 or word[-1] != "s":
        return word
    if word.endswith("ies") and word[-4] not in "ae":
        return word[:-3] + "y"
    if word.endswith("es") and word[-3] not in "aeo":
        return word[:-1]
    return word if word[-2] in "us" else word[:-1]
