"""Whether another model reads a policy's ids as the policy means them."""

from typing import Any


def vocabulary_difference(policy: Any, other: Any) -> str | None:
    """The first of the policy's ids that another tokenizer reads differently, in words; None if there is none.

    Tokens that only the other knows are no difference: the policy does not write them.

    Args:
        policy: The tokenizer whose ids are to be read by another model, of Transformers.
        other: That model's.

    Returns:
        What an error message can say was found.
    """
    if policy is other:
        return None
    mine, theirs = ({i: token for token, i in x.get_vocab().items()} for x in (policy, other))
    for i in sorted(mine):
        if mine[i] != theirs.get(i):
            return f"id {i} for {theirs.get(i)!r}, which the policy has for {mine[i]!r}"
    return None
