"""A tiny tokenizer, tiny models of random weights, and a server that says what it is told to: for remote signals."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

TEXT = [
    "Step 1: 12 + 30 = 42, so x = 7.\n\nThe answer is 8. What is 3+5? Add 2 and 3. 7*6 is 42, so it is 42.",
    "What is 2+3+4?\n 2+3 = 5.\n 5+4 = 9. The answer is 9, so we are done. \\boxed{42}",
]


def save_tokenizer(folder: Path, size: int = 330) -> Any:
    """A byte-level tokenizer without special tokens but an end."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=["<eos>"], show_progress=False
    )
    backend.train_from_iterator(TEXT, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    made.save_pretrained(folder)
    return made


def save_model(folder: Path, kind: str, seed: int = 1, positions: int = 256) -> Any:
    """A Llama of random weights with its tokenizer: kind "CausalLM" or "TokenClassification"."""
    import transformers

    words = save_tokenizer(folder)
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=positions, num_labels=2, initializer_range=0.5, dtype="float32",
    )  # fmt: skip
    model = getattr(transformers, f"LlamaFor{kind}")(config).eval()
    model.save_pretrained(folder)
    return model


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """A FastAPI application on a free port of this machine, in a thread."""
    import socket

    import uvicorn

    made = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [made]}, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        thread.join(0.01)
    try:
        yield f"http://127.0.0.1:{made.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        made.close()
        assert not thread.is_alive()


class Fake:
    """A server whose answers a test gives, one function a path; it keeps what it was asked.

    A function takes the request's JSON and gives ``(status, headers, body bytes)``, or JSON to send with status 200,
    or raises `Hangup` to close the connection after some bytes.
    """

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[Any], Any]] = {"/health": lambda _: {}}
        self.asked: list[tuple[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()
        self.url = ""

    def count(self, path: str) -> int:
        return sum(seen == path for seen, _ in self.asked)


class Hangup(Exception):  # noqa: N818
    """Send these bytes, raw, and close."""

    def __init__(self, raw: bytes = b"") -> None:
        super().__init__()
        self.raw = raw


@contextmanager
def fake_server() -> Iterator[Fake]:
    fake = Fake()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, body: Any) -> None:
            with fake.lock:
                fake.asked.append((self.path, body))
                fake.headers.append(dict(self.headers))
            try:
                given = fake.answers.get(self.path, lambda _: (404, {}, b"{}"))(body)
            except Hangup as hangup:
                self.wfile.write(hangup.raw)
                self.wfile.flush()
                self.close_connection = True
                return
            if not isinstance(given, tuple):
                given = (200, {}, json.dumps(given).encode())
            status, headers, content = given
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", "Content-Length": len(content), **headers}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(content)

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """A client that left is no news."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
