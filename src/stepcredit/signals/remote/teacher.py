"""A teacher or base model that is served elsewhere, as a source of log-probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from stepcredit.batch.rollouts import Rollouts
from stepcredit.errors import InputError
from stepcredit.signals.remote.served import Marked, Served

if TYPE_CHECKING:  # what asks is loaded when something is asked
    from stepcredit.signals.remote.session import Session


@dataclass
class _State:
    """What a source keeps between calls."""

    session: "Session | None" = None


@dataclass(frozen=True)
class RemoteTeacher(Served):
    """Log-probabilities of sampled tokens under a causal language model behind HTTP.

    Prompts and completions are sent as token ids, to vLLM or to ``stepcredit serve --teacher``; each answer names the
    ids that it is for, and they are held to those that were sent. The teacher must have the policy's tokenizer, which
    is what ``tokenizer`` names; for another one, make its ids elsewhere and call `of_ids`.

    Attributes:
        name: What this source is called in configurations and records.
        unit: What its numbers are.
        requires: The fields of `Rollouts` that it reads.

    The options are those of `Served`.

    Example:
        >>> RemoteTeacher("http://127.0.0.1:8000", "Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-0.5B").concurrency
        4

    Reference:
        The ``prompt_logprobs`` of vLLM's completions API.
    """

    name: ClassVar[str] = "remote_teacher"
    unit: ClassVar[str] = "nats"
    requires: ClassVar[frozenset[str]] = frozenset({"prompt_ids", "token_ids"})
    _state: _State = field(init=False, repr=False, compare=False, default_factory=_State)

    def logprobs(self, rollouts: Rollouts) -> list[list[float]]:
        """The log-probability of each completion token given the prompt and the tokens before it.

        Args:
            rollouts: Must have ``prompt_ids`` and ``token_ids``.

        Returns:
            Nats, at most 0. Shape: [batch][tokens].

        Raises:
            RemoteError: The server does not answer, or its answer cannot be trusted.
            InputError: A field is missing, a prompt is empty, or a rollout is longer than the model takes.
            MissingExtraError: httpx or Transformers is not installed.

        Degenerate cases:
            - A completion without tokens has an empty row, and is not asked for.
            - No tokens in any completion: nothing is asked.
        """
        for name in sorted(self.requires):
            if getattr(rollouts, name) is None:
                raise InputError(f"`{name}` must be in the rollouts for {type(self).__name__}; got None.")
        return self.of_ids(rollouts.prompt_ids or [], rollouts.token_ids or [])

    def of_ids(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> list[list[float]]:
        """`logprobs` of completions given as the served model's own token ids.

        Args:
            prompts: The ids before each completion, at least one. Shape: [batch][any].
            completions: The ids to score. Shape: [batch][tokens].
        """
        inputs: list[Marked] = []
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            if completion and not prompt:
                raise InputError(
                    f"`prompt_ids` must hold a token in every row; got none in row {row}. Begin with the token that "
                    "begins a text, as a first one has no probability."
                )
            inputs.append(([*prompt, *completion], range(len(prompt), len(prompt) + len(completion))))
        if not any(completions):
            return [[] for _ in inputs]
        return self.session().numbers(inputs)

    def session(self) -> "Session":
        """The connection to the server, opened at the first call; nothing is asked yet."""
        from stepcredit.signals.remote.questions import TokenLogProbs
        from stepcredit.signals.remote.session import PROBE_TEXT, Session
        from stepcredit.signals.remote.tokenizers import load_tokenizer

        if self._state.session is None:
            tokenizer = load_tokenizer(self.tokenizer)
            text = tokenizer.encode(PROBE_TEXT, add_special_tokens=False)
            both = (text, text[::-1][: len(text) // 2 + 1])
            self._state.session = Session(
                self, TokenLogProbs(self.model), ((both[0], range(1, len(both[0]))), (both[1], range(1, len(both[1])))),
                encode=lambda text: tokenizer.encode(text, add_special_tokens=False),
            )  # fmt: skip
        return self._state.session
