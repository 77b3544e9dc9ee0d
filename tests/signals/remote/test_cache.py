"""What was paid for is not paid for again, and a damaged file gives no wrong numbers."""

import hashlib
import itertools
import math
import sqlite3
import struct
import subprocess
import sys
import warnings

import pytest

from stepcredit.errors import InputError, StepCreditWarning
from stepcredit.signals.remote.cache import Cache, content_key

KEY = {"model": "m", "kind": "logprobs"}


def test_numbers_come_back_to_the_last_bit(tmp_path):
    cache = Cache(tmp_path / "numbers")
    rows = {content_key(KEY, [1, 2], [1]): [-0.1], content_key(KEY, [3], []): [], content_key(KEY, [4], [0]): [5e-324]}
    many = {content_key(KEY, [i], [0]): [i / 7, -1.0] for i in range(1200)}  # more than one query has places for
    cache.keep(rows | many)
    asked = {key: len(row) for key, row in (rows | many).items()}
    assert Cache(tmp_path / "numbers").take(asked | {content_key(KEY, [9, 9], [1]): 1}) == rows | many
    assert cache.take({}) == {}


def test_what_a_key_depends_on():
    keys = [
        content_key(identity, ids, marks)
        for identity, ids, marks in [
            (KEY, [1, 2], [1]), ({**KEY, "model": "n"}, [1, 2], [1]), ({**KEY, "kind": "steps"}, [1, 2], [1]),
            (KEY, [12], [1]), (KEY, [1, 2, 1], []), (KEY, [2, 1], [1]), (KEY, [1, 2], [0]), (KEY, [1, 2], [0, 1]),
        ]
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    assert content_key({"kind": "logprobs", "model": "m"}, (1, 2), range(1, 2)) == keys[0]


def test_an_entry_that_is_damaged_is_left_out(tmp_path):
    path = tmp_path / "numbers"
    keys = [content_key(KEY, [i], [0]) for i in range(4)]
    Cache(path).keep({key: [float(i)] for i, key in enumerate(keys)})
    with sqlite3.connect(path) as database:
        wrong = struct.pack("<d", 0.5)
        database.execute("UPDATE numbers SET content = ? WHERE key = ?", (wrong, keys[1]))
        database.execute("UPDATE numbers SET proof = (SELECT proof FROM numbers WHERE key = ?)", (keys[0],))
    database.close()
    cache = Cache(path)
    with pytest.warns(StepCreditWarning, match="3 entries of the cache .* are damaged"):
        assert cache.take(dict.fromkeys(keys, 1)) == {keys[0]: [0.0]}
    cache.keep({key: [float(i)] for i, key in enumerate(keys)})
    assert cache.take(dict.fromkeys(keys, 1)) == {key: [float(i)] for i, key in enumerate(keys)}
    with pytest.warns(StepCreditWarning, match="1 entries"):  # kept for another number of marks: not for these
        assert cache.take({keys[0]: 2}) == {}


@pytest.mark.parametrize("where", [0, 30, 5000])
def test_a_damaged_file_is_an_error_or_gives_right_numbers(tmp_path, where):
    path = tmp_path / "numbers"
    rows = {content_key(KEY, [i], [0]): [math.sin(i + k) for k in range(50)] for i in range(60)}
    Cache(path).keep(rows)
    content = bytearray(path.read_bytes())
    assert len(content) > 20_000
    assert not (tmp_path / "numbers-wal").exists()
    for place in range(where, len(content), 5500):
        content[place : place + 40] = bytes(40)
    path.write_bytes(content)
    fault, found = "", {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", StepCreditWarning)
            found = Cache(path).take(dict.fromkeys(rows, 50))
    except InputError as error:
        fault = str(error)
    assert not fault or ("`cache` must be" in fault and str(path) in fault)
    assert len(found) < len(rows)
    assert all(rows[key] == row for key, row in found.items())


def test_what_is_no_cache(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("my notes, which are not to be lost\n" * 40)
    with pytest.raises(InputError, match="`cache` must be an intact file"):
        Cache(text)
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as database:
        database.execute("CREATE TABLE numbers (key, content, proof)")
    database.close()
    with pytest.raises(InputError, match="`cache` must be a cache of this package"):
        Cache(other)
    with pytest.raises(InputError, match="`cache` must lie in a folder"):
        Cache(tmp_path / "nowhere" / "cache")
    with pytest.raises(InputError, match="`cache` must be a file"):
        Cache(tmp_path)
    assert text.read_text().startswith("my notes")


WRITER = """
import sys
from stepcredit.signals.remote.cache import Cache, content_key
path, mine = sys.argv[1], int(sys.argv[2])
sys.stdin.readline()
for i in range(40):
    cache = Cache(path)
    row = {content_key({}, [i], [0]): [i / 3], content_key({"of": mine}, [i], [0]): [mine + i / 7]}
    cache.keep(row)
    assert cache.take(dict.fromkeys(row, 1)) == row
"""


def test_several_processes(tmp_path):
    path = tmp_path / "numbers"
    command = [sys.executable, "-c", WRITER, str(path)]
    started = [subprocess.Popen([*command, str(i)], stdin=subprocess.PIPE, text=True) for i in range(2)]
    for process in started:  # all at once, when all have loaded, with no file there
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in started:
        process.stdin.close()
        assert process.wait(60) == 0
    keys = [content_key({"of": mine}, [i], [0]) for mine, i in itertools.product(range(2), range(40))]
    found = Cache(path).take(dict.fromkeys(keys, 1))
    assert [found[key] for key in keys] == [[mine + i / 7] for mine in range(2) for i in range(40)]


def test_a_run_that_goes_on_asks_for_nothing_twice(tmp_path):
    pytest.importorskip("httpx")
    pytest.importorskip("transformers")
    from served import fake_server, save_tokenizer
    from stepcredit.signals.remote import RemoteError, RemoteTeacher

    shift = [0.0]

    def completions(body):
        choices = []
        for index, ids in enumerate(body["prompt"]):
            if 2 in ids:  # a quotation mark, which no probe has
                return 400, {}, b"{}"
            entries = [{str(token): {"logprob": -token / 16 - shift[0]}} for token in ids[1:]]
            choices.append({"index": index, "prompt_logprobs": [None, *entries]})
        return {"model": body["model"], "choices": choices}

    words = save_tokenizer(tmp_path)
    with fake_server() as fake:
        fake.answers["/v1/models"] = lambda _: {"data": [{"id": "m"}, {"id": "n"}]}
        fake.answers["/tokenize"] = lambda body: {"tokens": words.encode(body["prompt"], add_special_tokens=False)}
        fake.answers["/v1/completions"] = completions

        def teacher(**changes):
            options = {"model": "m", "cache": str(tmp_path / "cache"), "inputs_per_request": 1, "retries": 0}
            return RemoteTeacher(url=fake.url, tokenizer=str(tmp_path), concurrency=1, **{**options, **changes})

        def asked():
            sent = [tuple(ids) for path, body in fake.asked if path == "/v1/completions" for ids in body["prompt"]]
            fake.asked.clear()
            return [ids for ids in sent if len(ids) < 9]  # without the handshake's

        expected = [[-5 / 16], [-6 / 16, -7 / 16], [-5 / 16]]
        prompts, completions_ = [[1], [1], [1]], [[5], [6, 7], [5]]
        assert teacher().of_ids(prompts, completions_) == expected
        assert sorted(asked()) == [(1, 5), (1, 6, 7)]  # the two that are equal cost one
        assert teacher().of_ids(prompts, completions_) == expected
        assert not fake.asked  # nothing at all: the server might be gone
        assert teacher().of_ids([[1], [1]], [[5], [8]]) == [[-5 / 16], [-8 / 16]]
        assert asked() == [(1, 8)]
        with pytest.raises(RemoteError, match="status 400"):
            teacher().of_ids([[1], [1], [1]], [[5, 5, 5], [2, 1], [9]])
        assert asked() == [(1, 5, 5, 5), (1, 2, 1)]  # it stops at the failure
        assert teacher().of_ids([[1]], [[5, 5, 5]]) == [[-5 / 16] * 3]
        assert not fake.asked  # what was answered before it is kept
        assert teacher(model="n").of_ids([[1]], [[5]]) == [[-5 / 16]]
        assert asked() == [(1, 5)]
        assert teacher(cache=None).of_ids([[1]], [[5]]) == [[-5 / 16]]
        assert asked() == [(1, 5)]
        shift[0] = 0.25  # other weights under the old name
        with pytest.raises(InputError, match=r"`cache` must hold numbers of the model .* has some 0.25 away from 'm'"):
            teacher().of_ids([[1]], [[5], [11]][1:])
        assert teacher(cache=str(tmp_path / "new")).of_ids([[1]], [[5]]) == [[-5 / 16 - 0.25]]


def test_the_proof_covers_the_key(tmp_path):
    """Two entries that changed places are damaged, not each other's numbers."""
    path = tmp_path / "numbers"
    one, two = (content_key(KEY, [i], [0]) for i in (1, 2))
    Cache(path).keep({one: [1.0], two: [2.0]})
    with sqlite3.connect(path) as database:
        rows = dict(database.execute("SELECT key, CAST(content || proof AS BLOB) FROM numbers"))
        assert rows[one][8:] == hashlib.sha256(one + rows[one][:8]).digest()[:16]
        for to, source in ((one, rows[two]), (two, rows[one])):
            database.execute("UPDATE numbers SET content = ?, proof = ? WHERE key = ?", (source[:8], source[8:], to))
    database.close()
    with pytest.warns(StepCreditWarning, match="2 entries"):
        assert Cache(path).take({one: 1, two: 1}) == {}
