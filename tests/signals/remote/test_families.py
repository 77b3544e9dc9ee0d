"""Every family of process reward models that can be served, against the published way to score one text at a time."""

from functools import partial
from itertools import pairwise

import pytest

pytest.importorskip("httpx")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("transformers")

import published_prms as published
import tiny_prms as tiny
from served import serving
from stepcredit.batch import Rollouts, Span
from stepcredit.errors import InputError
from stepcredit.signals import PRM
from stepcredit.signals.prm import PRESETS
from stepcredit.signals.remote import RemotePRM
from stepcredit.signals.server.app import make_app
from stepcredit.signals.server.models import ServedPRM

FAMILIES = {
    "qwen2.5-math-prm": ("labels", partial(published.chat, kind="qwen2.5-math-prm")),
    "math-shepherd": ("mistral-lm", published.math_shepherd),
    "skywork-o1": ("value", published.skywork),
    "rlhflow": ("llama-lm", published.rlhflow),
    "pure": ("labels", published.pure),
    "trl": ("labels", published.trl),
    "versaprm": ("llama-lm", published.versaprm),
    "reasonflux-prm": ("labels", partial(published.chat, kind="reasonflux-prm")),
}
UNSERVED = {"eurus-implicit", "universal-prm"}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A checkpoint of each kind, made when it is asked for."""
    folder, made = tmp_path_factory.mktemp("families"), {}
    makers = {
        "mistral-lm": lambda to: tiny.save(to, "MistralForCausalLM", tiny.mistral()),
        "llama-lm": lambda to: tiny.save(to, "LlamaForCausalLM", tiny.llama()),
        "labels": lambda to: tiny.save_labels(to),
        "value": lambda to: tiny.save_value_head(to, tiny.qwen(bos_token="<|im_start|>")),
        "sequence": lambda to: tiny.save(to, "Qwen2ForSequenceClassification", tiny.qwen(), num_labels=1),
    }

    def at(name):
        if name not in made:
            made[name] = makers[name](folder / name)
        return made[name]

    return at


def test_every_family_is_served_or_refused(shelf):
    assert FAMILIES.keys() | UNSERVED == PRESETS.keys()
    for name in UNSERVED:
        with pytest.raises(InputError, match="`preset` must be one that a served model can answer for"):
            RemotePRM("http://127.0.0.1:9", "m", "t", preset=name)
    with pytest.raises(InputError, match="`--prm` must give a row of numbers for each token"):
        ServedPRM(PRM(shelf("sequence"), preset="universal-prm"), "m")


@pytest.mark.parametrize(
    ("preset", "outputs"),
    [*((preset, "probabilities") for preset in FAMILIES), ("pure", "logits"), ("skywork-o1", "logits")],
)
def test_served_scores_are_the_published_ones(shelf, preset, outputs):
    kind, score = FAMILIES[preset]
    folder = shelf(kind)
    texts, spans = [], []
    for _, steps in tiny.ROWS:
        pieces = [f" \n{step}\n" for step in steps]
        ends = [0]
        for piece in pieces:
            ends.append(ends[-1] + len(piece))
        texts.append("".join(pieces))
        spans.append([Span(*pair) for pair in pairwise(ends)])
    given = Rollouts([problem for problem, _ in tiny.ROWS], texts, group_ids=range(len(texts)), steps=spans)
    with serving(make_app(ServedPRM(PRM(folder, preset=preset), "m"))) as url:
        found = RemotePRM(url, "m", folder, preset=preset, outputs=outputs, retries=0).score(given)
    flat = [span.score for row in found for span in row]
    assert len({round(value, 4) for value in flat}) == len(flat)
    for row, places, (problem, steps) in zip(found, spans, tiny.ROWS, strict=True):
        assert [span.score for span in row] == pytest.approx(score(folder, problem=problem, steps=steps), abs=2e-5)
        assert [Span(span.start, span.end) for span in row] == places
