"""Paragraphs to search in beside those of the questions, from a file of titles and texts."""

import json

import pytest

from stepcredit.errors import InputError
from stepcredit.tasks.multihop.loading import load_paragraphs
from stepcredit.tasks.multihop.question import Paragraph


def write(folder, *rows):
    path = folder / "set.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_paragraphs_of_a_corpus(tmp_path):
    rows = [
        {"title": "Oslo", "text": "A city. A port.", "url": "x"},
        {"title": "Rio", "sentences": ["A city.", " A port."]},
        {"id": 3, "title": "", "paragraph_text": ""},
        {"title": "Bern", "text": ["A", "B"]},
        {"title": "Bern", "text": ["A", "B"]},
    ]
    path = write(tmp_path, *rows)
    bern = Paragraph("Bern", ("A", "B"))
    assert load_paragraphs(path) == [
        Paragraph("Oslo", ("A city. A port.",)),
        Paragraph("Rio", ("A city.", " A port.")),
        Paragraph("", ("",)),
        bern,
        bern,
    ]
    assert len(load_paragraphs(path, limit=2)) == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"title": "x"}, "exactly one of text | sentences | paragraph_text; got the fields title in"),
        ({"text": "x"}, "must have the field title and exactly one of"),
        ({"title": "x", "text": "y", "sentences": ["y"]}, "got the fields title, text, sentences in"),
        ({"title": None, "text": "y"}, "`title` must be a text; got None in"),
        ({"title": "x", "text": None}, "`text` must be a list of texts; got None in"),
        ({"title": "x", "sentences": ["y", 1]}, "`sentences` must be a list of texts; got ['y', 1] in"),
    ],
)
def test_a_bad_paragraph_is_named(tmp_path, row, message):
    path = write(tmp_path, {"title": "fine", "text": "fine"}, row)
    with pytest.raises(InputError) as error:
        load_paragraphs(path)
    assert message in str(error.value)
    assert "set.jsonl, row 2" in str(error.value)
