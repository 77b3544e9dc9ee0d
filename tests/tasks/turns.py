"""A completion of several turns."""

from stepcredit.batch import Span


def rollout(*parts):
    """Turns of a policy and results of an environment, taking turns: the text, and where the turns are."""
    text, turns = "", []
    for i, part in enumerate(parts):
        if i % 2 == 0:
            turns.append(Span(len(text), len(text) + len(part)))
        text += part
    return text, turns
