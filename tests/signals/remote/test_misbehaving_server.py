"""A server that misbehaves in every way we know: each costs a clear error or a repetition, never a wrong number."""

import gc
import itertools
import json
import math
import random
import socket
import threading
import time

import pytest

from stepcredit.errors import InputError

httpx = pytest.importorskip("httpx")
pytest.importorskip("transformers")

from served import Hangup, fake_server, save_tokenizer  # noqa: E402
from stepcredit.signals.remote import RemoteError, RemotePRM, RemoteTeacher, http  # noqa: E402
from stepcredit.signals.remote.check import check  # noqa: E402

FAST = {"backoff": 0.001, "retries": 3, "patience": 5.0, "inputs_per_request": 2}
PROMPTS, COMPLETIONS = [[5, 6], [7], [8, 9]], [[10, 11, 12], [13], [14, 15]]


def logprob(before, token):
    return -(token % 7) - 0.125 * (before % 5) - 0.5


EXPECTED = [
    [logprob(before, token) for before, token in zip([prompt[-1], *completion], completion, strict=False)]
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)
]


def completions(body):
    """What a server that behaves gives."""
    choices = []
    for index, ids in enumerate(body["prompt"]):
        pairs = itertools.pairwise(ids)
        entries = [{str(token): {"logprob": logprob(before, token), "rank": 1}} for before, token in pairs]
        choices.append({"index": index, "text": "x", "prompt_logprobs": [None, *entries]})
    tokens = sum(map(len, body["prompt"]))
    return {"id": "1", "model": body["model"], "choices": choices, "usage": {"prompt_tokens": tokens}}


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    return str(folder), save_tokenizer(folder)


@pytest.fixture
def fake(words):
    _, tokenizer = words
    with fake_server() as fake:
        fake.answers["/v1/models"] = lambda _: {"object": "list", "data": [{"id": "tiny", "max_model_len": 64}]}
        fake.answers["/tokenize"] = lambda body: {"tokens": tokenizer.encode(body["prompt"], add_special_tokens=False)}
        fake.answers["/v1/completions"] = completions
        yield fake


def source(fake, words, **changes):
    made = RemoteTeacher(fake.url, "tiny", words[0], **{**FAST, **changes})
    made.session().limit, made.session().trusted = 64, True  # the handshake has its own tests
    return made


def edited(change):
    """An answer with one thing changed in place."""

    def answer(body):
        given = completions(body)
        change(given)
        return given

    return answer


def first(given):
    return given["choices"][0]["prompt_logprobs"]


def entry(given):
    return next(iter(first(given)[1].values()))


def swap_indices(given):
    for index, choice in enumerate(reversed(given["choices"])):
        choice["index"] = index


def other_ids(given):
    first(given)[1] = {"99": {"logprob": -1.0}}


def whole(content, status=200, **headers):
    return lambda _: (status, headers, content)


JSON = json.dumps({"model": "tiny", "choices": []}).encode()
WRONG = {  # what a server does -> what is said
    "fewer answers": (edited(lambda g: g["choices"].pop()), "each index below 2 once"),
    "duplicate answers": (edited(lambda g: g["choices"].append(g["choices"][0])), "each index below 2 once"),
    "two of one index": (edited(lambda g: g["choices"][1].update(index=0)), "each index below 2 once"),
    "no index": (edited(lambda g: g["choices"][0].pop("index")), "each index below 2 once"),
    "index true": (edited(lambda g: g["choices"][1].update(index=True)), "each index below 2 once"),
    "another's answer": (edited(swap_indices), r"must answer with"),
    "other ids": (edited(other_ids), r"token \d+ that was sent; got \['99'\]"),
    "one short": (edited(lambda g: first(g).pop()), r"`prompt_logprobs`, one a token; got"),
    "one more": (edited(lambda g: first(g).append(first(g)[-1])), r"`prompt_logprobs`, one a token; got"),
    "shifted": (edited(lambda g: first(g).append(first(g).pop(0))), "null for the first token"),
    "nan": (edited(lambda g: entry(g).update(logprob=math.nan)), "finite numbers; got nan"),
    "infinity": (edited(lambda g: entry(g).update(logprob=-math.inf)), "finite numbers; got -inf"),
    "null": (edited(lambda g: entry(g).update(logprob=None)), "finite numbers; got None"),
    "text": (edited(lambda g: entry(g).update(logprob="-1")), "finite numbers; got '-1'"),
    "true": (edited(lambda g: entry(g).update(logprob=True)), "finite numbers; got True"),
    "huge": (edited(lambda g: entry(g).update(logprob=-(10**400))), "finite numbers"),
    "positive": (edited(lambda g: entry(g).update(logprob=0.25)), "at most 0; got 0.25"),
    "impossible": (edited(lambda g: entry(g).update(logprob=-9999.0)), "minus infinity"),
    "entry null": (edited(lambda g: first(g).__setitem__(1, None)), "mapping from token ids"),
    "no logprobs": (edited(lambda g: g["choices"][0].pop("prompt_logprobs")), "one a token; got none"),
    "no choices": (edited(lambda g: g.pop("choices")), "`choices` as a list of objects; got none"),
    "choices of text": (edited(lambda g: g.update(choices=["a", "b"])), "`choices` as a list of objects"),
    "another model": (edited(lambda g: g.update(model="large")), "the model 'tiny'; got 'large'"),
    "no model": (edited(lambda g: g.pop("model")), "the model 'tiny'; got None"),
    "cut short": (edited(lambda g: g["usage"].update(prompt_tokens=1)), "tokens that were sent"),
    "400": (whole(b'{"error": {"message": "too long"}}', 400), r"status 400 \(too long\)"),
    "404": (whole(b"<html>nothing</html>", 404), "status 404"),
    "401": (whole(b'{"error": "Unauthorized"}', 401), r"status 401 \(Unauthorized\).*`token_env`"),
    "redirect": (whole(b"", 307, Location="http://elsewhere/"), "points to 'http://elsewhere/'"),
    "201": (whole(JSON, 201), "status 201"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_answer_is_refused_at_once(fake, words, name):
    answer, told = WRONG[name]
    fake.answers["/v1/completions"] = answer
    with pytest.raises(RemoteError, match=told) as error:
        source(fake, words, concurrency=1).of_ids(PROMPTS, COMPLETIONS)
    assert fake.url in str(error.value)
    assert fake.count("/v1/completions") == 1  # no repetition: it would be wrong again


def hang_up(raw=b""):
    def answer(_):
        raise Hangup(raw)

    return answer


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
PASSING = {
    "500": whole(b"{}", 500),
    "502 of a proxy": whole(b"<html>Bad Gateway</html>", 502, **{"Content-Type": "text/html"}),
    "503": whole(b"", 503),
    "429": whole(b"{}", 429, **{"Retry-After": "0"}),
    "408": whole(b"{}", 408),
    "closed": hang_up(),
    "half a head": hang_up(b"HTTP/1.1 200 OK\r\nContent-Le"),
    "half a body": hang_up(HEAD + b"Content-Length: 999\r\n\r\n{\"mo"),
    "half a chunk": hang_up(HEAD + b"Transfer-Encoding: chunked\r\n\r\n9\r\n{"),
    "no HTTP": hang_up(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"),
    "empty": whole(b""),
    "half of JSON": whole(JSON[:-5]),
    "no JSON": whole(b"ok"),
    "HTML": whole(b"<html>Welcome</html>", 200, **{"Content-Type": "text/html"}),
    "a list": whole(b"[]"),
    "deep": whole(b"[" * 200000),
    "a long number": whole(b'{"a": ' + b"1" * 10000 + b"}"),
    "no text": whole(b"\xff\xfe\x00"),
}  # fmt: skip


@pytest.fixture
def no_garbage():
    """Earlier tests' clients are gone: a finalizer that runs as deep as a parser gives up fails."""
    gc.collect()


@pytest.mark.usefixtures("no_garbage")
@pytest.mark.parametrize("name", PASSING)
def test_a_failure_that_passes_costs_a_repetition(fake, words, name):
    fail, left = PASSING[name], [2]

    def answer(body):
        with fake.lock:
            left[0] -= 1
            failing = left[0] >= 0
        return fail(body) if failing else completions(body)

    fake.answers["/v1/completions"] = answer
    assert source(fake, words).of_ids(PROMPTS, COMPLETIONS) == EXPECTED
    assert fake.count("/v1/completions") == 2 + 2


@pytest.mark.usefixtures("no_garbage")
@pytest.mark.parametrize("name", PASSING)
def test_a_failure_that_stays_is_an_error(fake, words, name):
    fake.answers["/v1/completions"] = PASSING[name]
    with pytest.raises(RemoteError, match=r"`url` must answer; got .* from .* after 3 attempts in") as error:
        source(fake, words, retries=2, concurrency=1).of_ids(PROMPTS, COMPLETIONS)
    assert len(str(error.value)) < 600
    assert "\n" not in str(error.value)
    assert fake.count("/v1/completions") == 3


def test_nobody_there(words):
    for url in ("http://127.0.0.1:9", "http://localhost:9/v1/"):
        begun = time.monotonic()
        with pytest.raises(RemoteError, match=r"ConnectError.*after 4 attempts"):
            RemoteTeacher(url, "tiny", words[0], **FAST).of_ids(PROMPTS, COMPLETIONS)
        assert time.monotonic() - begun < 3


def test_too_slow(fake, words):
    fake.answers["/v1/completions"] = lambda body: time.sleep(0.4) or completions(body)
    with pytest.raises(RemoteError, match=r"ReadTimeout.*after 2 attempts"):
        source(fake, words, read_timeout=0.1, retries=1, concurrency=1).of_ids(PROMPTS, COMPLETIONS)
    assert source(fake, words, read_timeout=2.0).of_ids(PROMPTS, COMPLETIONS) == EXPECTED


def test_a_trickle_ends_with_the_patience(words):
    stop = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def drip():
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
            while not stop.wait(0.05):
                try:
                    connection.sendall(b"1\r\n \r\n")
                except OSError:
                    return

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    try:
        begun = time.monotonic()
        made = RemoteTeacher(f"http://127.0.0.1:{listener.getsockname()[1]}", "tiny", words[0], patience=0.4)
        with pytest.raises(RemoteError, match="bytes of an answer that did not end"):
            made.session().client.ask("/v1/models")
        assert 0.3 < time.monotonic() - begun < 2
    finally:
        stop.set()
        thread.join(5)
        listener.close()


def test_the_pauses_grow_and_obey_the_server(fake, words, monkeypatch):
    pauses = []
    monkeypatch.setattr(http.time, "sleep", pauses.append)
    fake.answers["/v1/models"] = whole(b"{}", 500)
    state = random.getstate()
    client = source(fake, words, retries=8, backoff=0.5, patience=900.0).session().client
    with pytest.raises(RemoteError, match="after 9 attempts"):
        client.ask("/v1/models")
    full = [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert all(full_ / 2 <= pause <= full_ for pause, full_ in zip(pauses, full, strict=True))
    assert random.getstate() == state
    pauses.clear()
    fake.answers["/v1/models"] = whole(b"{}", 429, **{"Retry-After": "7"})
    with pytest.raises(RemoteError, match="status 429"):
        source(fake, words, retries=2, patience=900.0).session().client.ask("/v1/models")
    assert pauses == [7.0, 7.0]
    pauses.clear()
    with pytest.raises(RemoteError, match="after 1 attempt in"):  # it would have to wait for longer than it may
        source(fake, words, retries=2, patience=5.0).session().client.ask("/v1/models")
    assert pauses == []
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 60))
    fake.answers["/v1/models"] = whole(b"{}", 503, **{"Retry-After": date})
    with pytest.raises(RemoteError, match="status 503"):
        source(fake, words, retries=1, patience=900.0).session().client.ask("/v1/models")
    assert 55 < pauses[0] <= 60


def test_an_answer_without_end(fake, words, monkeypatch):
    monkeypatch.setattr(http, "MOST_BYTES", 10_000)
    fake.answers["/v1/completions"] = whole(b" " * 50_000)
    with pytest.raises(RemoteError, match=r"within 10000 bytes.*inputs_per_request"):
        source(fake, words, concurrency=1).of_ids(PROMPTS, COMPLETIONS)
    assert fake.count("/v1/completions") == 1


def test_order_by_index_and_extra_keys(fake, words):
    def shuffled(given):
        given["choices"].reverse()
        given["more"] = {"deep": [1]}
        first(given)[1]["77"] = {"logprob": -0.1}  # the likeliest token beside the one that was sent
        entry(given)["decoded_token"] = "é"

    fake.answers["/v1/completions"] = edited(shuffled)
    assert source(fake, words).of_ids(PROMPTS, COMPLETIONS) == EXPECTED


def test_rounding_above_zero_is_zero(fake, words):
    fake.answers["/v1/completions"] = edited(lambda given: entry(given).update(logprob=3e-7))
    assert source(fake, words).of_ids([[1]], [[2, 3]]) == [[0.0, logprob(2, 3)]]


def test_what_is_sent(fake, words, monkeypatch):
    monkeypatch.setenv("SERVED_TOKEN", "top-secret")
    fake.answers["/v1/completions"] = whole(b'{"error": "I got Bearer top-secret"}', 400)
    made = source(fake, words, token_env="SERVED_TOKEN")
    with pytest.raises(RemoteError, match=r"I got Bearer \[token\]"):
        made.of_ids([[1]], [[2, 3]])
    assert "top-secret" not in repr(made)
    (body,) = [body for path, body in fake.asked if path == "/v1/completions"]
    assert body["prompt"] == [[1, 2, 3]]
    assert (body["max_tokens"], body["prompt_logprobs"], body["temperature"]) == (1, 0, 1.0)
    assert fake.headers[-1]["Authorization"] == "Bearer top-secret"


HANDSHAKES = {
    "not listed": (
        "/v1/models",
        lambda _: {"data": [{"id": "big"}, {"id": "bigger"}]},
        "lists 'big', 'bigger'; got 'tiny'",
    ),
    "none listed": ("/v1/models", lambda _: {"data": []}, "lists no model; got 'tiny'"),
    "no list": ("/v1/models", lambda _: {"data": {}}, "list of models"),
    "other tokenizer": ("/tokenize", lambda _: {"tokens": [1, 2, 3]}, "`tokenizer` must be that of the served model"),
    "nearly the tokenizer": ("/tokenize", None, r"for \[\] at token"),
    "no tokens": ("/tokenize", lambda _: {"ids": []}, "`tokens` as a list of integers; got none"),
    "no tokenizer": ("/tokenize", whole(b"{}", 404), "status 404"),
}


@pytest.mark.parametrize("name", HANDSHAKES)
def test_the_handshake(fake, words, name):
    path, answer, told = HANDSHAKES[name]
    right = fake.answers[path]
    fake.answers[path] = answer or (lambda body: {"tokens": [*right(body)["tokens"], 5]})
    with pytest.raises(RemoteError, match=told):
        RemoteTeacher(fake.url, "tiny", words[0], **FAST).of_ids(PROMPTS, COMPLETIONS)
    assert fake.count("/v1/completions") == 0


def test_an_answer_that_hangs_on_the_place(fake, words):
    def by_place(given):
        for index, choice in enumerate(given["choices"]):
            for one in choice["prompt_logprobs"][1:]:
                next(iter(one.values()))["logprob"] -= 0.2 * index

    fake.answers["/v1/completions"] = edited(by_place)
    made = RemoteTeacher(fake.url, "tiny", words[0], **FAST)
    with pytest.raises(RemoteError, match=r"wherever an input stands in a request; got numbers 0.2 apart"):
        made.of_ids(PROMPTS, COMPLETIONS)
    loose = RemoteTeacher(fake.url, "tiny", words[0], **FAST, tolerance=0.3)
    assert len(loose.of_ids(PROMPTS, COMPLETIONS)) == 3
    before = len(fake.asked)
    loose.of_ids([[1]], [[2]])
    assert len(fake.asked) == before + 1  # once is enough


def rows_of(ids, labels=2):
    """Probabilities that tell each token of an input from the others."""
    right = [(position + 1) / (len(ids) + 1) for position in range(len(ids))]
    return [[1 - p, p] if labels == 2 else [p] for p in right]


def pooling(body, *, pick=lambda _, rows: rows, labels=2):
    data = [{"index": i, "data": pick(ids, rows_of(ids, labels))} for i, ids in enumerate(body["input"])]
    return {"model": body["model"], "data": data, "usage": {"prompt_tokens": sum(map(len, body["input"]))}}


def test_a_row_a_token_and_a_row_a_marker(fake, words):
    folder, tokenizer = words
    (newline,) = tokenizer.encode("\n", add_special_tokens=False)
    prm = RemotePRM(fake.url, "tiny", folder, preset="trl", max_length=64, **FAST)
    problem, steps = "Two\nlines\n?", ["one.", "two.", "three."]
    ((pair, _),) = prm.inputs(problem, steps)
    assert pair[0].count(newline) == 5  # two of the problem, which a scan for markers would take for steps
    assert tokenizer.decode([pair[0][mark] for mark in pair[1]]) == "\n\n\n"

    def step(ids, rows):
        return [row for token, row in zip(ids, rows, strict=True) if token == newline]

    expected = [(mark + 1) / (len(pair[0]) + 1) for mark in pair[1]]
    for pick in (lambda _, rows: rows, step):
        fake.answers["/pooling"] = lambda body, pick=pick: pooling(body, pick=pick)
        (found,) = prm.session().numbers([pair])
        assert found == pytest.approx(expected, abs=1e-6)
    sent = fake.asked[-1][1]
    assert (sent["task"], sent["use_activation"], sent["encoding_format"]) == ("token_classify", True, "float")


POOLED = {
    "one row less": ({"pick": lambda _, rows: rows[1:]}, "a row for each of"),
    "one row for all": ({"pick": lambda _, rows: rows[:1]}, "a row for each of"),
    "no rows": ({"pick": lambda *_: []}, "a row for each of"),
    "one label": ({"labels": 1}, "'trl' has 2 labels; got rows of 1"),
    "ragged": ({"pick": lambda _, rows: [*rows[:-1], [0.1, 0.2, 0.7]]}, "has 2 labels; got rows of 2, 3"),
    "base64": ({"pick": lambda *_: "AAAA"}, "`data` as a list"),
    "null": ({"pick": lambda ids, _: [[None, 1.0]] * len(ids)}, "finite numbers; got None"),
    "nan": ({"pick": lambda ids, _: [[math.nan, 1.0]] * len(ids)}, "finite numbers; got nan"),
    "logits": ({"pick": lambda ids, _: [[-3.0, 2.0]] * len(ids)}, r"got the row \(-3, 2\), no probabilities"),
    "small logits": ({"pick": lambda ids, _: [[0.1, 0.2]] * len(ids)}, r"got the row \(0.1, 0.2\), no prob"),
}  # fmt: skip


@pytest.mark.parametrize("name", POOLED)
def test_pooled_rows_that_are_no_scores(fake, words, name):
    options, told = POOLED[name]
    fake.answers["/pooling"] = lambda body: pooling(body, **options)
    prm = RemotePRM(fake.url, "tiny", words[0], preset="trl", max_length=64, **FAST)
    inputs = [pair for pair, _ in (*prm.inputs("Q", ["one.", "two."]), *prm.inputs("Q", ["three."]))]
    with pytest.raises(RemoteError, match=told):
        prm.session().ask(inputs)


def test_probabilities_that_are_taken_for_logits(fake, words):
    fake.answers["/pooling"] = pooling
    prm = RemotePRM(fake.url, "tiny", words[0], preset="trl", outputs="logits", max_length=64, **FAST)
    with pytest.raises(RemoteError, match="got probabilities, not logits"):
        prm.session().ask([pair for pair, _ in prm.inputs("Q", ["one.", "two."])])
    assert fake.asked[-1][1]["use_activation"] is False


def test_no_proxy_stands_before_this_machine(fake, words, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert source(fake, words).of_ids(PROMPTS, COMPLETIONS) == EXPECTED


def drifting(given):
    entry(given)["logprob"] -= next(COUNT) / 8


def by_company(given):
    if len(given["choices"]) > 1:
        entry(given)["logprob"] -= 0.5


def halved(given):
    for choice in given["choices"]:
        for one in choice["prompt_logprobs"][1:]:
            next(iter(one.values()))["logprob"] /= 2


COUNT = itertools.count()
FIRST = ["server", "model", "tokenizer", "answers"]
CHECKED = {
    "right": (lambda _: None, {}, [*FIRST, "repetition", "position", "local model"]),
    "drifts": (drifting, {"repetition", "position"}, None),
    "company": (by_company, {"position", "local model"}, None),
    "wrong": (halved, {"local model"}, None),
    "positive": (lambda given: entry(given).update(logprob=1.0), {"answers"}, FIRST),
}


@pytest.mark.parametrize("name", CHECKED)
def test_the_check_finds_what_is_wrong(fake, words, name):
    change, wrong, tried = CHECKED[name]
    fake.answers["/v1/completions"] = edited(change)
    session = RemoteTeacher(fake.url, "tiny", words[0], **{**FAST, "inputs_per_request": 8}).session()
    inputs = [([*p, *c], range(len(p), len(p) + len(c))) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    inputs = [(ids, range(1, len(ids))) for ids, _ in inputs]

    def local(inputs):
        return [[logprob(*pair) for pair in itertools.pairwise(ids)] for ids, _ in inputs]

    session.trusted, session.limit = True, 64
    report = check(session, inputs, local=local, repeats=2)
    assert {finding.name for finding in report.findings if not finding.ok} == set(wrong)
    assert report.trusted is not bool(wrong)
    assert tried is None or [finding.name for finding in report.findings] == tried
    assert (report.inputs, report.tokens) == (3, 11)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"url": "localhost:8000"}, "`url` must read"),
        ({"url": "ftp://host"}, "`url` must read"),
        ({"url": "http://host:99999"}, "`url` must read"),
        ({"url": "http://user:secret@host"}, "no user or password"),
        ({"url": "http://host/?a=1"}, "`url` must read"),
        ({"model": " "}, "`model` must be a text"),
        ({"token_env": ""}, "`token_env` must be a text"),
        ({"retries": -1}, "`retries`"),
        ({"patience": 0.0}, "`patience`"),
        ({"concurrency": 0}, "`concurrency`"),
    ],
)
def test_options_are_checked_first(changes, told):
    with pytest.raises(InputError, match=told) as error:
        RemoteTeacher(**{"url": "http://127.0.0.1:9", "model": "m", "tokenizer": "t", **changes})
    assert "secret" not in str(error.value)
