"""Runs the application on a socket until it is told to stop."""

import ipaddress
import os
import signal
import socket
from collections.abc import Callable
from typing import Any

from stepcredit.errors import InputError, MissingExtraError

GRACE = 30  # seconds that requests under way get when the server is told to stop


def bind(host: str, port: int, token: str | None) -> socket.socket:
    """A socket that does not listen yet, so that a taken port is known before a model is loaded.

    Args:
        host: A name or an address.
        port: 0 for any that is free.
        token: The bearer token that requests must carry, if any.

    Raises:
        InputError: A host beyond this machine without a token, or a port out of range.
        OSError: The address is not free, or not this machine's.
    """
    if not 0 <= port < 2**16:
        raise InputError(f"`--port` must be 0 to 65535; got {port}.")
    if token is None and not _loopback(host):
        raise InputError(
            f"`--host` must be this machine's own (127.0.0.1) without a token; got {host!r}. Name the environment "
            "variable that holds a token with --token-env."
        )
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, protocol)
    except OSError as error:
        raise OSError(error.errno, f"cannot serve at {host}: {error.strerror}") from None
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        made.close()
        raise OSError(error.errno, f"cannot serve at {host}:{port}: {error.strerror}") from None
    return made


def address(made: socket.socket) -> str:
    """The URL of a bound socket."""
    host, port = made.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def token_of(variable: str | None) -> str | None:
    """The token that an environment variable holds.

    Raises:
        InputError: It holds none, or one of fewer than 16 characters.
    """
    if variable is None:
        return None
    token = os.environ.get(variable, "").strip()
    if len(token) < 16 or not token.isascii() or not token.isprintable() or " " in token:
        raise InputError(
            f"`--token-env` must name a variable with at least 16 printable characters; got {len(token)} in "
            f"{variable}. Make one with: python -c 'import secrets; print(secrets.token_urlsafe())'"
        )
    return token


def run(app: Any, made: socket.socket, ready: Callable[[], None]) -> None:
    """Serves until SIGINT or SIGTERM; then requests under way are finished, for at most 30 s.

    Args:
        app: From `make_app`.
        made: From `bind`.
        ready: Called when requests are answered.

    Raises:
        MissingExtraError: uvicorn is not installed.
    """
    try:
        import uvicorn
    except ImportError:
        raise MissingExtraError("uvicorn", "serve", "serve a model") from None

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                ready()

    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=GRACE, lifespan="on"
    )
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn sends its signal on once it has shut down
    try:
        Server(config).run(sockets=[made])
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
        made.close()


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
