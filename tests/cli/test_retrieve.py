"""The verb ``retrieve`` as its user runs it: recall by hand, an index kept and reused, one line an error."""

import json
from pathlib import Path
from typing import Any

import pytest

from stepcredit.cli import main
from stepcredit.tasks.multihop.retrieval import BM25
from stepcredit.tasks.multihop.searching import MultiHopSearch
from stepcredit.tasks.multihop.world import World

pytest.importorskip("bm25s")


def paragraph(title: str, text: str, *support: int) -> dict[str, Any]:
    return {"title": title, "sentences": [text], "support": list(support)}


OSLO, BEL = "The mayor of Oslo is Bel.", "Bel was born in Rome."
# Asked for "mayor" and "oslo", Oslo has both words, twice one of them; Bergen has one word; Bel and Rome have none.
ROWS = [
    {"id": "a", "question": "Where was the mayor of Oslo born?", "answer": "Rome",
     "paragraphs": [paragraph("Bel", BEL, 0), paragraph("Oslo", OSLO, 0), paragraph("Bergen", "It has a mayor.")]},
    {"id": "b", "question": "Which town has a mayor?", "answer": "Bergen",
     "paragraphs": [paragraph("Bergen", " It has  a mayor.", 0), paragraph("Oslo", OSLO)]},
    {"id": "c", "question": "Why?", "answer": "So.", "paragraphs": [paragraph("Rome", "A city.")]},
]  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def ran(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert main(["retrieve", *argv, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    out: dict[str, Any] = json.loads(captured.out)
    return out


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["retrieve", *argv]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_recall_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [write(tmp_path / "qa.jsonl", ROWS), "--index", str(tmp_path / "indices"), "--k", "4"]
    result = ran(capsys, *argv)
    # a: Bel ("born") and Oslo ("mayor", "oslo") are found before Bergen ("mayor"); b: Bergen's text is the shorter.
    assert result["recall_at_k"] == {"1": 0.75, "2": 1.0, "4": 1.0}
    assert result["all_gold_at_k"] == {"1": 0.5, "2": 1.0, "4": 1.0}
    assert result["recall_at_k_interval"] == {"1": [0.5, 1.0], "2": [1.0, 1.0], "4": [1.0, 1.0]}
    assert (result["questions"], result["without_gold"], result["paragraphs"]) == (2, 1, 4)  # Oslo and Bergen once
    assert not result["reused"]
    again = ran(capsys, *argv)
    assert again["reused"]
    assert Path(again["index"]).parent == tmp_path / "indices"
    same = ("recall_at_k", "all_gold_at_k", "recall_at_k_interval", "all_gold_at_k_interval", "index", "questions")
    assert {name: again[name] for name in same} == {name: result[name] for name in same}


def test_a_corpus_is_searched_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    better = [{"title": "Mayor of Oslo, born", "text": f"{word} born mayor Oslo"} for word in "xyz"]
    corpus = write(tmp_path / "corpus.jsonl", [*better, {"title": "Oslo", "text": OSLO}])
    argv = [write(tmp_path / "qa.jsonl", ROWS[:1]), "--index", str(tmp_path), "--corpus", corpus]
    result = ran(capsys, *argv, "--k", "5")
    assert result["paragraphs"] == 6  # three of its own, and the corpus' Oslo is one of them
    assert result["recall_at_k"] == {"1": 0.0, "2": 0.0, "5": 1.0}


def test_limit_and_the_default_index(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    result = ran(capsys, write(tmp_path / "qa.jsonl", ROWS), "--limit", "1")
    assert (result["questions"], result["without_gold"], result["paragraphs"]) == (1, 0, 3)
    assert list(result["recall_at_k"]) == ["1", "2", "5", "10"]
    assert Path(result["index"]).parent == tmp_path / "cache" / "stepcredit" / "retrieval"


def test_k_goes_up_in_ones_twos_and_fives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = ran(capsys, write(tmp_path / "qa.jsonl", ROWS), "--index", str(tmp_path), "--k", "120")
    assert list(result["recall_at_k"]) == ["1", "2", "5", "10", "20", "50", "100", "120"]


def test_the_world(capsys: pytest.CaptureFixture[str]) -> None:
    result = ran(capsys, "world", "--limit", "5", "--k", "2")
    shares = []
    for seed, question in enumerate(MultiHopSearch().questions("test", 5)):
        index = BM25.of(World(seed).paragraphs)
        wanted = {paragraph.title for paragraph in question.gold}
        found = {paragraph.title for paragraph in index.search(question.question, 2)}
        shares.append(len(wanted & found) / len(wanted))
    assert result["recall_at_k"]["2"] == pytest.approx(sum(shares) / 5)
    assert (result["questions"], result["paragraphs"], result["index"]) == (5, 64, None)


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "qa.jsonl", ROWS)
    assert main(["retrieve", source, "--index", str(tmp_path), "--k", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{source}: 2 questions, 1 more without gold paragraphs left out, 4 paragraphs"
    assert lines[2].split() == ["k", "recall_at_k", "all_gold_at_k"]
    assert lines[3].split(maxsplit=1) == ["1", "0.750 [0.500, 1.000]    0.500 [0.000, 1.000]"]
    assert lines[-1].startswith(f"index built, kept in {tmp_path}")
    assert main(["retrieve", source, "--index", str(tmp_path), "--k", "2"]) == 0
    assert "index read from" in capsys.readouterr().out
    assert main(["retrieve", "world", "--limit", "1"]) == 0
    assert "kept in memory" in capsys.readouterr().out


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "qa.jsonl", ROWS)
    assert "`--k` must be at least 1" in refused(capsys, source, "--k", "0")
    assert "`--limit` must be at least 1" in refused(capsys, source, "--limit", "0")
    assert "gold paragraphs; got 1 without" in refused(capsys, write(tmp_path / "c.jsonl", ROWS[2:]))
    assert "missing.jsonl" in refused(capsys, str(tmp_path / "missing.jsonl"))
    assert "missing.jsonl" in refused(capsys, source, "--corpus", str(tmp_path / "missing.jsonl"))
    assert "left out for 'world'" in refused(capsys, "world", "--corpus", source)
    assert source in refused(capsys, source, "--index", f"{source}/x")
