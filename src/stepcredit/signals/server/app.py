"""The HTTP application: the part of vLLM's API that remote signals use, over one model."""

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal, TypeVar

from stepcredit.errors import MissingExtraError
from stepcredit.signals.server import answers
from stepcredit.signals.server.models import Model
from stepcredit.signals.server.worker import BusyError, Worker

MOST_BYTES = 64 * 2**20  # of one request
MOST_INPUTS = 1024
SLOWEST_BODY = 60.0  # seconds for a request to arrive whole
logger = logging.getLogger(__name__)
T = TypeVar("T")


class _Refused(Exception):  # noqa: N818  # an answer, not a fault of this program
    """What a request is answered with instead of numbers."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


def make_app(model: Model, *, token: str | None = None, worker: Worker | None = None) -> Any:
    """The application, as an ASGI callable.

    ``GET /health``, ``GET /v1/models``, ``POST /tokenize``, and by the model's kind ``POST /pooling`` or ``POST
    /v1/completions``. Every error is JSON as vLLM's, with a message that says what to do.

    Args:
        model: What is served.
        token: The bearer token that every request but ``/health`` must carry; None: none.
        worker: Who runs the model; one with its defaults if None. Closed when the application ends.

    Raises:
        MissingExtraError: FastAPI is not installed.
    """
    try:
        from fastapi import FastAPI, Request
        from fastapi.responses import JSONResponse, Response
        from starlette.exceptions import HTTPException
    except ImportError:
        raise MissingExtraError("fastapi", "serve", "serve a model") from None
    runner = worker or Worker(model.run)
    desk = _Desk(model, token, runner)

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(runner.close)

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(_Refused)
    async def refuse(_: Request, error: _Refused) -> JSONResponse:
        headers = {429: {"Retry-After": "1"}, 401: {"WWW-Authenticate": "Bearer"}}.get(error.status)
        return JSONResponse(answers.error_body(error.status, error.message), error.status, headers)

    @app.exception_handler(HTTPException)
    async def unknown(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(answers.error_body(error.status_code, str(error.detail)), error.status_code)

    @app.get("/health")
    async def health() -> Response:
        return Response()

    @app.get("/v1/models")
    async def models(request: Request) -> JSONResponse:
        desk.admit(request)
        return JSONResponse(answers.model_list(model.name, model.longest))

    @app.post("/tokenize")
    async def tokenize(request: Request) -> JSONResponse:
        return JSONResponse(await desk.tokenize(request))

    if model.kind == "prm":

        @app.post("/pooling")
        async def pooling(request: Request) -> JSONResponse:
            return JSONResponse(await desk.pooling(request))

    else:

        @app.post("/v1/completions")
        async def completions(request: Request) -> JSONResponse:
            return JSONResponse(await desk.completions(request))

    return app


def _requests() -> Any:
    """The shapes of requests."""
    from pydantic import BaseModel, ConfigDict, Field, StrictInt

    class Asked(BaseModel):
        model_config = ConfigDict(extra="forbid")
        model: str

    class Tokenize(Asked):
        prompt: str
        add_special_tokens: bool = True

    class Pooling(Asked):
        input: list[list[StrictInt]] | list[StrictInt]
        task: Literal["token_classify"] | None = None
        encoding_format: Literal["float"] = "float"
        use_activation: bool | None = None
        add_special_tokens: bool = True

    class Completions(Asked):
        prompt: list[list[StrictInt]] | list[StrictInt]
        max_tokens: Literal[0, 1] = 1
        prompt_logprobs: Literal[0]
        temperature: float = Field(default=1.0, ge=1.0, le=1.0)
        add_special_tokens: bool = True
        top_p: float = 1.0
        top_k: int = -1
        min_p: float = 0.0
        repetition_penalty: float = 1.0

    return Tokenize, Pooling, Completions


class _Desk:
    """Takes requests, checks them and has them answered."""

    def __init__(self, model: Model, token: str | None, worker: Worker) -> None:
        self.model, self.worker = model, worker
        self._secret = None if token is None else f"Bearer {token}".encode()
        self._tokenize, self._pooling, self._completions = _requests()
        self._tokens = max(model.tokenizer.get_vocab().values()) + 1

    def admit(self, request: Any) -> None:
        """Refuses a request without the token."""
        given = request.headers.get("authorization", "").encode("latin-1")
        if self._secret is not None and not hmac.compare_digest(given, self._secret):
            raise _Refused(401, "A bearer token is needed, and this is not it.")

    async def tokenize(self, request: Any) -> dict[str, Any]:
        """The ids of a text."""
        asked = await self._read(request, self._tokenize)
        text = asked.prompt.encode(errors="replace").decode()  # tokenizers refuse lone surrogates
        ids = self.model.tokenizer.encode(text, add_special_tokens=asked.add_special_tokens)
        return {"count": len(ids), "max_model_len": self.model.longest, "tokens": ids}

    async def pooling(self, request: Any) -> dict[str, Any]:
        """Rows of labels."""
        asked = await self._read(request, self._pooling)
        inputs = self._inputs("input", asked.input, self.model.longest)
        activation, tokens = asked.use_activation is not False, sum(map(len, inputs))
        return await self._run(inputs, lambda rows: answers.pooling(self.model.name, rows, activation, tokens))

    async def completions(self, request: Any) -> dict[str, Any]:
        """Log-probabilities of prompts."""
        asked = await self._read(request, self._completions)
        inputs = self._inputs("prompt", asked.prompt, self.model.longest - asked.max_tokens)
        return await self._run(inputs, lambda rows: answers.completions(self.model.name, inputs, rows))

    async def _read(self, request: Any, shape: type[T]) -> T:
        """The request's body, once it is admitted, whole and of the right shape."""
        from pydantic import ValidationError

        self.admit(request)
        if "json" not in request.headers.get("content-type", ""):
            raise _Refused(415, "The content type must be application/json.")
        body = bytearray()
        try:
            async with asyncio.timeout(SLOWEST_BODY):
                async for part in request.stream():
                    body += part
                    if len(body) > MOST_BYTES:
                        raise _Refused(413, f"A request may have {MOST_BYTES} bytes; send fewer inputs at a time.")
        except TimeoutError:
            raise _Refused(408, f"The request did not arrive within {SLOWEST_BODY:.0f} s.") from None
        try:
            asked = shape.model_validate_json(bytes(body))  # type: ignore[attr-defined]
        except ValidationError as error:
            faults = error.errors(include_url=False, include_input=False, include_context=False)[:3]
            told = "; ".join(f"`{'.'.join(map(str, fault['loc']))}`: {fault['msg']}" for fault in faults)
            raise _Refused(400, f"The request must have another form. {told}") from None
        if asked.model != self.model.name:
            raise _Refused(404, f"The model {asked.model!r:.100} is not served; {self.model.name!r} is.")
        return asked  # type: ignore[no-any-return]

    def _inputs(self, name: str, given: Any, longest: int) -> list[list[int]]:
        """The inputs, one or several, as rows of ids that the model can read."""
        rows: list[list[int]] = given if given and isinstance(given[0], list) else [given]
        if len(rows) > MOST_INPUTS:
            raise _Refused(400, f"`{name}` may have {MOST_INPUTS} inputs; got {len(rows)}.")
        for index, ids in enumerate(rows):
            if not 0 < len(ids) <= longest:
                raise _Refused(400, f"`{name}` must have 1 to {longest} tokens; got {len(ids)} in input {index}.")
            if not 0 <= min(ids) <= max(ids) < self._tokens:
                wrong = next(token for token in ids if not 0 <= token < self._tokens)
                raise _Refused(400, f"`{name}` must hold ids below {self._tokens}; got {wrong} in input {index}.")
        return rows

    async def _run(self, inputs: list[list[int]], told: Callable[[list[Any]], dict[str, Any]]) -> dict[str, Any]:
        """What the model gives for inputs, as an answer."""
        try:
            futures = self.worker.submit(inputs)
        except BusyError as error:
            raise _Refused(429, str(error)) from None
        try:
            rows = await asyncio.gather(*map(asyncio.wrap_future, futures))
            return await asyncio.to_thread(told, rows)
        except Exception as error:
            logger.exception("the model failed on a request of %d inputs", len(inputs))
            raise _Refused(500, f"The model failed: {type(error).__name__}: {error}"[:300]) from error
