"""Grades short answers as the evaluation scripts of HotpotQA, 2WikiMultihopQA and MuSiQue do; finds stated answers."""

import re
import string
from collections import Counter
from collections.abc import Sequence

from stepcredit.errors import InputError

ANSWER, ANSWER_END = "<answer>", "</answer>"

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_VERDICTS = frozenset({"yes", "no", "noanswer"})


def normalized_answer(text: str) -> str:
    """An answer as the published metrics compare it: lower case, no ASCII punctuation, no articles, single spaces.

    Punctuation goes before articles do and leaves no space: "A-Team" becomes "ateam", "the-end" becomes "theend".

    Degenerate cases:
        Punctuation outside ASCII stays, such as curly quotes and dashes, and an article beside it goes. A text of
        nothing but articles and punctuation becomes empty.

    Example:
        >>> normalized_answer("The  Beatles, (a band)!"), normalized_answer("U.S."), normalized_answer("The The")
        ('beatles band', 'us', '')

    Reference:
        Rajpurkar et al., SQuAD, arXiv 1606.05250; the same steps in hotpot_evaluate_v1.py (HotpotQA),
        2wikimultihop_evaluate_v1.1.py (2WikiMultihopQA) and metrics/answer.py (MuSiQue).
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> bool:
    """Whether a prediction equals one of the right answers, both as `normalized_answer` has them.

    Args:
        prediction: What was answered.
        answers: The gold answer and its aliases, at least one.

    Raises:
        InputError: ``answers`` is empty, or one text instead of several.

    Degenerate cases:
        A gold answer that is empty after normalization ("The The") is matched by any prediction that is so too.

    Example:
        >>> exact_match("the beatles", ("Beatles", "The Fab Four")), exact_match("Beatles, The Fab", ("Beatles",))
        (True, False)
    """
    predicted = normalized_answer(prediction)
    return any(predicted == normalized_answer(answer) for answer in _checked(answers))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """Overlap of words between a prediction and the right answer that it is closest to, in [0, 1].

    With the words of both after `normalized_answer`, each counted as often as it occurs: precision is the shared
    share of the prediction's words, recall the shared share of the answer's, F1 their harmonic mean; then the
    maximum over the answers. It is 1 wherever `exact_match` holds.

    Args:
        prediction: What was answered.
        answers: The gold answer and its aliases, at least one.

    Raises:
        InputError: ``answers`` is empty, or one text instead of several.

    Degenerate cases:
        Where the official scripts differ, the stricter rule or the one that agrees with `exact_match` is taken. A
        prediction or answer that is "yes", "no" or "noanswer" earns all or nothing, as HotpotQA and 2WikiMultihopQA
        say; MuSiQue, which asks no such questions, gives "no" part of "No Country". Two texts that are empty after
        normalization agree, as MuSiQue says; HotpotQA and 2WikiMultihopQA give them 0, with an exact match of 1.

    Example:
        >>> f1("Paris, France", ("Paris",)), f1("no one", ("no",)), f1("US", ("United States", "U.S."))
        (0.6666666666666666, 0.0, 1.0)

    Reference:
        The scripts that `normalized_answer` names. The maximum over aliases is in those of 2WikiMultihopQA and
        MuSiQue; HotpotQA has one answer a question.
    """
    predicted = normalized_answer(prediction)
    return max(_overlap(predicted, normalized_answer(answer)) for answer in _checked(answers))


def stated_answer(text: str) -> str | None:
    """The content of the last complete ``<answer>...</answer>`` block, without white space around it; None without one.

    A block ends at the first closing tag after its opening one, and begins at the last opening tag before that.

    Args:
        text: What the policy wrote, and nothing else: what others wrote into the rollout must not answer for it.

    Degenerate cases:
        An opening tag that is never closed, and a closing tag that was never opened, are no block. An empty block
        states the empty answer. Takes time linear in the text, whatever it holds.

    Example:
        >>> stated_answer("<answer>Rome</answer> No: <answer> Oslo </answer> or <answer>"), stated_answer("Oslo")
        ('Oslo', None)
    """
    start = text.rfind(ANSWER, 0, max(text.rfind(ANSWER_END), 0))
    if start < 0:
        return None
    start += len(ANSWER)
    return text[start : text.index(ANSWER_END, start)].strip()


def keeps_form(text: str) -> bool:
    """Whether a text ends in an answer as asked: exactly one answer block, something inside, white space after it.

    Degenerate cases:
        Any further opening or closing tag breaks the form, also one that makes no block.

    Example:
        >>> [keeps_form(text) for text in ("So: <answer>Oslo</answer>", "<answer>Oslo</answer>.", "<answer> </answer>")]
        [True, False, False]
    """
    once = text.count(ANSWER) == text.count(ANSWER_END) == 1
    return once and text.rstrip().endswith(ANSWER_END) and bool(stated_answer(text))


def _overlap(predicted: str, answer: str) -> float:
    if predicted == answer:
        return 1.0
    if predicted in _VERDICTS or answer in _VERDICTS:
        return 0.0
    words, gold = predicted.split(), answer.split()
    shared = (Counter(words) & Counter(gold)).total()
    return 2 * shared / (len(words) + len(gold))


def _checked(answers: Sequence[str]) -> Sequence[str]:
    if isinstance(answers, str) or not answers:
        raise InputError(f"`answers` must be a sequence of at least one answer; got {answers!r:.80}.")
    return answers
