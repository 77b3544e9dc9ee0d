"""Where a served model is and how patiently it is asked: the options that every remote signal has."""

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from stepcredit.errors import InputError, StepCreditError
from stepcredit.options import Options, option

Marked = tuple[Sequence[int], Sequence[int]]  # the ids of an input, and the positions in them that have a number


class RemoteError(StepCreditError):
    """A served model did not answer, or its answer cannot be trusted; the message names the URL, rule and fact."""


@dataclass(frozen=True)
class Served(Options):
    """A model behind the HTTP API of vLLM, or of ``stepcredit serve``, which speaks the part of it that is used here.

    Attributes:
        url: Of the server, without the path of an endpoint ("http://127.0.0.1:8000").
        model: The name under which the server lists the model.
        tokenizer: The model's tokenizer, a local folder or a hub name: token ids are sent, not text.
        token_env: The environment variable that holds the bearer token; None: no token is sent.
        inputs_per_request: How many inputs a request carries.
        concurrency: How many requests are under way at once.
        connect_timeout: Seconds to wait for a connection.
        read_timeout: Seconds to wait for the next part of an answer.
        patience: Seconds after which a request is given up, with all its repetitions.
        retries: How often a request is repeated when it fails in a way that may pass.
        backoff: Seconds before the first repetition; they double with each one, to at most 30.
        cache: A file that keeps every number by what it was computed from, shared by processes; None: nothing is kept.
        tolerance: The most by which two answers for the same input may differ, in the signal's unit.

    Raises:
        InputError: No HTTP URL, an empty name, or a number out of its range.
    """

    url: str
    model: str
    tokenizer: str
    token_env: str | None = None
    inputs_per_request: int = option(8, at_least=1)
    concurrency: int = option(4, at_least=1)
    connect_timeout: float = option(10.0, above=0)
    read_timeout: float = option(300.0, above=0)
    patience: float = option(900.0, above=0)
    retries: int = option(6, at_least=0)
    backoff: float = option(0.5, at_least=0)
    cache: str | None = None
    tolerance: float = option(0.05, at_least=0)

    def __post_init__(self) -> None:
        """Checks every option; touches neither network nor disk."""
        super().__post_init__()
        owner = type(self).__name__
        for name in ("url", "model", "tokenizer", "token_env", "cache"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value.strip()):
                raise InputError(f"`{name}` must be a text with content for {owner}; got {value!r}.")
        check_url(self.url)


def check_url(url: str) -> None:
    """Refuses what is not the address of an HTTP server.

    Raises:
        InputError: Another scheme, no host, a user or password, or a query.
    """
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and parts.hostname and not (parts.query or parts.fragment)
        _ = parts.port
    except ValueError:
        fits, parts = False, urlsplit("")
    if parts.username is not None or parts.password is not None:
        raise InputError("`url` must hold no user or password; got one. Put a bearer token in the environment.")
    if not fits:
        raise InputError(f"`url` must read http://HOST:PORT or https://HOST; got {url!r}.")
