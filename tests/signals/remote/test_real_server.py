"""Remote signals against a real server of tiny models, held to plain forward passes of Transformers."""

import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from stepcredit.batch import Rollouts, Span
from stepcredit.errors import InputError

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
transformers = pytest.importorskip("transformers")

from served import save_model, serving  # noqa: E402
from stepcredit.cli import main  # noqa: E402
from stepcredit.signals.prm import PRM  # noqa: E402
from stepcredit.signals.remote import RemoteError, RemotePRM, RemoteTeacher  # noqa: E402
from stepcredit.signals.server import app as application  # noqa: E402
from stepcredit.signals.server.models import ServedPRM, ServedTeacher  # noqa: E402
from stepcredit.signals.server.running import bind, token_of  # noqa: E402
from stepcredit.signals.server.worker import BusyError, Worker  # noqa: E402

ROWS = [
    ("What is 3+5?", ["3+5 = 8.", "The answer is 8."]),
    ("A longer one. " * 6, ["x", "So 2 * 3 = 6, and that is all that is asked for here.", "7", "é 第 done."]),
    ("", ["A"]),
]
FAST = {"backoff": 0.001, "retries": 2, "patience": 20.0}


@pytest.fixture(scope="module")
def prm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "prm"
    save_model(folder, "TokenClassification")
    return str(folder)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "teacher"
    save_model(folder, "CausalLM", seed=2)
    return str(folder)


@pytest.fixture(scope="module")
def prm_url(prm):
    with serving(application.make_app(ServedPRM(PRM(prm, preset="trl"), "tiny"))) as url:
        yield url


@pytest.fixture(scope="module")
def teacher_url(teacher):
    with serving(application.make_app(ServedTeacher(teacher, "tiny"))) as url:
        yield url


def rollouts(rows=ROWS, **changes):
    texts, spans = [], []
    for _, steps in rows:
        text, row = "", []
        for step in steps:
            start = len(text)
            text += f" {step}\n"
            row.append(Span(start, len(text)))
        texts.append(text)
        spans.append(row)
    return Rollouts([problem for problem, _ in rows], texts, group_ids=range(len(rows)), steps=spans, **changes)


def plain_scores(folder, rows=ROWS, separator="\n"):
    """TRL's layout written out, one rollout at a time: pieces alone, softmax at the separator, label 1."""
    words = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForTokenClassification.from_pretrained(folder).eval()
    (newline,) = words.encode(separator, add_special_tokens=False)
    found = []
    for problem, steps in rows:
        ids, marks = words.encode(problem, add_special_tokens=False), []
        for step in steps:
            ids = [*ids, *words.encode(step, add_special_tokens=False), newline]
            marks.append(len(ids) - 1)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0]
        found.append([(row.exp() / row.exp().sum())[1].item() for row in logits[marks]])
    return found


def plain_logprobs(folder, prompts, completions):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    found = []
    for prompt, completion in zip(prompts, completions, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0].double()
        row = []
        for place, token in enumerate(completion, start=len(prompt)):
            before = logits[place - 1]
            row.append((before[token] - before.exp().sum().log()).item())
        found.append(row)
    return found


def values(found):
    return [[span.score for span in row] for row in found]


@pytest.mark.parametrize("outputs", ["probabilities", "logits"])
@pytest.mark.parametrize("inputs_per_request", [1, 8])
def test_served_scores_are_those_of_a_plain_loop(prm, prm_url, outputs, inputs_per_request):
    remote = RemotePRM(
        prm_url,
        "tiny",
        prm,
        preset="trl",
        outputs=outputs,
        inputs_per_request=inputs_per_request,
        max_length=256,
        **FAST,
    )
    given = rollouts()
    found = remote.score(given)
    expected = plain_scores(prm)
    assert len({round(score, 3) for row in expected for score in row}) == 7  # scores that could not be swapped unseen
    for row, other in zip(values(found), expected, strict=True):
        assert row == pytest.approx(other, abs=1e-5)
    assert [[Span(span.start, span.end) for span in row] for row in found] == given.steps
    local = values(PRM(prm, preset="trl").score(given))
    assert [len(row) for row in local] == [2, 4, 1]
    for row, other in zip(values(found), local, strict=True):
        assert row == pytest.approx(other, abs=1e-5)


def test_served_logprobs_are_those_of_a_plain_forward(teacher, teacher_url):
    prompts = [[5, 6, 7], [9], [300, 2, 8, 8], [4]]
    completions = [[10, 11, 12, 0], [20], [], [7] * 40]
    given = Rollouts(["p"] * 4, ["c"] * 4, group_ids=[0] * 4, token_ids=completions, prompt_ids=prompts)
    found = RemoteTeacher(teacher_url, "tiny", teacher, inputs_per_request=3, **FAST).logprobs(given)
    expected = plain_logprobs(teacher, prompts, completions)
    assert [len(row) for row in found] == [4, 1, 0, 40]
    for row, other in zip(found, expected, strict=True):
        assert row == pytest.approx(other, abs=1e-4)
    assert min(min(row) for row in expected if row) < -2


def test_steps_of_white_space_and_beyond_the_length(prm, prm_url):
    rows = [("Q", ["one", " ", "two " * 40, "three"]), ("Q", [" "])]
    options = {"preset": "trl", "max_length": 20}
    remote = RemotePRM(prm_url, "tiny", prm, **options, **FAST)
    local = PRM(prm, **options)
    found, expected = remote.score(rollouts(rows)), local.score(rollouts(rows))
    assert [len(row) for row in found] == [len(row) for row in expected] == [1, 0]
    assert remote.unscored == local.unscored == 2
    assert found[0][0].score == pytest.approx(expected[0][0].score, abs=1e-6)
    assert RemotePRM("http://127.0.0.1:9", "tiny", prm, preset="trl").score(rollouts([("Q", [" "])])) == [[]]


def test_without_a_length_it_is_the_servers(prm, prm_url):
    rows = [("Q", ["one", "two " * 300, "three"])]
    remote, local = RemotePRM(prm_url, "tiny", prm, preset="trl", **FAST), PRM(prm, preset="trl", max_length=256)
    assert remote.score(rollouts(rows))[0][0].score == pytest.approx(local.score(rollouts(rows))[0][0].score, abs=1e-6)
    assert remote.unscored == local.unscored == 2


def test_many_threads_get_their_own_answers(teacher, teacher_url):
    rows = [([3 + i, 4], [5 + i % 7, 6, 7 + i]) for i in range(24)]
    expected = plain_logprobs(teacher, [p for p, _ in rows], [c for _, c in rows])
    sources = [
        RemoteTeacher(teacher_url, "tiny", teacher, inputs_per_request=2, concurrency=3, **FAST) for _ in range(3)
    ]
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        every = list(pool.map(lambda one: one.of_ids([p for p, _ in rows], [c for _, c in rows]), sources))
    for found in every:
        for row, other in zip(found, expected, strict=True):
            assert row == pytest.approx(other, abs=1e-4)


def test_what_does_not_fit_is_said(prm, prm_url, teacher, teacher_url, tmp_path):
    with pytest.raises(InputError, match=r"`max_length` must be <= the 256 tokens"):
        RemotePRM(prm_url, "tiny", prm, preset="trl", max_length=257, **FAST).score(rollouts())
    with pytest.raises(InputError, match=r"at most 255 tokens for 'tiny', prompts included; got 257 in row 1"):
        RemoteTeacher(teacher_url, "tiny", teacher, **FAST).of_ids([[1], [1, 2]], [[3], [4] * 255])
    longest = RemoteTeacher(teacher_url, "tiny", teacher, **FAST).of_ids([[1]], [[4] * 254])
    assert len(longest[0]) == 254
    with pytest.raises(RemoteError, match=r"lists 'tiny'; got 'other'"):
        RemoteTeacher(teacher_url, "other", teacher, **FAST).of_ids([[1]], [[3]])
    from served import save_tokenizer

    save_tokenizer(tmp_path / "words", size=300)
    with pytest.raises(RemoteError, match=r"`tokenizer` must be that of the served model"):
        RemoteTeacher(teacher_url, "tiny", str(tmp_path / "words"), **FAST).of_ids([[1]], [[3]])
    with pytest.raises(RemoteError, match=r"status 404"):
        RemoteTeacher(prm_url, "tiny", prm, **FAST).of_ids([[1]], [[3]])
    with pytest.raises(InputError, match=r"`prompt_ids` must hold a token in every row; got none in row 0"):
        RemoteTeacher(teacher_url, "tiny", teacher).of_ids([[]], [[3]])
    with pytest.raises(InputError, match=r"`prompt_ids` must be in the rollouts"):
        RemoteTeacher(teacher_url, "tiny", teacher).logprobs(Rollouts(["p"], ["c"], group_ids=[0], token_ids=[[1]]))


SHORT = {"model": "tiny", "input": [[1, 2]]}


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ({**SHORT, "input": [[1, 2], []]}, 400, "`input` must have 1 to 256 tokens; got 0 in input 1"),
        ({**SHORT, "input": []}, 400, "got 0 in input 0"),
        ({**SHORT, "input": [1] * 257}, 400, "got 257"),
        ({**SHORT, "input": [[1, 99999]]}, 400, "got 99999 in input 0"),
        ({**SHORT, "input": [[1, -1]]}, 400, "got -1 in input 0"),
        ({**SHORT, "input": [[1, True]]}, 400, "valid integer"),
        ({**SHORT, "input": "text"}, 400, "valid array"),
        ({**SHORT, "input": [[1]] * 1025}, 400, "may have 1024 inputs; got 1025"),
        ({**SHORT, "encoding_format": "base64"}, 400, "encoding_format"),
        ({**SHORT, "truncate_prompt_tokens": 1}, 400, "truncate_prompt_tokens"),
        ({**SHORT, "model": "other"}, 404, "'tiny' is"),
        ({"input": [[1]]}, 400, "`model`"),
        (b"{", 400, "Invalid JSON"),
        (b"", 400, "Invalid JSON"),
    ],
)  # fmt: skip
def test_what_the_server_refuses(prm_url, body, status, told):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = httpx.post(f"{prm_url}/pooling", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    error = answer.json()["error"]
    assert told in error["message"]
    assert error["code"] == status
    assert set(error) == {"message", "type", "param", "code"}


def test_the_servers_shapes(prm_url, teacher_url, monkeypatch):
    rows = httpx.post(f"{prm_url}/pooling", json={**SHORT, "input": [[1, 2], [3]]}).json()
    assert [len(item["data"]) for item in rows["data"]] == [2, 1]
    assert [sum(row) for item in rows["data"] for row in item["data"]] == pytest.approx([1.0] * 3)
    assert rows["usage"]["prompt_tokens"] == 3
    answer = httpx.post(
        f"{teacher_url}/v1/completions",
        json={"model": "tiny", "prompt": [7, 8, 9], "max_tokens": 1, "prompt_logprobs": 0},
    ).json()
    (choice,) = answer["choices"]
    assert choice["prompt_logprobs"][0] is None
    assert [list(entry) for entry in choice["prompt_logprobs"][1:]] == [["8"], ["9"]]
    for path in ("/nowhere", "/v1/completions"):
        assert httpx.post(f"{prm_url}{path}", json={}).json()["error"]["code"] == 404
    assert httpx.get(f"{prm_url}/pooling").json()["error"]["code"] == 405
    assert httpx.post(f"{prm_url}/pooling", content=json.dumps(SHORT)).status_code == 415
    assert httpx.get(f"{prm_url}/openapi.json").status_code == 404
    for bent in ({"max_tokens": 5}, {"temperature": 0.5}, {"prompt_logprobs": 3}):
        body = {"model": "tiny", "prompt": [7, 8], "prompt_logprobs": 0, **bent}
        assert httpx.post(f"{teacher_url}/v1/completions", json=body).status_code == 400
    monkeypatch.setattr(application, "MOST_BYTES", 1000)
    large = httpx.post(f"{prm_url}/pooling", json={**SHORT, "input": [[1] * 200] * 3})
    assert large.status_code == 413


def test_the_token(prm, monkeypatch):
    secret = "s3cret-s3cret-s3cret"
    monkeypatch.setenv("SERVED_TOKEN", secret)
    app = application.make_app(ServedPRM(PRM(prm, preset="trl"), "tiny"), token=token_of("SERVED_TOKEN"))
    options = {"preset": "trl", "max_length": 256, **FAST}
    with serving(app) as url:
        found = RemotePRM(url, "tiny", prm, token_env="SERVED_TOKEN", **options).score(rollouts())
        assert values(found)[0] == pytest.approx(plain_scores(prm)[0], abs=1e-5)
        with pytest.raises(RemoteError, match=r"status 401 .*`token_env`"):
            RemotePRM(url, "tiny", prm, **options).score(rollouts())
        monkeypatch.setenv("OTHER_TOKEN", secret[:-1] + "x")
        with pytest.raises(RemoteError, match=r"Check the bearer token in OTHER_TOKEN") as told:
            RemotePRM(url, "tiny", prm, token_env="OTHER_TOKEN", **options).score(rollouts())
        assert secret[:-1] not in str(told.value)
        for path in ("/v1/models", "/tokenize", "/pooling"):
            send = httpx.get if path == "/v1/models" else httpx.post
            assert send(f"{url}{path}").status_code == 401
            assert send(f"{url}{path}", headers={"Authorization": "Bearer \xff".encode("latin-1")}).status_code == 401
        assert httpx.get(f"{url}/health").status_code == 200
    monkeypatch.delenv("OTHER_TOKEN")
    with pytest.raises(InputError, match="'OTHER_TOKEN', which is empty"):
        RemotePRM("http://127.0.0.1:9", "tiny", prm, token_env="OTHER_TOKEN", **options).score(rollouts())
    monkeypatch.setenv("OTHER_TOKEN", "short")
    with pytest.raises(InputError, match="at least 16"):
        token_of("OTHER_TOKEN")


def test_no_open_door_by_default():
    for host in ("0.0.0.0", "::", "example.org", "10.0.0.1"):
        with pytest.raises(InputError, match=r"`--host` must be this machine's own"):
            bind(host, 0, None)
    with bind("127.0.0.1", 0, None) as taken:
        taken.listen()
        with pytest.raises(OSError, match="cannot serve at"):
            bind("127.0.0.1", taken.getsockname()[1], None)


def test_a_model_that_fails_fails_the_request_alone(teacher):
    # tokens that no probe has: quotation mark, number sign, dollar sign
    class Moody(ServedTeacher):
        def run(self, inputs):
            if any(2 in ids for ids in inputs):
                raise RuntimeError("quotes")
            if any(3 in ids for ids in inputs):
                return [torch.full((len(ids) - 1,), float("nan")) for ids in inputs]
            if any(4 in ids for ids in inputs):
                return [torch.full((len(ids) - 1,), -float("inf")) for ids in inputs]
            return super().run(inputs)

    with serving(application.make_app(Moody(teacher, "tiny"))) as url:
        source = RemoteTeacher(url, "tiny", teacher, **FAST)
        assert len(source.of_ids([[1]], [[9]])[0]) == 1
        with pytest.raises(RemoteError, match=r"status 500 \(The model failed: RuntimeError: quotes\) .* 3 attempts"):
            source.of_ids([[1]], [[2]])
        with pytest.raises(RemoteError, match=r"status 500 .*not numbers"):
            source.of_ids([[1]], [[3]])
        with pytest.raises(RemoteError, match=r"minus infinity for 4"):
            source.of_ids([[1]], [[4]])
        assert len(source.of_ids([[1]], [[9, 10]])[0]) == 2


def test_the_worker_batches_refuses_and_ends():
    seen = []
    go = __import__("threading").Event()

    def run(inputs):
        go.wait(5)
        seen.append([len(ids) for ids in inputs])
        return [sum(ids) for ids in inputs]

    worker = Worker(run, tokens=6, most_waiting=10)
    first = worker.submit([[1]])
    while worker._held:
        time.sleep(0.001)
    rest = worker.submit([[1, 2, 3], [4, 5], [6, 7, 8, 9]])
    with pytest.raises(BusyError, match="9 tokens are waiting"):
        worker.submit([[1, 2]])
    rest[1].cancel()
    go.set()
    worker.close()
    assert [future.result() for future in (*first, rest[0], rest[2])] == [1, 6, 30]
    assert seen == [[1], [3], [4]]  # the cancelled one took its room, and was not run
    with pytest.raises(BusyError, match="shutting down"):
        worker.submit([[1]])


def test_the_verbs(prm, tmp_path, capsys):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "stepcredit",
        "serve",
        "--prm",
        prm,
        "--preset",
        "trl",
        "--name",
        "tiny",
        "--port",
        "0",
    ]
    process = subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    try:
        line = process.stderr.readline()
        assert line.startswith("serving tiny (prm, up to 256 tokens) at http://127.0.0.1:")
        url = line.split()[-1]
        words = ["serve-check", url, "--model", "tiny", "--tokenizer", prm, "--preset", "trl", "--json"]
        words += ["--max-length", "256", "--size", "5", "--repeats", "2"]
        assert main([*words, "--against", prm]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["trusted"]
        names = ["server", "model", "tokenizer", "answers", "repetition", "position", "local model"]
        assert [finding["name"] for finding in report["findings"]] == names
        assert report["tokens_per_second"] > 0
        other = tmp_path / "other"
        save_model(other, "TokenClassification", seed=5)
        assert main([*words[:-4], "--against", str(other)]) == 1
        assert not json.loads(capsys.readouterr().out)["trusted"]
    finally:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert json.loads(out) == {"model": "tiny", "kind": "prm", "url": url}
    assert not err
    assert main(["serve-check", url, "--model", "tiny", "--tokenizer", prm, "--teacher", "--patience", "0.05"]) == 1
    told = capsys.readouterr().out
    assert "NO  server" in told
    assert told.endswith("CANNOT be trusted\n")
