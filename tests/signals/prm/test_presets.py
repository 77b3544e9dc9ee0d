"""Tiny models of every family, loaded from a folder, against the published way to score one text at a time."""

import json
import math
import shutil
from functools import partial
from itertools import pairwise

import pytest
import torch

transformers = pytest.importorskip("transformers")

import published_prms as published  # noqa: E402
import tiny_prms as tiny  # noqa: E402
from stepcredit.batch import Rollouts, Span  # noqa: E402
from stepcredit.errors import InputError  # noqa: E402
from stepcredit.signals import PRM  # noqa: E402
from stepcredit.signals.prm import PRESETS  # noqa: E402

ROWS = tiny.ROWS


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A checkpoint of each family, made when it is asked for."""
    folder, made = tmp_path_factory.mktemp("families"), {}
    qwen, llama = tiny.qwen(), tiny.llama()
    makers = {
        "mistral-lm": lambda to: tiny.save(to, "MistralForCausalLM", tiny.mistral()),
        "llama-lm": lambda to: tiny.save(to, "LlamaForCausalLM", llama),
        "qwen-lm": lambda to: tiny.save(to, "Qwen2ForCausalLM", qwen),
        "reference": lambda to: tiny.save(to, "Qwen2ForCausalLM", qwen, seed=2),
        "labels": lambda to: tiny.save(to, "Qwen2ForTokenClassification", qwen, num_labels=2),
        "labels-bos": lambda to: tiny.save(to, "LlamaForTokenClassification", llama, num_labels=2),
        "value": lambda to: tiny.save_value_head(to, tiny.qwen(bos_token="<|im_start|>")),
        "sequence": lambda to: tiny.save(to, "Qwen2ForSequenceClassification", qwen, num_labels=1),
    }

    def at(name):
        if name not in made:
            made[name] = makers[name](folder / name)
        return made[name]

    return at


def rollouts(rows, **fields):
    """Each row's steps with white space around, spans and all."""
    texts, spans = [], []
    for _, steps in rows:
        pieces = [f" \n{step}\n" for step in steps]
        ends = [0]
        for piece in pieces:
            ends.append(ends[-1] + len(piece))
        texts.append("".join(pieces))
        spans.append([Span(*pair) for pair in pairwise(ends)])
    return Rollouts([problem for problem, _ in rows], texts, group_ids=range(len(rows)), steps=spans, **fields)


def numbers(signal, rows=ROWS, **fields):
    return [[span.score for span in row] for row in signal.score(rollouts(rows, **fields))]


FAMILIES = {
    "qwen2.5-math-prm": ("labels", partial(published.chat, kind="qwen2.5-math-prm")),
    "math-shepherd": ("mistral-lm", published.math_shepherd),
    "skywork-o1": ("value", published.skywork),
    "rlhflow": ("llama-lm", published.rlhflow),
    "pure": ("labels", published.pure),
    "eurus-implicit": ("qwen-lm", published.eurus),
    "trl": ("labels-bos", published.trl),
    "versaprm": ("llama-lm", published.versaprm),
    "reasonflux-prm": ("labels", partial(published.chat, kind="reasonflux-prm")),
    "universal-prm": ("sequence", published.universal),
}


def test_every_family_is_tested():
    assert list(FAMILIES) == list(PRESETS)


@pytest.mark.parametrize("preset", FAMILIES)
def test_scores_are_the_published_ones(shelf, preset):
    name, score = FAMILIES[preset]
    folder = shelf(name)
    options, given = {}, {}
    if preset == "eurus-implicit":
        options, given = {"reference_model": shelf("reference")}, {"reference": shelf("reference")}
    expected = [score(folder, problem=problem, steps=steps, **given) for problem, steps in ROWS]
    for batch_tokens in (1, 400, 10**6):
        found = numbers(PRM(folder, preset=preset, batch_tokens=batch_tokens, **options))
        for row, other in zip(found, expected, strict=True):
            assert row == pytest.approx(other, abs=2e-5)
    flat = [value for row in found for value in row]
    assert len({round(value, 4) for value in flat}) == len(flat)
    if preset == "eurus-implicit":
        return
    low = -1 if preset == "pure" else 0
    assert all(low <= value <= 1 for value in flat)
    assert max(flat) - min(flat) > 0.2


def test_the_reference_answer(shelf):
    folder = shelf("sequence")
    answers = ["5", "16 - 3 = 13", "", "18"]
    signal = PRM(folder, preset="universal-prm", answers=True)
    found = numbers(signal, references=answers)
    for row, (problem, steps), answer in zip(found, ROWS, answers, strict=True):
        assert row == pytest.approx(published.universal(folder, problem, steps, answer), abs=2e-5)
    with pytest.raises(InputError, match="must have references"):
        signal.score(rollouts(ROWS))


def test_a_last_token_with_the_id_of_padding_is_read(shelf, tmp_path):
    folder = shutil.copytree(shelf("sequence"), tmp_path / "pad")
    eos = published.words_of(folder).eos_token_id
    tiny.edit(folder, pad_token_id=eos)
    same = numbers(PRM(str(folder), preset="universal-prm"))
    assert same == numbers(PRM(shelf("sequence"), preset="universal-prm"))


def test_sums_of_steps(shelf):
    options = {"preset": "eurus-implicit", "reference_model": shelf("reference"), "beta": 0.5}
    whole = numbers(PRM(shelf("qwen-lm"), **options))
    parts = numbers(PRM(shelf("qwen-lm"), cumulative=False, **options))
    assert max(abs(value) for row in parts for value in row) > 0.5  # of any size
    for row, (sums, steps) in enumerate(zip(whole, parts, strict=True)):
        assert [math.fsum(steps[: k + 1]) for k in range(len(steps))] == pytest.approx(sums, abs=1e-4)
        expected = published.eurus(shelf("qwen-lm"), shelf("reference"), *ROWS[row], beta=0.5)
        assert sums == pytest.approx(expected, abs=1e-3)


def test_exact_boundaries_sum_the_tokens_of_the_steps(shelf):
    """Against a search in the characters that prefixes of the ids decode to."""
    folder, reference = shelf("qwen-lm"), shelf("reference")
    words = published.words_of(folder)
    signal = PRM(folder, preset="eurus-implicit", reference_model=reference, boundary="exact", beta=1.0)
    for (problem, steps), found in zip(ROWS, numbers(signal), strict=True):
        named = [f"Step {k + 1}: {step}" for k, step in enumerate(steps)]
        messages = [{"role": "user", "content": problem}, {"role": "assistant", "content": "\n\n".join(named)}]
        text = words.apply_chat_template(messages, tokenize=False)
        ids = words.encode(text)
        text = words.decode(ids)  # as the tokenizer composes its characters
        named = [words.decode(words.encode(step)) for step in named]
        starts, place = [], text.rindex("assistant\n") + len("assistant\n")
        for step in named:
            place = text.index(step, place)
            starts.append(place)
            place += len(step)
        lengths = [len(words.decode(ids[:k]).rstrip("\ufffd")) for k in range(len(ids) + 1)]
        first = next(t for t in range(len(ids)) if lengths[t + 1] > starts[0])
        mine, other = (
            published.logits_of("AutoModelForCausalLM", at, ids).log_softmax(-1) for at in (folder, reference)
        )
        ratios = [(mine[t - 1, ids[t]] - other[t - 1, ids[t]]).item() if t else 0.0 for t in range(len(ids))]
        for start, step, value in zip(starts, named, found, strict=True):
            last = next(t for t in range(len(ids)) if lengths[t + 1] >= start + len(step))
            assert value == pytest.approx(math.fsum(ratios[first : last + 1]), abs=1e-3)


@pytest.mark.parametrize("separator", ["\n\n", ".\n", "<extra_0>", " and so on"])
def test_separators_of_one_or_more_tokens(shelf, separator):
    for name in ("labels", "labels-bos"):
        folder = shelf(name)
        if name == "labels-bos" and separator == "<extra_0>":
            continue
        found = numbers(PRM(folder, preset="trl", separator=separator))
        for row, (problem, steps) in zip(found, ROWS, strict=True):
            assert row == pytest.approx(published.trl(folder, problem, steps, separator), abs=2e-5)


@pytest.mark.parametrize("preset", [name for name in FAMILIES if name not in ("eurus-implicit", "universal-prm")])
def test_a_score_does_not_depend_on_later_steps(shelf, preset):
    signal = PRM(shelf(FAMILIES[preset][0]), preset=preset)
    problem, steps = ROWS[1]
    whole, part = numbers(signal, [(problem, steps), (problem, steps[:2])])
    assert whole[:2] == pytest.approx(part, abs=1e-5)


@pytest.mark.parametrize("preset", FAMILIES)
def test_what_does_not_fit_has_no_score(shelf, preset):
    options = {"reference_model": shelf("reference")} if preset == "eurus-implicit" else {}
    folder = shelf(FAMILIES[preset][0])
    whole = PRM(folder, preset=preset, **options)
    expected = numbers(whole, ROWS[1:2])[0]
    inputs = whole.reader.layout.inputs(*ROWS[1])
    marks = [mark for one in inputs for mark in one.marks]
    for fits, length in ((0, marks[0]), (1, marks[0] + 1), (2, marks[1] + 1), (4, marks[-1])):
        signal = PRM(folder, preset=preset, max_length=length, **options)
        assert numbers(signal, ROWS[1:2])[0] == pytest.approx(expected[:fits], abs=1e-5)
        assert signal.unscored == 5 - fits


SEQUENCE_CODE = """
import torch
from transformers import PreTrainedConfig, PreTrainedModel, Qwen2Config, Qwen2Model


class OwnConfig(PreTrainedConfig):
    model_type = "own"

    def __init__(self, body=None, **rest):
        self.body = body or {}
        super().__init__(**rest)


class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        assert config.pad_token_id is None
        self.body = Qwen2Model(Qwen2Config(**config.body))
        self.head = torch.nn.Linear(config.body["hidden_size"], 1)
        self.post_init()

    def get_input_embeddings(self):
        return self.body.embed_tokens

    def forward(self, input_ids):
        hidden = self.body(input_ids, use_cache=False).last_hidden_state  # as if nothing were padded
        return (self.head(hidden[:, -1])[:, 0],)
"""


def test_own_code_that_gives_a_number_an_input(shelf, tmp_path):
    folder = tmp_path / "own"
    shutil.copytree(shelf("sequence"), folder)
    (folder / "own.py").write_text(SEQUENCE_CODE)
    body = json.loads((folder / "config.json").read_text())
    auto = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    own = {"architectures": ["OwnModel"], "auto_map": auto, "model_type": "own", "body": body, "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(own))
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights = {name.replace("model.", "body.").replace("score.", "head."): w for name, w in weights.items()}
    save_file(weights | {"head.bias": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"`trust_remote_code` must be True .* \(OwnModel\); got False"):
        numbers(PRM(str(folder), preset="universal-prm"))
    found = numbers(PRM(str(folder), preset="universal-prm", trust_remote_code=True))
    expected = numbers(PRM(shelf("sequence"), preset="universal-prm"))
    assert [x for row in found for x in row] == pytest.approx([x for row in expected for x in row], abs=1e-5)


def refusal(folder, preset, **options):
    with pytest.raises(InputError) as caught:
        numbers(PRM(str(folder), preset=preset, **options))
    return str(caught.value)


@pytest.mark.parametrize("preset", FAMILIES)
def test_numbers_that_are_not_finite(shelf, tmp_path, preset):
    folder = tiny.spoil(
        shelf(FAMILIES[preset][0]), tmp_path / "nan", lambda weights: weights["model.norm.weight"].fill_(float("nan"))
    )
    options = {"reference_model": shelf("reference")} if preset == "eurus-implicit" else {}
    told = refusal(folder, preset, **options)
    assert f"`model` must have finite outputs for the preset {preset!r}; got nan or infinity in " in told


@pytest.mark.parametrize("preset", FAMILIES)
def test_weights_that_are_missing(shelf, tmp_path, preset):
    name, _ = FAMILIES[preset]
    lost = {"value": "v_head.summary.bias"}.get(name, "lm_head.weight" if name.endswith("lm") else "score.weight")
    folder = tiny.spoil(shelf(name), tmp_path / "lost", lambda weights: weights.pop(lost))
    options = {"reference_model": shelf("reference")} if preset == "eurus-implicit" else {}
    told = refusal(folder, preset, **options)
    assert f"`model` must have all weights of its architecture for the preset {preset!r}; got none for {lost}" in told


def test_heads_of_another_kind(shelf, tmp_path):
    for preset, (name, _) in FAMILIES.items():
        wrong = "labels" if name.endswith("lm") or name in ("value", "sequence") else "qwen-lm"
        options = {"reference_model": shelf("reference")} if preset == "eurus-implicit" else {}
        told = refusal(shelf(wrong), preset, **options)
        if preset == "skywork-o1":
            assert "must have 1 label for each token" in told or "beginning of its input (BOS)" in told
        else:
            assert f"for the preset {preset!r}; got the architecture " in told
    assert "2 labels for each token" in refusal(tiny.save_labels(tmp_path / "3", num_labels=3), "trl")
    wide = tiny.save(tmp_path / "2", "Qwen2ForSequenceClassification", tiny.qwen(), num_labels=2)
    assert "one number for each input" in refusal(wide, "universal-prm")
    words = tiny.qwen(bos_token="<|im_start|>")
    assert "must have 1 label for each token" in refusal(tiny.save_labels(tmp_path / "v", words=words), "skywork-o1")

    def widen(weights):
        weights["v_head.summary.weight"] = torch.zeros(2, 32)

    told = refusal(tiny.spoil(shelf("value"), tmp_path / "wide", widen), "skywork-o1")
    assert "`model` must be loadable for PRM" in told


def test_two_models_of_different_vocabularies(shelf, tmp_path):
    made = tiny.save(tmp_path / "other", "LlamaForCausalLM", tiny.llama())
    with pytest.raises(InputError, match=r"a reference model with its own tokenizer .*; got another vocabulary"):
        numbers(PRM(shelf("qwen-lm"), preset="eurus-implicit", reference_model=made))
    with pytest.raises(InputError, match="`reference_model` must be a local folder or a hub name"):
        numbers(PRM(shelf("qwen-lm"), preset="eurus-implicit", reference_model=str(tmp_path / "none")))
