"""The file beside the weights that says how a model is fed."""

import json
import shutil

import pytest

from stepcredit.batch import Rollouts, Span
from stepcredit.errors import InputError
from stepcredit.signals import PRM
from stepcredit.signals.prm import PRESETS

ROLLOUTS = Rollouts(["q"], ["a b"], group_ids=[0], steps=[[Span(0, 1), Span(2, 3)]])


@pytest.fixture
def described(standard, tmp_path):
    """Makes a copy of a token classifier with this description."""

    def make(text):
        folder = tmp_path / "model"
        shutil.copytree(standard, folder)
        (folder / "stepcredit_prm.json").write_text(text if isinstance(text, str) else json.dumps(text))
        return str(folder)

    return make


def test_the_file_names_preset_and_separator(standard, described):
    folder = described({"preset": "trl", "separator": "\n\n", "steps": 700})
    expected = PRM(standard, preset="trl", separator="\n\n").score(ROLLOUTS)
    assert expected != PRM(standard, preset="trl").score(ROLLOUTS)
    for options in ({}, {"preset": "trl"}, {"separator": "\n\n"}, {"preset": "trl", "separator": "\n\n"}):
        assert PRM(folder, **options).score(ROLLOUTS) == expected


def test_options_that_the_file_contradicts(described):
    folder = described({"preset": "trl", "separator": "\n\n"})
    with pytest.raises(InputError, match=r"`separator` must be '\\n\\n', as stepcredit_prm.json of .* says; got '\\n'"):
        PRM(folder, preset="trl", separator="\n").score(ROLLOUTS)
    with pytest.raises(InputError, match="`preset` must be 'trl', as"):
        PRM(folder, preset="pure").score(ROLLOUTS)
    with pytest.raises(InputError, match="`answers` must be False for the preset 'trl'; got True"):
        PRM(folder, answers=True).score(ROLLOUTS.replace(references=["5"]))


def test_neither_option_nor_file(standard, described):
    for folder in (standard, described({"separator": "\n"})):
        with pytest.raises(InputError, match="`preset` must be one of ") as caught:
            PRM(folder).score(ROLLOUTS)
        assert all(name in str(caught.value) for name in PRESETS)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "a stepcredit_prm.json of JSON; got "),
        ("[]", 'a stepcredit_prm.json as {"preset": "trl", '),
        ({"preset": 3}, "got {'preset': 3}"),
        ({"preset": "tlr"}, "did you mean trl"),
        ({"preset": "pure", "separator": "\n\n"}, "`separator` must be None for the preset 'pure'"),
    ],
)
def test_damaged_files(described, text, told):
    with pytest.raises(InputError) as caught:
        PRM(described(text)).score(ROLLOUTS)
    assert told in str(caught.value)


@pytest.mark.parametrize("name", ["hit", "miss"])
def test_the_hub(described, monkeypatch, name):
    """Fetched from the hub by name; without such a file there, the preset must be given."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    from stepcredit.signals.prm.described import description
    from stepcredit.signals.prm.loading import Checkpoint

    asked = []
    folder = described({"preset": "trl", "separator": "\n\n"})

    def fetch(repository, file):
        asked.append((repository, file))
        if name == "miss":
            raise EntryNotFoundError("no such file")
        return f"{folder}/{file}"

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    found = description(Checkpoint("someone/prm"))
    assert found == ({"preset": "trl", "separator": "\n\n"} if name == "hit" else {})
    assert asked == [("someone/prm", "stepcredit_prm.json")]
