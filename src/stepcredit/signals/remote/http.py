"""Asks an HTTP server for JSON, again where a failure may pass, and takes no answer for one that is not whole."""

import json
import os
import random
import time
import weakref
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from stepcredit.errors import InputError, MissingExtraError
from stepcredit.signals.remote.served import RemoteError, Served

MOST_BYTES = 512 * 2**20  # of one answer
LONGEST_PAUSE = 30.0
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class _MayPassError(Exception):
    """A failure that a repetition may not meet; ``wait`` is what the server asks for, in seconds."""

    def __init__(self, fact: str, wait: float = 0.0) -> None:
        super().__init__(fact)
        self.wait = wait


class Client:
    """One server, asked from any number of threads.

    Repeated with growing pauses: a connection that fails, ends early or is silent for too long, the statuses 408, 429
    and from 500 on, and an answer that is no JSON. Not repeated: any other status but 200, redirects among them.

    Args:
        served: Where the server is, and how patiently it is asked.

    Raises:
        InputError: The environment variable of the token is not set.
        MissingExtraError: httpx is not installed.
    """

    def __init__(self, served: Served) -> None:
        try:
            import httpx
        except ImportError:
            raise MissingExtraError("httpx", "serve", "ask a served model") from None
        self._served, self._failures = served, httpx.RequestError
        self.url = served.url.rstrip("/").removesuffix("/v1")
        self._token = _token(served.token_env)
        self._jitter = random.Random()  # noqa: S311  # its own, so that a run's seeds are not used up here
        self._http = httpx.Client(
            headers={
                "Accept-Encoding": "identity",
                **({"Authorization": f"Bearer {self._token}"} if self._token else {}),
            },
            limits=httpx.Limits(max_connections=served.concurrency),
            trust_env=urlsplit(self.url).hostname not in LOOPBACK,  # a proxy cannot reach this machine's own ports
        )

        weakref.finalize(self, self._http.close)  # no connection outlives its client, whoever forgets to close it

    def ask(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The JSON object at a path, posting ``body`` if there is one.

        Raises:
            RemoteError: No such answer came: at once where no repetition can help, else after all of them.
        """
        return self._patiently(path, None if body is None else json.dumps(body, separators=(",", ":")).encode(), True)

    def alive(self) -> None:
        """Raises RemoteError unless ``/health`` answers with status 200; its content is not read."""
        self._patiently("/health", None, False)

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def _patiently(self, path: str, content: bytes | None, parse: bool) -> dict[str, Any]:
        begun = time.monotonic()
        deadline = begun + self._served.patience
        for attempt in range(self._served.retries + 1):
            try:
                answer = self._once(path, content, deadline)
                return _parsed(answer) if parse else {}
            except _MayPassError as error:
                fault = error
            doubled = min(self._served.backoff * 2**attempt, LONGEST_PAUSE)
            pause = max(doubled * self._jitter.uniform(0.5, 1.0), fault.wait)
            if attempt == self._served.retries or time.monotonic() + pause >= deadline:
                break
            time.sleep(pause)
        tries = f"{attempt + 1} attempt{'s' if attempt else ''} in {time.monotonic() - begun:.1f} s"
        raise RemoteError(f"`url` must answer; got {self._clean(str(fault))} from {self.url}{path} after {tries}.")

    def _once(self, path: str, content: bytes | None, deadline: float) -> tuple[bytes, str]:
        """The body and the content type of an answer with status 200."""
        left = max(deadline - time.monotonic(), 0.001)
        timeout = (min(self._served.connect_timeout, left), min(self._served.read_timeout, left))
        try:
            with self._http.stream(
                "GET" if content is None else "POST",
                f"{self.url}{path}",
                content=content,
                headers={} if content is None else {"Content-Type": "application/json"},
                timeout=(timeout[0], timeout[1], timeout[1], left),  # connect, read, write, a free connection
            ) as response:
                body = self._body(response, path, deadline)
        except self._failures as error:
            raise _MayPassError(f"{type(error).__name__} ({error})" if str(error) else type(error).__name__) from error
        if response.status_code == 200:
            return body, response.headers.get("content-type", "")
        fact = f"status {response.status_code} ({_reason(body)})"
        if response.status_code in (408, 429) or response.status_code >= 500:
            raise _MayPassError(fact, _asked_wait(response.headers.get("retry-after", "")))
        raise RemoteError(self._refused(path, response.status_code, fact, response.headers.get("location", "")))

    def _body(self, response: Any, path: str, deadline: float) -> bytes:
        """The whole body, given up on where it is too long or trickles past the deadline."""
        body = bytearray()
        for part in response.iter_bytes():
            body += part
            if len(body) > MOST_BYTES:
                raise RemoteError(
                    f"`url` must answer within {MOST_BYTES} bytes; got more from {self.url}{path}. "
                    "Set a smaller `inputs_per_request`."
                )
            if time.monotonic() > deadline:
                raise _MayPassError(f"{len(body)} bytes of an answer that did not end")
        return bytes(body)

    def _refused(self, path: str, status: int, fact: str, location: str) -> str:
        advice = ""
        if status in (401, 403):
            env = self._served.token_env
            advice = (
                f" Check the bearer token in {env}." if env else " Name the variable with the token in `token_env`."
            )
        elif 300 <= status < 400:
            advice = f" It points to {location!r:.200}; give the final address."
        return self._clean(f"`url` must accept the request; got {fact} from {self.url}{path}.{advice}")

    def _clean(self, text: str) -> str:
        """A message without the token, should a server echo it."""
        return text.replace(self._token, "[token]") if self._token else text


def _token(variable: str | None) -> str:
    if variable is None:
        return ""
    token = os.environ.get(variable, "").strip()
    if not token:
        raise InputError(
            f"`token_env` must name an environment variable with a token; got {variable!r}, which is empty."
        )
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise InputError(f"`token_env` must name a token of printable characters without spaces; got {variable!r}.")
    return token


def _parsed(answer: tuple[bytes, str]) -> dict[str, Any]:
    body, kind = answer
    if not body:
        raise _MayPassError("an empty answer")
    if "json" not in kind.lower():
        raise _MayPassError(f"the content type {kind[:80]!r} with {_excerpt(body)}")
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise _MayPassError(f"{len(body)} bytes that are no JSON: {_excerpt(body)}") from None
    if not isinstance(found, dict):
        raise _MayPassError(f"JSON that is no object: {_excerpt(body)}")
    return found


def _reason(body: bytes) -> str:
    """What a server says of an error: the message in its JSON, or the beginning of the body."""
    try:
        found: Any = json.loads(body)
    except (ValueError, RecursionError):
        return _excerpt(body)
    for key in ("error", "message", "detail"):
        if isinstance(found, dict) and found.get(key):
            found = found[key]
    return " ".join(str(found).split())[:300]


def _excerpt(body: bytes) -> str:
    return repr(" ".join(body[:400].decode(errors="replace").split())[:120])


def _asked_wait(header: str) -> float:
    """The seconds of a ``Retry-After`` header, which holds a number or a date; 0 where it holds neither."""
    text = header.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max((parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return 0.0
