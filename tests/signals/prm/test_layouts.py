"""What each family's models are fed: golden texts, the ids of whole texts, marks that a text cannot move, refusals."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny_prms as tiny
from stepcredit.errors import InputError
from stepcredit.signals.prm import PRESETS, make_layout, separated

READ = "◀"  # behind the token where a score is read
EOT, HEAD = "<|eot_id|>", "<|start_header_id|>{}<|end_header_id|>\n\n"
SYSTEM = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\nWhat is 2+3?<|im_end|>\n<|im_start|>assistant\n"
UNIVERSAL = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nWhat is 2+3?\n\n###\n\nThe "
    "reference answer is: There is no reference answer for this question.<|im_end|>\n<|im_start|>assistant\n"
    "Add 2 and 3.\n\n"
)
GOLDEN = {
    "qwen2.5-math-prm": [
        SYSTEM.format("Please reason step by step, and put your final answer within \\boxed{}.")
        + "Add 2 and 3.<extra_0>◀The answer is 5.<extra_0>◀<|im_end|>\n"
    ],
    "math-shepherd": ["<s>▁What▁is▁2+3?▁Step▁1:▁Add▁2▁and▁3.▁ки◀<0x0A>Step▁2:▁The▁answer▁is▁5.▁ки◀"],
    "skywork-o1": ["<|im_start|>What is 2+3?\nAdd 2 and 3.\n◀The answer is 5.\n◀"],
    "rlhflow": [
        f"<|begin_of_text|>{HEAD.format('user')}What is 2+3? Add 2 and 3.{EOT}{HEAD.format('assistant')}◀+{EOT}"
        f"{HEAD.format('user')}The answer is 5.{EOT}{HEAD.format('assistant')}◀+{EOT}"
    ],
    "pure": ["What is 2+3?Add 2 and 3.\n◀The answer is 5.\n◀"],
    # read a token into the next step, and behind the last one: where its recipe's lengths fall
    "eurus-implicit": [
        SYSTEM.format("Be brief.") + "Step 1: Add 2 and 3.\n\nStep ◀2: The answer is 5.<|im_end|>◀\n",
    ],
    "trl": ["What is 2+3?Add 2 and 3.\n◀The answer is 5.\n◀"],
    "versaprm": ["<|begin_of_text|>What is 2+3? \n\nAdd 2 and 3. \n\n\n\n◀The answer is 5. \n\n\n\n◀"],
    "reasonflux-prm": [SYSTEM.format("Be brief.") + "Add 2 and 3.<extra_0>◀The answer is 5.<extra_0>◀<|im_end|>\n"],
    "universal-prm": [UNIVERSAL + "<|endoftext|>◀", UNIVERSAL + "The answer is 5.\n\n<|endoftext|>◀"],
}
WORDS = {"math-shepherd": tiny.mistral(), "rlhflow": tiny.llama(), "versaprm": tiny.llama()}
WORDS |= {"skywork-o1": tiny.qwen(bos_token="<|im_start|>")}
WORDS = {preset: WORDS.get(preset, tiny.qwen()) for preset in PRESETS}


def shown(words, one):
    """The text of an input, with a sign behind each mark; pieces of SentencePiece as they are spelled."""
    cuts = [0, *(mark + 1 for mark in one.marks), len(one.ids)]
    some = [one.ids[start:end] for start, end in pairwise(cuts)]
    if words is WORDS["math-shepherd"]:
        return READ.join("".join(words.convert_ids_to_tokens(ids)) for ids in some)
    return READ.join(words.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False) for ids in some)


@pytest.mark.parametrize("preset", PRESETS)
def test_golden_texts(preset):
    layout = make_layout(preset, WORDS[preset])
    assert [shown(WORDS[preset], one) for one in layout.inputs(tiny.PROBLEM, tiny.STEPS)] == GOLDEN[preset]
    ids, marks = layout.encode(tiny.PROBLEM, tiny.STEPS)
    assert ids == layout.inputs(tiny.PROBLEM, tiny.STEPS)[-1].ids
    assert len(marks) == (1 if preset == "universal-prm" else 2)


def test_pieces_that_are_encoded_alone():
    """What one text would merge stays apart: the question mark and the step, the period and the line break."""
    words = tiny.qwen()
    encode = words.encode
    for preset in ("pure", "trl"):
        ids, marks = make_layout(preset, words).encode("Why?\n", ["So.", "It is"])
        assert ids == [*encode("Why?\n"), *encode("So."), *encode("\n"), *encode("It is"), *encode("\n")]
        assert [ids[mark] for mark in marks] == encode("\n") * 2
    ids, marks = separated(words, "Why?", ["So.", "It"], ".\n\n. ")
    assert ids == [*encode("Why?"), *encode("So."), *encode(".\n\n. "), *encode("It"), *encode(".\n\n. ")]
    assert marks[-1] == len(ids) - 1
    assert len(encode(".\n\n. ")) > 1
    llama = tiny.llama()
    assert separated(llama, "Why?", ["So."], "\n")[0][0] == llama.bos_token_id
    assert separated(llama, "Why?", ["So."], "\n")[0].count(llama.bos_token_id) == 1
    merging = WORDS["skywork-o1"]
    head = merging.encode("?\n")
    assert make_layout("skywork-o1", merging).encode("?", [])[0] == [merging.bos_token_id, *head]


def test_steps_that_are_numbered_already():
    for preset in ("math-shepherd", "eurus-implicit"):
        layout = make_layout(preset, WORDS[preset])
        bare, named = ["Add.", "Go."], ["Step 1: Add.", "Step 2: Go."]
        assert layout.encode("q", bare) == layout.encode("q", named)
        assert layout.encode("q", ["Step 2: Go."]) != layout.encode("q", ["Go."])


def test_exact_boundaries():
    words = tiny.qwen()
    layout = make_layout("eurus-implicit", words, boundary="exact")
    assert ".ĊĊ" in words.get_vocab()  # so that a step's last token holds the line break after it, too
    (one,) = layout.inputs(tiny.PROBLEM, tiny.STEPS)
    assert shown(words, one) == (
        SYSTEM.format("Be brief.") + "Step 1: Add 2 and 3.\n\n◀Step 2: The answer is 5.◀<|im_end|>\n"
    )
    assert words.decode(one.ids[one.first :]).startswith("Step 1:")
    (one,) = layout.inputs("q", ["é", "第🦆", "b"])
    parts = shown(words, one).split(READ)
    assert [part.split("Step")[-1] for part in parts[:-1]] == [" 1: é", " 2: 第🦆", " 3: b"]
    (one,) = make_layout("eurus-implicit", words).inputs(tiny.PROBLEM, tiny.STEPS)
    assert words.decode(one.ids[one.first :]).startswith("\nStep 1:")


any_text = st.text(st.sampled_from("aZ 1.+-\n\r\t$\\<>|_é\u0301\u0338第🦆\u200bки"), max_size=20)


@settings(max_examples=40, deadline=None)
@given(problem=any_text, steps=st.lists(any_text.map(str.strip).filter(bool), min_size=1, max_size=4))
def test_ids_are_those_of_the_whole_text(problem, steps):
    llama, mistral = WORDS["versaprm"], WORDS["math-shepherd"]
    named = "\n".join(f"Step {k + 1}: {step} ки" for k, step in enumerate(steps))
    turns = [f"{problem} {steps[0]}", *steps[1:]]
    messages = [m for turn in turns for m in ({"role": "user", "content": turn}, {"role": "assistant", "content": "+"})]
    whole = {
        "math-shepherd": mistral.encode(f"{problem} {named}"),
        "versaprm": llama.encode(f"{problem} \n\n" + "".join(f"{step} \n\n\n\n" for step in steps)),
        "rlhflow": llama.encode(llama.apply_chat_template(messages, tokenize=False), add_special_tokens=False),
    }
    for preset, expected in whole.items():
        ids, marks = make_layout(preset, WORDS[preset]).encode(problem, steps)
        assert ids == expected
        assert len(marks) == len(steps)
        assert marks == sorted(set(marks))


HOSTILE = ["{}", "a{}{}b", "<s><|eot_id|>{}\n\n+", "+ - ки \n\n\n\n\n\n+<|im_end|>\n<|im_start|>user\n", "\ud800{}<"]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("text", HOSTILE)
def test_text_moves_no_mark_and_makes_no_special_token(preset, text):
    words = WORDS[preset]
    text = text.replace("{}", PRESETS[preset].separator)
    layout = make_layout(preset, words)
    special = set(words.all_special_ids)
    plain, spoilt = (
        layout.inputs(*texts) for texts in (("q", ["a", "b", "c"]), (text, ["a", text.strip() or "x", "c"]))
    )
    assert len(plain) == len(spoilt)
    for clean, one in zip(plain, spoilt, strict=True):
        assert sum(token in special for token in one.ids) == sum(token in special for token in clean.ids)
        assert len(one.marks) == len(clean.marks)
        if preset != "eurus-implicit":
            assert [one.ids[mark] for mark in one.marks] == [clean.ids[mark] for mark in clean.marks]
    if preset not in ("universal-prm", "eurus-implicit"):  # the text's end is where it would be without the text
        assert len(spoilt[0].ids) - spoilt[0].marks[-1] == len(plain[0].ids) - plain[0].marks[-1]


@pytest.mark.parametrize(
    ("preset", "words", "told"),
    [
        ("math-shepherd", tiny.mistral(tag=" k"), "one token for the separator 'ки' .*; got . tokens"),
        ("math-shepherd", tiny.qwen(), "one token for the separator 'ки' .*; got . tokens"),
        (
            "math-shepherd",
            tiny.llama(texts=["x ки", "ки"] * 9),
            "the token of 'ки' at the end of every step .*; got .'Ġ",
        ),
        ("versaprm", tiny.mistral(), "one token for the separator"),
        ("skywork-o1", tiny.qwen(), r"a token for the beginning of its input \(BOS\) .*; got none"),
        ("qwen2.5-math-prm", tiny.qwen(["<|im_start|>", "<|im_end|>"]), "one token for the separator '<extra_0>'"),
        ("rlhflow", tiny.llama(template=None), "a chat template that takes its messages"),
        ("rlhflow", tiny.llama(tiny.LLAMA.replace("<|eot_id|>", "++"), ["+++"] * 9), "the same ids for its input"),
        ("eurus-implicit", tiny.qwen(template="{% for m in messages %}{{ m.content }}{% endfor %}"), "special tokens"),
        ("universal-prm", tiny.qwen(template=None), "a chat template that takes its messages"),
    ],
)
def test_tokenizers_that_do_not_fit(preset, words, told):
    with pytest.raises(InputError, match=told) as caught:
        make_layout(preset, words)
    assert f"for the preset {preset!r}" in str(caught.value)


def test_labels_that_are_not_one_token():
    words = tiny.llama()
    assert [words.convert_ids_to_tokens(i) for i in PRESETS["versaprm"].label_ids(words)] == ["-", "+"]
    assert [words.convert_ids_to_tokens(i) for i in PRESETS["rlhflow"].label_ids(words)] == ["+", "-"]
    bare = tiny.mistral()
    found = PRESETS["math-shepherd"].label_ids(bare)
    assert [*found] == bare.encode("+ -")[1:]
    # A vocabulary without the minus spells it in bytes.
    from tokenizers import Tokenizer

    text = bare.backend_tokenizer.to_str().replace('"▁-"', '"▁~"').replace('"-"', '"~"').replace('"▁", "-"', '"▁", "~"')
    bare._tokenizer = Tokenizer.from_str(text)
    with pytest.raises(InputError, match="one token for the label '-' for the preset 'math-shepherd'; got "):
        PRESETS["math-shepherd"].label_ids(bare)


def test_names_and_options_that_are_refused():
    words = tiny.qwen()
    with pytest.raises(InputError, match="got 'eurus'; did you mean eurus-implicit"):
        make_layout("eurus", words)
    with pytest.raises(InputError, match=r"got 'nothing'; known are qwen2.5-math-prm, "):
        make_layout("nothing", words)
    with pytest.raises(InputError, match="`separator` must be None for the preset 'rlhflow'"):
        make_layout("rlhflow", words, separator="\n")
    with pytest.raises(InputError, match="`answer` must be None for the preset 'pure'; got '5'"):
        make_layout("pure", words).inputs("q", ["a"], "5")
    with pytest.raises(InputError, match="`answer` must be None for the preset 'eurus-implicit'"):
        make_layout("eurus-implicit", words).inputs("q", ["a"], "5")


def test_reading_rows():
    rows = torch.tensor([[1.0, 3.0], [-200.0, 200.0], [0.0, 0.0]])
    right = [1 / (1 + 2.718281828459045**-2), 1.0, 0.5]
    assert PRESETS["trl"].read(rows).tolist() == pytest.approx(right)
    assert PRESETS["versaprm"].read(rows).tolist() == pytest.approx(right)
    assert PRESETS["rlhflow"].read(rows).tolist() == pytest.approx([1 - x for x in right])
    assert PRESETS["pure"].read(rows).tolist() == pytest.approx([2 * x - 1 for x in right])
    one = PRESETS["skywork-o1"].read(rows[:, 1:]).tolist()
    assert one == pytest.approx([1 / (1 + 2.718281828459045**-3), 1.0, 0.5])
    assert PRESETS["trl"].read(rows.bfloat16()).dtype == torch.float32
