"""The CPU's sampler against plain forward passes, Transformers' own generation, and the law of large numbers."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from stepcredit import InputError
from stepcredit.adapters.verl_cpu.generation import Response, generate, score
from stepcredit.adapters.verl_cpu.sampling import Sampling, read_sampling, seed_of
from stepcredit.runs.policies import load_policy

POLICY = load_policy("tiny-arithmetic", dtype="float64")
MODEL, EOS = POLICY.model, POLICY.tokenizer.eos_token_id
TEXTS = ["a:3b:+5\n", "a:3b:+5c:*2d:-7\n", "a:9b:+1c:*2d:-7e:*3f:+2\n"]
PROMPTS = [POLICY.tokenizer(text)["input_ids"] for text in TEXTS]


def run(
    prompts: Sequence[list[int]], samplings: Sequence[Sampling], ends: Sequence[int] = (EOS,), **options: Any
) -> Any:
    return generate(MODEL, prompts, samplings, ends=ends, decode=POLICY.tokenizer.decode, **options)


def one(prompt: list[int], ends: Sequence[int] = (EOS,), **options: Any) -> Response:
    return run([prompt], [Sampling(**{"max_tokens": 24, "seed": 0, **options})], ends)[0]


@torch.no_grad()
def plain_logits(prompt: list[int], response: list[int]) -> Tensor:
    """What the model says before each token of a response: one forward pass, no padding, no cache."""
    ids = torch.tensor([[*prompt, *response]])
    return MODEL(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].double()


def kept(scores: Tensor, top_k: int, top_p: float) -> list[int]:
    """The tokens that may be drawn, one by one from the likeliest: at most k; of their mass, at least p."""
    order = sorted(range(len(scores)), key=lambda token: -float(scores[token]))
    order = order[:top_k] if top_k > 0 else order
    mass = scores[order].softmax(0)
    inside: list[int] = []
    for token, share in zip(order, mass.tolist(), strict=True):
        if sum(mass[: len(inside)].tolist()) >= top_p:
            break
        assert share >= 0
        inside.append(token)
    return inside


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, -1, 1.0), (0.7, -1, 1.0), (2.5, 5, 1.0), (2.0, 9, 0.8)]
)
def test_log_probs_are_those_of_a_plain_forward_pass_on_the_unpadded_row(
    temperature: float, top_k: int, top_p: float
) -> None:
    samplings = [Sampling(24, seed, temperature, top_k, top_p) for seed in range(9)]
    prompts = PROMPTS * 3
    for prompt, row in zip(prompts, run(prompts, samplings), strict=True):
        for logits, token, log_prob in zip(
            plain_logits(prompt, row.token_ids), row.token_ids, row.log_probs, strict=True
        ):
            scores = logits / temperature
            inside = kept(scores, top_k, top_p)
            assert token in inside
            expected = scores[token] - scores[inside].logsumexp(0)
            assert log_prob == pytest.approx(float(expected), abs=1e-5)


def test_tokens_come_as_often_as_their_probability_says() -> None:
    """One token each from 4000 seeds; every count within five standard deviations of its expectation."""
    draws, prompt = 4000, PROMPTS[0]
    rows = run([prompt] * draws, [Sampling(1, seed_of([seed]), 3.0) for seed in range(draws)])
    probabilities = (plain_logits(prompt, [0])[0] / 3.0).softmax(0)
    counts = torch.bincount(torch.tensor([row.token_ids[0] for row in rows]), minlength=len(probabilities))
    deviations = (counts - draws * probabilities) / (draws * probabilities * (1 - probabilities)).sqrt()
    assert float(deviations.abs().max()) < 5
    assert int((counts > 0).sum()) > 10


def test_greedy_rows_of_a_mixed_batch_are_transformers_own_greedy_generation() -> None:
    samplings = [Sampling(24, 0, 0.0), Sampling(24, 1, 1.5), Sampling(24, 2, 0.0)]
    rows = run(PROMPTS, samplings)
    for index in (0, 2):
        theirs = MODEL.generate(
            torch.tensor([PROMPTS[index]]),
            do_sample=False,
            max_new_tokens=24,
            attention_mask=torch.ones(1, len(PROMPTS[index])),
        )[0, len(PROMPTS[index]) :].tolist()
        assert rows[index].token_ids == theirs
        assert rows[index].ended
        greedy = plain_logits(PROMPTS[index], theirs).log_softmax(-1).max(-1).values
        assert rows[index].log_probs == pytest.approx(greedy.tolist(), abs=1e-5)


def test_what_a_request_draws_depends_on_its_seed_and_not_on_its_company() -> None:
    samplings = [Sampling(24, seed, 1.3) for seed in range(3)]
    together = [row.token_ids for row in run(PROMPTS, samplings)]
    alone = [run([prompt], [sampling])[0].token_ids for prompt, sampling in zip(PROMPTS, samplings, strict=True)]
    turned = [row.token_ids for row in run(PROMPTS[::-1], samplings[::-1])][::-1]
    assert together == alone == turned
    assert len({tuple(one(PROMPTS[2], seed=seed, temperature=2.0).token_ids) for seed in range(8)}) == 8


def test_a_response_ends_where_it_should() -> None:
    whole = one(PROMPTS[0], temperature=0.0).token_ids
    text = POLICY.tokenizer.decode(whole, skip_special_tokens=True)
    assert text == "b:3+5=8\nc:8+5=3\nanswer: 3\n"  # 7 + 7 + 3 tokens, then the end of the sequence
    assert (len(whole), whole[-1]) == (18, EOS)
    newline, eight = whole[6], whole[5]
    assert one(PROMPTS[0], temperature=0.0, max_tokens=3).token_ids == whole[:3]
    assert one(PROMPTS[0], temperature=0.0, stop=("r: 3",)).token_ids == whole[:16]
    assert one(PROMPTS[0], temperature=0.0, stop=("no such",)).token_ids == whole
    assert one(PROMPTS[0], temperature=0.0, stop_token_ids=frozenset([newline])).token_ids == whole[:7]
    assert one(PROMPTS[0], (EOS, eight), temperature=0.0).token_ids == whole[:6]
    beyond = one(PROMPTS[0], temperature=0.0, ignore_eos=True).token_ids
    assert len(beyond) == 24
    assert beyond[: len(whole)] == whole


def test_an_aborted_batch_keeps_what_it_has() -> None:
    asked = iter([False, False, True])
    rows = run(PROMPTS, [Sampling(24, 0, 0.0)] * 3, aborted=lambda: next(asked))
    assert [row.token_ids for row in rows] == [one(p, temperature=0.0).token_ids[:3] for p in PROMPTS]
    assert not any(row.ended for row in rows)


@pytest.mark.parametrize("top", [0, 3])
def test_a_teachers_scores_are_about_the_next_token(top: int) -> None:
    ids = [*PROMPTS[1], *one(PROMPTS[1], temperature=1.5).token_ids]
    about, values = score(MODEL, ids, top)
    assert len(about) == len(values) == len(ids)
    assert (about[-1], values[-1]) == ([0] * max(top, 1), [0.0] * max(top, 1))
    for t, logits in enumerate(plain_logits(ids[:1], ids[1:])):
        log_probs = logits.log_softmax(-1)
        expected = [ids[t + 1]] if top == 0 else log_probs.argsort(descending=True)[:top].tolist()
        assert about[t] == expected
        assert values[t] == pytest.approx(log_probs[expected].tolist(), abs=1e-5)


def read(parameters: dict[str, Any], **options: Any) -> Sampling:
    return read_sampling(parameters, **{"room": 100, "default": 32, "seed": 7, "ignore_eos": False, **options})


def test_parameters_are_read_as_verl_sends_them() -> None:
    sent = {"temperature": 0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0, "logprobs": True, "seed": None}
    assert read(sent) == Sampling(32, 7, temperature=0.0)
    assert read({"max_tokens": 5, "stop": "x", "seed": 3}) == Sampling(5, 3, stop=("x",))
    assert read({"max_new_tokens": 50, "stop_token_ids": [4]}, room=9) == Sampling(9, 7, stop_token_ids=frozenset([4]))
    assert read({}, default=-3).max_tokens == 1


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"repetition_penalty": 1.1}, "`repetition_penalty` must be 1.0"),
        ({"best_of": 2}, "best_of"),
        ({"temperature": -1}, "`temperature`"),
        ({"temperature": float("nan")}, "`temperature`"),
        ({"top_p": 0}, "`top_p`"),
        ({"top_k": -5}, "`top_k`"),
        ({"n": 2}, "`n` must be 1"),
    ],
)
def test_what_is_not_honoured_is_refused(parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read(parameters)


def test_a_prompt_that_fills_the_context_is_refused() -> None:
    with pytest.raises(InputError, match="1 tokens too many"):
        read({}, room=0)
