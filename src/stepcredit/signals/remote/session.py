"""Asks a served model for numbers: only what the cache lacks, after a handshake, several requests at a time."""

from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from threading import Event
from typing import Any, Protocol

from stepcredit.errors import InputError
from stepcredit.signals.remote import wire
from stepcredit.signals.remote.cache import Cache, Key, content_key
from stepcredit.signals.remote.http import Client
from stepcredit.signals.remote.served import Marked, RemoteError, Served

PROBE_TEXT = "Step 1: 12 + 30.5 = 42.5, so  x² < ½.\n\n第一步:\tvoilà, \\boxed{42}! 🦆"
FORMAT = 1  # of the keys: what is kept under one stays the same numbers


class Question(Protocol):
    """What is asked for each input, and how its answer is read."""

    path: str

    @property
    def identity(self) -> Mapping[str, Any]:
        """All that decides the numbers beside the input itself."""
        ...

    def body(self, inputs: Sequence[Marked]) -> dict[str, Any]:
        """The JSON of a request for these inputs."""
        ...

    def read(self, answer: dict[str, Any], inputs: Sequence[Marked], where: str) -> list[list[float]]:
        """A number for each mark of each input, verified; raises RemoteError."""
        ...


@dataclass
class Session:
    """One served model, and what is known of it.

    Attributes:
        served: Where it is.
        question: What is asked of it.
        probes: Two different inputs that it is tried on.
        encode: Text to ids with the local tokenizer, without special tokens.
        longest: The most tokens of an input that a request will have; None: as many as the server takes, less one.
    """

    served: Served
    question: Question
    probes: tuple[Marked, Marked]
    encode: Callable[[str], Sequence[int]]
    longest: int | None = None
    client: Client = field(init=False)
    cache: Cache | None = field(init=False)
    limit: int | None = field(init=False, default=None)
    trusted: bool = field(init=False, default=False)
    listed_before: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        """Opens the cache and the client; asks nothing."""
        self.cache = None if self.served.cache is None else Cache(self.served.cache)
        self.client = Client(self.served)

    def numbers(self, inputs: Sequence[Marked]) -> list[list[float]]:
        """A number for each mark of each input, in order.

        Equal inputs are asked for once, and one without marks not at all.
        What was answered before a failure is in the cache, if there is one.

        Raises:
            RemoteError: No answer, or one that cannot be trusted.
            InputError: An input is longer than the model takes; or the cache holds another model's numbers.
        """
        identity = {"format": FORMAT, **self.question.identity}
        keys = [content_key(identity, *pair) for pair in inputs]
        marked = {key: pair for key, pair in zip(keys, inputs, strict=True) if len(pair[1])}
        known = self.cache.take({key: len(marks) for key, (_, marks) in marked.items()}) if self.cache else {}
        left = {key: pair for key, pair in marked.items() if key not in known}
        if left:
            if not self.trusted:
                self.handshake()
            self._check_lengths(inputs)
            known |= self._asked(sorted(left.items(), key=lambda item: len(item[1][0]), reverse=True))
        return [known[key] if key in marked else [] for key in keys]

    def handshake(self) -> float:
        """Tries the server on what is known, before its numbers are used for anything.

        It must list the model, take the longest input, make the local tokenizer's ids of a text, and give the same
        numbers for an input that stands first in a request and last in another.

        Returns:
            The largest difference between those two answers.

        Raises:
            RemoteError: It does not.
            InputError: ``max_length`` is more than the model takes; or the cache holds another model's numbers.
        """
        self.limit = self.listed()
        self.check_tokenizer()
        first, last = self.probes
        before, after = self.ask([first, last]), self.ask([last, first])
        apart = max(_apart(before[0], after[1]), _apart(before[1], after[0]))
        if apart > self.served.tolerance:
            raise RemoteError(
                f"`url` must answer the same wherever an input stands in a request; got numbers {apart:.3g} apart from "
                f"{self.client.url}, with a `tolerance` of {self.served.tolerance:g}."
            )
        self._check_cached_model(before)
        self.trusted = True
        return apart

    def listed(self) -> int | None:
        """The most tokens that the model takes, from the server's list; None where it doesn't say.

        Raises:
            RemoteError: The model is not in the list.
            InputError: ``longest`` is more than that.
        """
        models = wire.model_lengths(self.client.ask("/v1/models"), f"{self.client.url}/v1/models")
        if self.served.model not in models:
            names = ", ".join(map(repr, list(models)[:5])) or "no model"
            raise RemoteError(
                f"`model` must be served at {self.client.url}, which lists {names}; got {self.served.model!r}."
            )
        limit = models[self.served.model]
        if self.longest is not None and limit is not None and self.longest > limit:
            raise InputError(
                f"`max_length` must be <= the {limit} tokens that {self.client.url} takes; got {self.longest}."
            )
        return limit

    def longest_input(self) -> int | None:
        """The most tokens of an input where nothing is to be generated: asked of the server once, if nobody said."""
        if self.longest is None and not self.listed_before:
            self.longest, self.listed_before = self.listed(), True
        return self.longest

    def check_tokenizer(self) -> None:
        """Raises RemoteError unless the server makes the same ids of a text as the local tokenizer."""
        body = {"model": self.served.model, "prompt": PROBE_TEXT, "add_special_tokens": False}
        where = f"{self.client.url}/tokenize"
        theirs, _ = wire.token_ids(self.client.ask("/tokenize", body), where)
        ours = list(self.encode(PROBE_TEXT))
        if theirs != ours:
            at = next((i for i, pair in enumerate(zip(theirs, ours, strict=False)) if pair[0] != pair[1]), None)
            at = min(len(theirs), len(ours)) if at is None else at
            fact = f"{theirs[at : at + 3]} from {where} for {ours[at : at + 3]} at token {at}"
            raise RemoteError(f"`tokenizer` must be that of the served model ({self.served.tokenizer!r}); got {fact}.")

    def ask(self, inputs: Sequence[Marked]) -> list[list[float]]:
        """One request for all inputs, past the cache."""
        answer = self.client.ask(self.question.path, self.question.body(inputs))
        return self.question.read(answer, inputs, f"{self.client.url}{self.question.path}")

    def _asked(self, left: Sequence[tuple[Key, Marked]]) -> dict[Key, list[float]]:
        """The numbers of inputs that the cache lacks; each answer is kept when it comes."""
        size = self.served.inputs_per_request
        groups = [left[first : first + size] for first in range(0, len(left), size)]
        found: dict[Key, list[float]] = {}
        with (
            self.cache.keeper() if self.cache else nullcontext(found.update) as keep,
            closing(self._answers([[pair for _, pair in group] for group in groups])) as answers,
        ):
            for index, rows in answers:
                known = {key: row for (key, _), row in zip(groups[index], rows, strict=True)}
                found |= known
                keep(known)
        return found

    def _answers(self, groups: Sequence[Sequence[Marked]]) -> Generator[tuple[int, list[list[float]]]]:
        """Answers as they come, with the index of their group; after a failure those under way, then the failure."""
        fault: Exception | None = None
        failed = Event()

        def ask(group: Sequence[Marked]) -> list[list[float]] | None:
            if failed.is_set():  # nothing more is begun
                return None
            try:
                return self.ask(group)
            except BaseException:
                failed.set()
                raise

        with ThreadPoolExecutor(min(self.served.concurrency, len(groups))) as pool:
            asked = {pool.submit(ask, group): index for index, group in enumerate(groups)}
            try:
                for future in as_completed(asked):
                    error = future.exception()
                    if error is not None:
                        fault = fault or (error if isinstance(error, Exception) else RuntimeError(repr(error)))
                    elif (rows := future.result()) is not None:
                        yield asked[future], rows
            finally:
                failed.set()
        if fault is not None:
            raise fault

    def _check_lengths(self, inputs: Sequence[Marked]) -> None:
        room = self.longest or (None if self.limit is None else self.limit - 1)  # one token is always generated
        for row, (ids, marks) in enumerate(inputs):
            if len(marks) and room is not None and len(ids) > room:
                raise InputError(
                    f"`rollouts` must have at most {room} tokens for {self.served.model!r}, prompts included; got "
                    f"{len(ids)} in row {row}. Serve the model with a longer context."
                )

    def _check_cached_model(self, probed: Sequence[Sequence[float]]) -> None:
        """Refuses a cache that was filled by other weights under the same name: their probes differ."""
        if self.cache is None:
            return
        identity = {"format": FORMAT, "probe": True, **self.question.identity}
        now = {content_key(identity, *pair): list(row) for pair, row in zip(self.probes, probed, strict=True)}
        kept = self.cache.take({key: len(row) for key, row in now.items()})
        apart = max((_apart(row, kept[key]) for key, row in now.items() if key in kept), default=0.0)
        if apart > self.served.tolerance:
            raise InputError(
                f"`cache` must hold numbers of the model that is served; {self.served.cache!r} has some {apart:.3g} "
                f"away from {self.served.model!r} at {self.client.url}. Give another file, or remove this one."
            )
        self.cache.keep({key: row for key, row in now.items() if key not in kept})


def _apart(one: Sequence[float], other: Sequence[float]) -> float:
    return max((abs(x - y) for x, y in zip(one, other, strict=True)), default=0.0)
