"""Rollouts of several turns, turn by turn, with observations by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from tokenizers import AddedToken

from dialogues import EOS, TAGS, Asking, make_tokenizer
from stepcredit import InputError
from stepcredit.runs.conversing import converse
from stepcredit.runs.protocols import TagProtocol

TASK = Asking(searches=2, result_tokens=40)


def written_by(*texts: str) -> Callable[..., list[list[int]]]:
    """A writer for one rollout: these turns, cut at their limits."""
    tokenizer, turns = make_tokenizer(), iter(texts)

    def write(rows: Sequence[int], contexts: list[list[int]], limits: list[int]) -> list[list[int]]:
        assert len(rows) == len(contexts) == len(limits) == 1
        return [list(tokenizer(next(turns))["input_ids"])[: limits[0]]]

    return write


END = "<|im_end|>"


@pytest.mark.parametrize(
    ("turns", "limit", "shown", "finished"),
    [
        (["no", "never"], 99, ["no"], False),  # cut at its limit, say: the writer says when a turn is over
        (["no<|im_end|>"], 99, ["no" + END], True),
        (["a<search>xy</search>", "b" + END], 99, ["a<search>xy</search>", "# xy\nr0 yx.\n", "b" + END], True),
        (["<search>xy</search>" + END], 99, ["<search>xy</search>" + END], True),  # the end token has the last word
        (["<search>a</search>"] * 9, 200, None, False),
        # 5 ids of the turn, 5 of tags and line ends round the message, 6 of the message, 1 for what follows
        (["<search>xyz</search>", "b"], 5 + 5 + 6, ["<search>xyz</search>"], False),
        (["<search>xyz</search>", "b"], 5 + 5 + 6 + 1, ["<search>xyz</search>", "[cut]\n", "b"], False),
    ],
)
def test_turns_and_observations_by_hand(turns: list[str], limit: int, shown: list[str] | None, finished: bool) -> None:
    tokenizer = make_tokenizer()
    protocol = TagProtocol(TASK, tokenizer)
    prompt = tokenizer("Q?\n")["input_ids"]
    [dialogue] = converse(protocol, [prompt], ["r"], written_by(*turns), max_new_tokens=limit, ends={EOS})
    assert dialogue.finished == finished
    assert len(dialogue.ids) == len(dialogue.mask) <= limit
    assert dialogue.context == [*prompt, *dialogue.ids]
    if shown is None:  # two searches, one more that is told so, one more that ends it
        shown = []
        for said in ("# a\nr0 a.\n", "This was searched before.\n", "No searches are left.\n"):
            shown += ["<search>a</search>", said]
        shown.append("<search>a</search>")
    parts = [text if i % 2 == 0 else f"\n<information>\n{text}</information>\n" for i, text in enumerate(shown)]
    assert tokenizer.decode(dialogue.ids) == "".join(parts)
    want = [int(i % 2 == 0) for i, part in enumerate(parts) for _ in tokenizer(part)["input_ids"]]
    assert dialogue.mask == want
    assert dialogue.turns == (len(shown) + 1) // 2


@pytest.mark.parametrize("limit", range(6, 60))
def test_no_limit_is_ever_passed(limit: int) -> None:
    tokenizer = make_tokenizer()
    texts = ["<search>abcdefgh</search>", "xy<search>a</search>", "z<search></search>", "<search>b</search>"]
    protocol = TagProtocol(Asking(searches=3, result_tokens=30), tokenizer)
    [dialogue] = converse(protocol, [[9]], ["r"], written_by(*texts), max_new_tokens=limit, ends={EOS})
    assert len(dialogue.ids) <= limit
    assert dialogue.mask[-1] == 1 or len(dialogue.ids) == limit  # a reply leaves room for an answer
    hidden = [i for i, kept in zip(dialogue.ids, dialogue.mask, strict=True) if not kept]
    text = tokenizer.decode(hidden)
    assert text.count("<information>") == text.count("</information>") == dialogue.turns - 1


@pytest.mark.parametrize("between", [0, 1, 20])
@pytest.mark.parametrize("special", ["<pad>", "<|im_start|>", "<|added|>"])
def test_a_tag_amid_which_special_tokens_stand_ends_a_turn(special: str, between: int) -> None:
    """They are not in the text that the environment reads, and the environment answers it."""
    tokenizer = make_tokenizer(tags=False)
    tokenizer.add_tokens([AddedToken("<|added|>", special=True)])  # special without a role
    protocol = TagProtocol(TASK, tokenizer)
    assert protocol.stops is not None
    turn = [*tokenizer("a<search>xy</sea")["input_ids"], *tokenizer(special * between)["input_ids"]]
    turn += tokenizer("rch>")["input_ids"]
    assert tokenizer.decode(turn, skip_special_tokens=True) == "a<search>xy</search>"
    assert [n for n in range(1, len(turn) + 1) if protocol.stops(turn[:n])] == [len(turn)]
    assert not protocol.stops([*turn[:-1], *tokenizer("x>")["input_ids"]])
    assert not protocol.stops([*turn, *tokenizer(special)["input_ids"]])  # it ended before


def test_a_tokenizer_that_loses_the_tags_is_refused() -> None:
    special = make_tokenizer()
    special.add_special_tokens({"additional_special_tokens": ["</search>"]})
    with pytest.raises(InputError, match="holds '</search>', and not as a special token; got ''"):
        TagProtocol(TASK, special)
    few = make_tokenizer()
    few.backend_tokenizer.model = type(few.backend_tokenizer.model)(
        {word: i for i, word in enumerate([*"abc", "<unk>", *TAGS])}, unk_token="<unk>"
    )
    with pytest.raises(InputError, match=r"`policy` must have a tokenizer that holds 'The query is empty\.'"):
        TagProtocol(TASK, few)
