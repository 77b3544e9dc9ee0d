"""Log-probabilities across tokenizers: brute-force segmentations, and sums that must not change."""

import copy
import random
from itertools import pairwise

import pytest
import torch

from stepcredit import InputError, Rollouts
from stepcredit.signals.alignment import SharedSpan, onto_policy_tokens, shared_spans
from stepcredit.signals.causal_lm import CausalLM
from stepcredit.signals.offsets import token_offsets
from stepcredit.signals.vocabulary import vocabulary_difference

EOS, TOOL = "<eos>", "<tool>"
TURNS = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
TEMPLATE = TURNS + "{% if add_generation_prompt %}[assistant] {% endif %}"


def encode(tokenizer, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def brute_force(policy, teacher, length: int) -> list[tuple[int, int]]:
    """Places between characters that no token of either side reaches over, tried one by one."""
    free = [p for p in range(length + 1) if not any(s < p < e for s, e in [*policy, *teacher])]
    return list(pairwise(free))


def pairs(tokenizers, corpus):
    """(kinds, text, ids and offsets of either side): what a policy may have written, read by another tokenizer."""
    for mine in tokenizers:
        for theirs in ("byte_level", "byte_fallback", "unigram"):
            for written in corpus[:40]:
                ids = encode(tokenizers[mine], written)
                text = tokenizers[mine].decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
                others = encode(tokenizers[theirs], text)
                if tokenizers[theirs].decode(others, skip_special_tokens=True) == text:
                    sides = ids, token_offsets(tokenizers[mine], ids, text)
                    yield (mine, theirs), text, sides, (others, token_offsets(tokenizers[theirs], others, text))


def test_shared_spans_are_the_finest_that_both_sides_have(tokenizers, corpus) -> None:
    seen: dict[tuple[str, str], int] = {}
    for kinds, text, (_, mine), (_, theirs) in pairs(tokenizers, corpus):
        spans = shared_spans(mine, theirs)
        assert [(s.start, s.end) for s in spans] == brute_force(mine, theirs, len(text)), (kinds, text)
        if not text:
            continue
        for side, name in ((mine, "policy"), (theirs, "teacher")):
            assert [t for span in spans for t in getattr(span, name)] == list(range(len(side)))
            for span in spans:
                assert all(span.start <= s <= e <= span.end for s, e in (side[t] for t in getattr(span, name)))
        seen[kinds] = seen.get(kinds, 0) + len(spans)
    assert {theirs for _, theirs in seen} == {"byte_level", "byte_fallback", "unigram"}
    assert {mine for mine, _ in seen} == set(tokenizers)
    assert min(seen[kinds] for kinds in seen if "unigram" not in kinds) > 50


def test_sums_survive_and_the_difference_is_constant_in_a_span(tokenizers, corpus) -> None:
    g = random.Random(0)
    coarse = 0
    for kinds, text, (ids, mine), (others, theirs) in pairs(tokenizers, corpus):
        if not text:
            continue
        old, teacher = ([g.uniform(-9, 0) for _ in side] for side in (ids, others))
        spans = shared_spans(mine, theirs)
        placed = onto_policy_tokens(old, teacher, spans)
        assert sum(placed) - sum(old) == pytest.approx(sum(teacher) - sum(old), abs=1e-9), kinds
        for span in spans:
            own = [t for t, (s, e) in enumerate(mine) if span.start <= s < e <= span.end]  # by character, not by index
            rest = [t for t, (s, e) in enumerate(theirs) if span.start <= s < e <= span.end]
            gaps = [placed[t] - old[t] for t in span.policy]
            assert max(gaps) - min(gaps) < 1e-12
            if set(own) == set(span.policy) and set(rest) == set(span.teacher):
                assert sum(placed[t] for t in own) == pytest.approx(sum(teacher[t] for t in rest), abs=1e-9)
            coarse += len(own) > 1
    assert coarse > 100


def test_the_same_tokens_give_the_teachers_numbers_themselves(tokenizers, corpus) -> None:
    text = "Janet sells 16 eggs.\n\nSo she makes $18."
    for kind in ("byte_level", "byte_fallback"):
        ids = encode(tokenizers[kind], text)
        offsets = token_offsets(tokenizers[kind], ids, text)
        teacher = [-0.1 * t for t in range(len(ids))]
        spans = shared_spans(offsets, offsets)
        placed = onto_policy_tokens([-5.0] * len(ids), teacher, spans)
        silent = offsets[0] == (0, 0)  # a fallback tokenizer's first space writes nothing: it shares a span
        assert silent == (kind == "byte_fallback")
        assert placed[2 * silent :] == teacher[2 * silent :]
        assert sum(placed) == pytest.approx(sum(teacher))


def test_a_character_of_several_tokens_stays_whole() -> None:
    """é in two bytes on one side: a and é cannot be parted from the token that holds both on the other."""
    assert shared_spans([(0, 1), (1, 2), (1, 2), (2, 3)], [(0, 1), (1, 2), (2, 3)]) == [
        SharedSpan(0, 1, range(1), range(1)),
        SharedSpan(1, 2, range(1, 3), range(1, 2)),
        SharedSpan(2, 3, range(3, 4), range(2, 3)),
    ]
    assert shared_spans([(0, 1), (1, 2), (1, 3)], [(0, 2), (2, 3)]) == [
        SharedSpan(0, 1 + 2, range(3), range(2))  # the second byte's token reaches over the teacher's boundary
    ]
    # nothing written: with what begins there, or with the last
    assert shared_spans([(0, 0), (0, 1), (1, 1), (1, 2), (2, 2)], [(0, 1), (1, 2)]) == [
        SharedSpan(0, 1, range(2), range(1)),
        SharedSpan(1, 2, range(2, 5), range(1, 2)),
    ]
    assert shared_spans([(0, 0)], []) == []


def test_what_cannot_be_aligned_is_refused() -> None:
    with pytest.raises(InputError, match="`teacher` must cover the policy's 3 characters; got 2"):
        shared_spans([(0, 3)], [(0, 2)])
    with pytest.raises(InputError, match="`teacher` must cover its text without a gap; got none for 1 to 2"):
        shared_spans([(0, 3)], [(0, 1), (2, 3)])
    with pytest.raises(InputError, match="must have tokens of both sides"):
        onto_policy_tokens([-1.0], [-1.0], [SharedSpan(0, 1, range(1), range(1, 2))])


def judge(tokenizer, policy_tokenizer, **options) -> CausalLM:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=4096, initializer_range=0.5,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).double()
    return CausalLM(model, tokenizer, policy_tokenizer=policy_tokenizer, **options)


def summed(model, prompt: list[int], completion: list[int]) -> float:
    """The log-probability of a whole completion, by the model's own logits."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
    return sum(float(logits[len(prompt) + j - 1, token]) for j, token in enumerate(completion))


def sampled(tokenizer, prompts: list[str], texts: list[str], end: bool) -> Rollouts:
    g = random.Random(1)
    ids = [encode(tokenizer, text) + [tokenizer.eos_token_id] * end for text in texts]
    written = [tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False) for row in ids]
    return Rollouts(
        prompts, written, list(range(len(texts))), token_ids=ids,
        offsets=[token_offsets(tokenizer, row, text) for row, text in zip(ids, written, strict=True)],
        old_logprobs=[[g.uniform(-9, 0) for _ in row] for row in ids],
    )  # fmt: skip


@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize(("mine", "theirs"), [("byte_level", "byte_fallback"), ("word_piece", "byte_level")])
def test_a_teacher_of_another_family_says_the_same_of_the_whole_response(tokenizers, corpus, mine, theirs, end) -> None:
    policy, teacher = tokenizers[mine], tokenizers[theirs]
    texts = [text for text in corpus[:7] + corpus[9:40] if "<" not in text]
    rollouts = sampled(policy, [f"Question {i}: why?\n" for i in range(len(texts))], texts, end)
    source = judge(teacher, policy)
    assert source.difference is not None
    for row, values in enumerate(source.logprobs(rollouts)):
        text, old = rollouts.completions[row], rollouts.old_logprobs[row]
        completion = encode(teacher, text) + [teacher.eos_token_id] * end
        want = summed(source.model, list(teacher(rollouts.prompts[row])["input_ids"]), completion)
        assert sum(values) - sum(old) == pytest.approx(want - sum(old), abs=1e-8)
        if end:  # the ends meet each other
            alone = want - summed(source.model, list(teacher(rollouts.prompts[row])["input_ids"]), completion[:-1])
            assert values[-1] == pytest.approx(alone, abs=1e-8)
    assert source.unmatched == 0


def test_the_prompt_is_rendered_in_the_teachers_own_template(tokenizers) -> None:
    policy, teacher = tokenizers["byte_level"], tokenizers["byte_fallback"]
    rollouts = sampled(policy, ["Why?", "Why?"], ["Because 2.", "So 3."], end=False)
    rollouts = rollouts.replace(messages=[[{"role": "user", "content": "Why?"}], None])
    source = judge(teacher, policy)
    plain = source.logprobs(rollouts)
    teacher.chat_template = TEMPLATE
    try:
        chatted = source.logprobs(rollouts)
        before = encode(teacher, "[user] Why?\n[assistant] ")
        want = summed(source.model, before, encode(teacher, "Because 2."))
        assert sum(chatted[0]) == pytest.approx(want, abs=1e-8)
        assert abs(sum(plain[0]) - want) > 1e-3
        assert chatted[1] == pytest.approx(plain[1])  # no messages: the prompt's text
        teacher.chat_template = "{{ raise_exception('no user here') }}"
        with pytest.raises(InputError, match=r"`messages` must suit the model's chat template; got user: no user here"):
            source.logprobs(rollouts)
    finally:
        teacher.chat_template = None


def test_what_the_teacher_knows_nothing_about_is_counted_and_differs_in_nothing(tokenizers) -> None:
    """Tool output and turn marks: 1 + 1 = <tool>[2\\n]so 2<eos>, with the tool's words masked."""
    policy, teacher = tokenizers["byte_level"], tokenizers["byte_fallback"]
    tool = policy.convert_tokens_to_ids(TOOL)
    parts = [encode(policy, "1 + 1 = "), [tool], encode(policy, "2\n"), encode(policy, "so 2"), [policy.eos_token_id]]
    ids = [token for part in parts for token in part]
    mask = [on for part, on in zip(parts, (True, True, False, True, True), strict=True) for _ in part]
    old = [-1.0 if on else float("nan") for on in mask]
    text = "1 + 1 = 2\nso 2"
    rollouts = Rollouts(
        ["?"], [text], [0], token_ids=[ids], offsets=[token_offsets(policy, ids, text)], response_mask=[mask],
        old_logprobs=[old],
    )  # fmt: skip
    source = judge(teacher, policy)
    (values,) = source.logprobs(rollouts)
    mark = len(parts[0])
    assert values[mark] == old[mark]
    assert values[mark + 1 : mark + 1 + len(parts[2])] == [0.0] * len(parts[2])
    theirs = token_offsets(teacher, encode(teacher, text), text)
    assert not any(s < border < e for s, e in theirs for border in (8, 10))  # the tool's words are whole tokens
    assert source.unmatched == 1  # its mark
    assert all(value != -1.0 for on, value in zip(mask, values, strict=True) if on and value != values[mark])
    source.logprobs(rollouts)
    assert source.unmatched == 2  # it counts on


def test_the_same_vocabulary_reads_the_ids_themselves(tokenizers) -> None:
    policy = tokenizers["byte_level"]
    rollouts = sampled(policy, ["Why?", "x"], ["Because 2.", "größer"], end=True)
    odd = [*rollouts.token_ids[0][:3], policy.convert_tokens_to_ids(TOOL), *rollouts.token_ids[0][3:]]
    rollouts = Rollouts(rollouts.prompts, rollouts.completions, [0, 1], token_ids=[odd, rollouts.token_ids[1]])
    source = judge(policy, policy, batch_tokens=16)
    assert source.difference is None
    for row, values in enumerate(source.logprobs(rollouts)):
        want = summed(source.model, encode(policy, rollouts.prompts[row]), list(rollouts.token_ids[row]))
        assert sum(values) == pytest.approx(want, abs=1e-8)
    given = rollouts.replace(prompt_ids=[[5, 6], [7]])  # what the policy was given comes first
    assert sum(source.logprobs(given)[1]) == pytest.approx(summed(source.model, [7], list(rollouts.token_ids[1])))


def test_impossible_alignments_are_refused_in_words(tokenizers) -> None:
    policy = tokenizers["byte_level"]
    rollouts = sampled(policy, ["?", "?"], ["fine", "größer…  than 1"], end=False)
    with pytest.raises(InputError, match="`tokenizer` must give every completion's text back; row 1 differs"):
        judge(tokenizers["word_piece"], policy).logprobs(
            rollouts.replace(completions=["fine", rollouts.completions[1]])
        )
    bare = Rollouts(rollouts.prompts, rollouts.completions, [0, 1], token_ids=rollouts.token_ids)
    with pytest.raises(InputError, match=r"`offsets` must be in the rollouts for CausalLM; got None\. .* id \d+ for"):
        judge(tokenizers["byte_fallback"], policy).logprobs(bare)
    nothing = Rollouts([], [], [], token_ids=[], offsets=[], old_logprobs=[])
    assert judge(tokenizers["byte_fallback"], policy).logprobs(nothing) == []


def test_the_first_difference_of_two_vocabularies_is_told(tokenizers) -> None:
    one = tokenizers["byte_level"]
    again = copy.deepcopy(one)
    assert vocabulary_difference(one, again) is None
    size = len(again)
    again.add_tokens(["<step>"])
    assert vocabulary_difference(one, again) is None  # the policy never writes it
    assert vocabulary_difference(again, one) == f"id {size} for None, which the policy has for '<step>'"
    assert vocabulary_difference(one, tokenizers["unigram"]).startswith("id 2 for '<unk>', which the policy has for")
