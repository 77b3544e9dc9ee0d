"""Evaluation: the same rows whatever the batches, a scripted policy graded by hand, and the metrics by hand."""

import itertools
import math
import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from stepcredit.errors import InputError
from stepcredit.files import write_rows
from stepcredit.runs.evaluate import evaluate
from stepcredit.runs.evaluation import Evaluation, Row, compare
from stepcredit.runs.policies import add_lora
from stepcredit.runs.statistics import bootstrap_interval, paired_difference
from stepcredit.runs.tiny import tiny_model, tiny_tokenizer
from stepcredit.tasks import Arithmetic, Example
from stepcredit.tasks.multihop.searching import TURN_KINDS

TASK = Arithmetic()


def examples(*lengths: int) -> list[Example]:
    """Problems of these many operations, and so with prompts of different lengths."""
    prompts = [Arithmetic(operations=n).problem(i).prompt for i, n in enumerate(lengths)]
    return [Example(f"p-{i}", prompt + "\n", prompt) for i, prompt in enumerate(prompts)]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model() -> Any:
    """Random weights that favor the end token a little, so that lengths vary."""
    model = tiny_model(seed=1).double()
    model.lm_head = torch.nn.Linear(64, model.config.vocab_size).double()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.nn.init.normal_(model.lm_head.weight, std=0.4)
    torch.nn.init.zeros_(model.lm_head.bias)
    return model


MIXED = examples(2, 7, 4, 1, 9, 3, 5, 2, 8, 6, 1)


def test_rows_are_the_same_whatever_the_batches_and_the_order(model: Any, tokenizer: Any) -> None:
    want = evaluate(model, tokenizer, TASK, MIXED, samples=2, max_new_tokens=12, batch_size=64, seed=5)
    assert [(row.id, row.sample) for row in want.rows] == [(f"p-{i}", j) for i in range(11) for j in (-1, 0, 1)]
    assert len({row.completion for row in want.rows}) > 25  # they do differ
    assert {row.finished for row in want.rows} == {True, False}
    for batch_size in (1, 7):
        shuffled = random.Random(batch_size).sample(MIXED, len(MIXED))
        options = {"samples": 2, "max_new_tokens": 12, "batch_size": batch_size, "seed": 5}
        found = evaluate(model, tokenizer, TASK, shuffled, **options)
        assert found.rows == want.rows
        assert found.summary((2,))["metrics"] == want.summary((2,))["metrics"]
        assert found.settings == want.settings | {"batch_size": batch_size}


def test_fewer_problems_or_samples_and_a_lower_limit_are_parts_of_the_whole(model: Any, tokenizer: Any) -> None:
    whole = evaluate(model, tokenizer, TASK, MIXED[:4], samples=3, max_new_tokens=16)
    part = evaluate(model, tokenizer, TASK, MIXED[1:3], samples=2, greedy=False, max_new_tokens=9)
    mine = {(row.id, row.sample): row for row in whole.rows}
    assert [(row.id, row.sample) for row in part.rows] == [("p-1", 0), ("p-1", 1), ("p-2", 0), ("p-2", 1)]
    assert all(mine[row.id, row.sample].completion.startswith(row.completion) for row in part.rows)
    other = evaluate(model, tokenizer, TASK, MIXED[1:3], samples=2, greedy=False, max_new_tokens=9, seed=1)
    assert other.rows != part.rows


def test_greedy_is_what_generate_writes_alone(model: Any, tokenizer: Any) -> None:
    found = evaluate(model, tokenizer, TASK, MIXED[:3], samples=2, temperature=0.0, max_new_tokens=8)
    assert all(len({row.completion for row in rows}) == 1 for _, rows in itertools.groupby(found.rows, lambda r: r.id))
    for row, example in zip(found.rows[::3], MIXED, strict=False):
        ids = torch.tensor([tokenizer(example.prompt)["input_ids"]])
        for _ in range(row.length):
            best = model(ids).logits[0, -1].argmax()
            ids = torch.cat([ids, best[None, None]], dim=1)
        assert tokenizer.decode(ids[0, -row.length :], skip_special_tokens=True) == row.completion
        assert row.finished == (int(best) == tokenizer.eos_token_id)


def test_the_model_and_the_random_state_are_left_alone(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.model.layers[0].self_attn, "attention_dropout", 0.9)  # in training mode
    config, state = model.generation_config, torch.get_rng_state()
    want = evaluate(model.eval(), tokenizer, TASK, MIXED[:2], max_new_tokens=5)
    config.repetition_penalty, config.top_k = 5.0, 1  # a model's own wishes about decoding
    model.train()
    told: list[tuple[int, int]] = []
    found = evaluate(
        model, tokenizer, TASK, MIXED[:2], max_new_tokens=5, batch_size=3, progress=lambda *n: told.append(n)
    )
    config.repetition_penalty, config.top_k = None, None
    assert found.rows == want.rows
    assert model.generation_config is config
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert told == [(3, 4), (4, 4)]
    with pytest.raises(InputError, match="finite"):
        evaluate(_broken(), tokenizer, TASK, MIXED[:1])


def test_an_adapter_is_evaluated_and_left_alone(tokenizer: Any) -> None:
    pytest.importorskip("peft")
    base = tiny_model(seed=1).double()
    config, options = base.generation_config, {"samples": 2, "max_new_tokens": 5}
    want = evaluate(base, tokenizer, TASK, MIXED[:2], **options)
    adapter = add_lora(base, {"r": 2})  # which at first changes nothing
    config.repetition_penalty = 5.0
    for part in (base, adapter):  # whichever of the two holds the model's wishes
        part.generation_config = config
        assert evaluate(adapter, tokenizer, TASK, MIXED[:2], **options).rows == want.rows
        assert adapter.generation_config is base.generation_config is config


def _broken() -> Any:
    model = tiny_model()
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    return model


class Scripted:
    """Stands for a model that writes given texts, with probability 1/2 a token and 1/2 on one that sorts after it."""

    training, device, dtype = False, torch.device("cpu"), torch.float64

    def __init__(self, tokenizer: Any, texts: dict[str, str]) -> None:
        self.config, self.generation_config = SimpleNamespace(), SimpleNamespace(eos_token_id=None)
        self.tokenizer, self.texts = tokenizer, texts

    def eval(self) -> None: ...

    def train(self, mode: bool) -> None: ...

    def generate(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, logits_processor: Any) -> torch.Tensor:
        prompts = [row[mask.bool()].tolist() for row, mask in zip(input_ids, attention_mask, strict=True)]
        assert all(not mask.diff().lt(0).any() for mask in attention_mask)  # padded on the left
        scripts = [self._ids(self.texts[self.tokenizer.decode(ids, skip_special_tokens=True)]) for ids in prompts]
        for position in range(self.generation_config.max_new_tokens):
            scores = torch.full((len(prompts), 64), -math.inf)
            for row, script in enumerate(scripts):
                scores[row, script[position] if position < len(script) else 0] = 0.0
            scores[:, 63] = 0.0 if position < 2 else -math.inf
            token = logits_processor[0](input_ids, scores).argmax(dim=-1, keepdim=True)
            input_ids = torch.cat([input_ids, token], dim=1)
        return input_ids

    def _ids(self, text: str) -> list[int]:
        body, end, _ = text.partition("<eos>")
        ids: list[int] = self.tokenizer(body, add_special_tokens=False)["input_ids"]
        return ids + [self.tokenizer.eos_token_id] * bool(end)


def test_a_scripted_policy_is_graded_by_hand(tokenizer: Any) -> None:
    prompt = "a:3b:+5c:*2"
    problems = {name: Example(name, f"{prompt}d:+{i}\n", f"{prompt}d:+{i}") for i, name in enumerate("vwxyzt")}
    right = "b:3+5=8\nc:8*2=6\nd:6+0=6\nanswer: 6\n"
    repeats = "b:3+5=8\nb:3+5=8\nd:8*2+1=7\nanswer: 7\n"
    texts = {"v": right + "<eos>", "w": repeats + "<eos>", "x": right, "y": "b:3<eos>", "z": "<eos>"}
    texts["t"] = "b:3+5=8\nanswer: 8\n<eos>"
    model = Scripted(tokenizer, {problems[name].prompt: text for name, text in texts.items()})
    found = evaluate(model, tokenizer, TASK, list(problems.values()), samples=0, max_new_tokens=28)
    rows = {row.id: row for row in found.rows}
    assert {name: rows[name].correct for name in texts} == {"v": 1, "w": 1, "x": 0, "y": 0, "z": 0, "t": 0}
    assert {name: rows[name].format_ok for name in texts} == {"v": 1, "w": 1, "x": 0, "y": 0, "z": 0, "t": 1}
    # a line is a label, the numbers and signs and the newline: 7 tokens, or 9 merged; the answer line 3; then the end
    assert {name: rows[name].length for name in texts} == {"v": 25, "w": 27, "x": 28, "y": 3, "z": 1, "t": 11}
    assert {name: rows[name].finished for name in texts} == {"v": 1, "w": 1, "x": 0, "y": 1, "z": 1, "t": 1}
    # two tokens of ln 2, the others certain; nothing after the end counts
    entropies = {name: round(math.log(2) * min(row.length, 2) / row.length, 6) for name, row in rows.items()}
    assert {name: row.entropy for name, row in rows.items()} == pytest.approx(entropies, abs=1e-9)
    assert rows["v"].completion == right
    assert (rows["y"].completion, rows["z"].completion, rows["z"].reason) == ("b:3", "", "no answer line")
    assert rows["w"].kinds == ("one", "repeated", "merged", "answer")
    metrics = found.summary()["metrics"]
    assert metrics["repeated_steps"]["mean"] == metrics["merged_steps"]["mean"] == pytest.approx(1 / 6)
    assert "pass@1" not in metrics


def test_the_text_is_kept_byte_for_byte() -> None:
    words = Tokenizer(models.WordLevel({"<eos>": 0, "x": 1, " ": 2, ".": 3}, unk_token="<eos>"))
    words.pre_tokenizer, words.decoder = pre_tokenizers.Split("", behavior="isolated"), decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>")
    model = Scripted(tokenizer, {"x": " x . x  .<eos>"})
    row = evaluate(model, tokenizer, TASK, [Example("p", "x", "a:3b:+5")], samples=0, max_new_tokens=12).rows[0]
    assert row.completion == " x . x  ."


def test_an_end_token_at_the_limit_finishes(tokenizer: Any) -> None:
    example = Example("p", "a:3b:+5\n", "a:3b:+5")
    model = Scripted(tokenizer, {example.prompt: "b:3+5=8\n<eos>"})
    for limit, finished in ((8, True), (7, False)):
        row = evaluate(model, tokenizer, TASK, [example], samples=0, max_new_tokens=limit).rows[0]
        assert (row.finished, row.length) == (finished, limit)


def made(
    correct: Sequence[Sequence[int]],
    *,
    greedy: Sequence[int] = (),
    kinds: tuple[str, ...] = (),
    can: Sequence[str] = (),
    problems: str = "same",
) -> Evaluation:
    """An evaluation with these outcomes; a completion is 10 tokens long, 20 if wrong, and 1 more a sample index."""
    rows = [
        Row(f"p{i}", j, bool(x), bool(x), 10 + 10 * (not x) + j, 0.5, True, "", "right" if x else "wrong", kinds)
        for i, xs in enumerate(correct)
        for j, x in enumerate(xs)
    ]
    rows += [Row(f"p{i}", -1, bool(x), True, 99, 0.0, True, "", "greedy", ("merged",)) for i, x in enumerate(greedy)]
    rows.sort(key=lambda row: (row.id, row.sample))
    settings = {"samples": len(correct[0]) if correct else 0, "greedy": bool(greedy), "problems_digest": problems}
    return Evaluation(tuple(rows), settings | {"kinds": list(can)})


def test_the_summary_by_hand() -> None:
    found = made([[1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], greedy=[0, 1, 1]).summary((2, 4))
    metrics = found["metrics"]
    assert list(metrics)[:4] == ["pass@1", "pass@2", "pass@4", "greedy"]
    assert metrics["pass@1"] == pytest.approx(bootstrap_interval([0.25, 1, 0])._asdict())
    assert metrics["pass@2"] == pytest.approx(bootstrap_interval([0.5, 1, 0])._asdict())  # 3 of 6 pairs hold the first
    assert metrics["pass@4"]["mean"] == pytest.approx(2 / 3)
    assert metrics["greedy"]["mean"] == pytest.approx(2 / 3)
    assert metrics["length"]["mean"] == pytest.approx((5 * 10 + 7 * 20 + 3 * 6) / 12)  # not the greedy ones' 99
    right = bootstrap_interval([10.0, 11.5, math.nan], weights=[1, 4, 0])
    assert metrics["length_correct"] == pytest.approx(right._asdict())
    assert metrics["length_wrong"]["mean"] == pytest.approx((21 + 22 + 23 + 20 + 21 + 22 + 23) / 7)
    assert metrics["format_ok"]["mean"] == pytest.approx(5 / 12)
    assert "merged_steps" not in metrics
    assert found["reasons"] == {"right": 5, "wrong": 7}
    assert found["problems"] == 3
    alone = made([[], []], greedy=[0, 0], can=["merged"]).summary()["metrics"]
    assert alone["length"] == alone["length_wrong"] == {"mean": 99, "low": 99, "high": 99}
    assert alone["length_correct"] is None
    assert alone["merged_steps"]["mean"] == 1
    assert "repeated_steps" not in alone  # no grade of this task can have it
    can = ("one", "repeated", "merged")
    stepped = made([[1, 0], [0, 0]], kinds=("merged", "one", "merged"), can=can).summary()["metrics"]
    assert (stepped["merged_steps"]["mean"], stepped["repeated_steps"]["mean"]) == (2, 0)
    assert "one_steps" not in stepped
    searched = made([[1, 0]], kinds=("again", "found", "again", "answer"), can=TURN_KINDS).by_problem()
    steps = {name: values.tolist() for name, values in searched.items() if name.endswith("_steps")}
    assert steps == {"found_steps": [1], "missed_steps": [0], "again_steps": [2], "refused_steps": [0]}


def test_a_comparison_by_hand() -> None:
    a, b = made([[1, 0], [1, 1], [0, 0], [0, 1]]), made([[1, 1], [0, 1], [1, 1], [0, 1]], greedy=[1, 1, 1, 1])
    found = compare(a, b, (2,))
    assert found["problems"] == 4
    assert "greedy" not in found["metrics"]
    want = paired_difference([0.5, 1, 0, 0.5], [1, 0.5, 1, 0.5])._asdict() | {"won": 2, "lost": 1, "tied": 1}
    assert found["metrics"]["pass@1"] == pytest.approx(want)
    assert found["metrics"]["pass@1"]["mean"] == 0.25
    want = {"mean": 0.25, "won": 1, "lost": 0, "tied": 3}
    assert {name: found["metrics"]["pass@2"][name] for name in want} == want
    assert found["metrics"]["length"]["mean"] == -2.5
    back = compare(b, a, (2,))["metrics"]["pass@1"]
    assert (back["mean"], back["won"], back["lost"]) == (-0.25, 1, 2)


def test_a_comparison_needs_the_same_problems() -> None:
    with pytest.raises(InputError, match="got 'p1' in one of them alone"):
        compare(made([[1]]), made([[1], [0]]))
    with pytest.raises(InputError, match="same ids with other prompts"):
        compare(made([[1]]), made([[1]], problems="other"))


def test_the_same_id_with_another_prompt_or_reference_is_another_problem(tokenizer: Any) -> None:
    model = Scripted(tokenizer, {"a:3b:+5\n": "<eos>", "a:3b:+6\n": "<eos>"})
    made = [("a:3b:+5\n", "a:3b:+5"), ("a:3b:+6\n", "a:3b:+5"), ("a:3b:+5\n", "a:3b:+6"), ("a:3b:+5\n", "a:3b:+5")]
    found = [evaluate(model, tokenizer, TASK, [Example("p", *x)], samples=0, max_new_tokens=2) for x in made]
    for other in found[1:3]:
        with pytest.raises(InputError, match="same ids with other prompts"):
            compare(found[0], other)
    assert compare(found[0], found[3])["metrics"]["greedy"]["tied"] == 1


@pytest.mark.parametrize(("samples", "k"), [(2, 3), (2, 0), (0, 4)])
def test_a_summary_refuses_a_k_without_samples(samples: int, k: int) -> None:
    with pytest.raises(InputError, match=f"`ks` must be from 1 to the samples a problem, {samples}; got {k}"):
        made([[1] * samples], greedy=[1]).summary((1, k))


def test_rows_are_written_and_read_back(tmp_path: Any, model: Any, tokenizer: Any) -> None:
    found = evaluate(model, tokenizer, TASK, MIXED[:2], max_new_tokens=6)
    for rows in (found.table(), made([[1]]).table()):  # with and without steps
        write_rows(tmp_path / "rows.parquet", rows)
        from pyarrow import parquet

        assert parquet.read_table(tmp_path / "rows.parquet").to_pylist() == rows


@pytest.mark.parametrize(
    ("problems", "options", "said"),
    [
        ([], {}, "`examples` must hold at least one problem; got none"),
        (MIXED[:1], {"samples": 0, "greedy": False}, "at least 1 where `greedy` is off"),
        (MIXED[:1] * 2, {}, "ids of their own; got 'p-0' more than once"),
        (MIXED[:1], {"samples": -1}, "`samples` must be at least 0; got -1"),
        (MIXED[:1], {"batch_size": 0}, "`batch_size`"),
        (MIXED[:1], {"max_new_tokens": 0}, "`max_new_tokens` must be at least 1"),
        (
            MIXED[:2],
            {"max_new_tokens": 500},
            "fit the model's 512 positions with the longest prompt, 25 tokens; got 500",
        ),
        (MIXED[:1], {"temperature": -1.0}, "`temperature`"),
    ],
)
def test_it_refuses(model: Any, tokenizer: Any, problems: list[Example], options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        evaluate(model, tokenizer, TASK, problems, **options)


def test_the_last_position_can_be_used(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.config, "max_position_embeddings", 28)
    evaluate(model, tokenizer, TASK, MIXED[:2], max_new_tokens=3)
    with pytest.raises(InputError, match="28 positions with the longest prompt, 25 tokens; got 4"):
        evaluate(model, tokenizer, TASK, MIXED[:2], max_new_tokens=4)


def test_it_refuses_what_can_not_end_or_begin(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    endless = tiny_tokenizer()
    endless.eos_token = None
    with pytest.raises(InputError, match="must have an end token"):
        evaluate(Scripted(endless, {}), endless, TASK, MIXED[:1])
    monkeypatch.setattr("stepcredit.runs.protocols.encode_prompt", lambda *_: [])
    with pytest.raises(InputError, match="at least one token; got none for 'p-0'"):
        evaluate(Scripted(tokenizer, {}), tokenizer, TASK, MIXED[:1])
