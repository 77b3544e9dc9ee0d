"""The ways in which a policy talks to an environment: not at all, by tags in its text, or by calling a tool."""

from collections.abc import Callable, Sequence
from typing import Any

from stepcredit.errors import InputError
from stepcredit.runs.conversing import Dialogue, TurnProtocol, token_count
from stepcredit.runs.prompts import encode_prompt
from stepcredit.runs.tools import ToolProtocol
from stepcredit.tasks import SearchTask, Task
from stepcredit.tasks.multihop.environment import INFORMATION, INFORMATION_END, MESSAGES, SEARCH, SEARCH_END


def protocol_of(task: Task, tokenizer: Any) -> TurnProtocol:
    """How a policy with this tokenizer talks in this task.

    Raises:
        InputError: The task searches, and the tokenizer has neither what tags nor what tool calls need.
        MissingExtraError: The task searches by tool calls, and TRL is not installed.
    """
    if not isinstance(task, SearchTask):
        return OneTurn(task, tokenizer)
    return (ToolProtocol if getattr(tokenizer, "chat_template", None) else TagProtocol)(task, tokenizer)


class OneTurn:
    """A task without an environment: the first turn is the completion."""

    stop_ids: frozenset[int] = frozenset()
    stops = None

    def __init__(self, task: Task, tokenizer: Any) -> None:
        self.task, self.tokenizer = task, tokenizer

    def prompt(self, prompt: str) -> list[int]:
        """The ids of `encode_prompt`."""
        return encode_prompt(self.tokenizer, self.task, prompt)

    def environment(self, _reference: str) -> None:
        """Nothing answers."""

    def asks(self, _turn: Sequence[int]) -> bool:
        """Never."""
        return False

    def reply(self, _dialogue: Dialogue, _turn: Sequence[int], _room: int) -> None:
        """There is none."""


class TagProtocol:
    r"""Tags in plain text, for policies without a chat template.

    The policy writes ``<search>query</search>``, which ends its turn; the environment appends
    ``\n<information>\n...\n</information>\n``, and the policy goes on behind it.

    Args:
        task: Makes the environments, whose results are measured in the policy's tokens.
        tokenizer: The policy's. Where ``</search>`` is one token that token ends a turn, else the text does.

    Raises:
        InputError: A tag, or a message of the environment, does not come back from the tokenizer's ids as it was.
    """

    def __init__(self, task: SearchTask, tokenizer: Any) -> None:
        self.task, self.tokenizer = task, tokenizer
        for text in (SEARCH, SEARCH_END, INFORMATION, INFORMATION_END, *MESSAGES):
            back = self._text(self._ids(text))
            if back.split() != text.split():
                raise InputError(
                    f"`policy` must have a tokenizer that holds {text!r}, and not as a special token; got {back!r} "
                    "back from its ids."
                )
        ids = self._ids(SEARCH_END)
        self.stop_ids = frozenset(ids if len(ids) == 1 else ())
        self._count = token_count(tokenizer)
        self._closers: dict[int, bool] = {}  # whether the text of an id can complete the stop
        special = (id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special)
        self._unwritten = frozenset((*special, *tokenizer.all_special_ids))

    @property
    def stops(self) -> Callable[[Sequence[int]], bool] | None:
        """Looks for ``</search>`` in the text where no token is it."""
        return None if self.stop_ids else self._stops

    def prompt(self, prompt: str) -> list[int]:
        """The ids of `encode_prompt`."""
        return encode_prompt(self.tokenizer, self.task, prompt)

    def environment(self, reference: str) -> Any:
        """The task's, counting tokens."""
        return self.task.environment(reference, self._count)

    def asks(self, turn: Sequence[int]) -> bool:
        """Whether the turn ends in ``</search>``."""
        return turn[-1] in self.stop_ids if self.stop_ids else self._stops(turn)

    def reply(self, dialogue: Dialogue, turn: Sequence[int], room: int) -> list[int] | None:
        """The observation, such that the policy has room for at least one token behind it."""
        observation = dialogue.environment.reply(self._text(turn), room - 1)
        ids = [] if observation is None else self._ids(observation)
        return ids if 0 < len(ids) < room else None

    def _stops(self, turn: Sequence[int]) -> bool:
        last = int(turn[-1])
        if last not in self._closers:
            self._closers[last] = SEARCH_END[-1] in self._text([last])
        if not self._closers[last]:
            return False
        # Special tokens are left out of the text, amid a tag too. Of the others each writes at least one byte, so that
        # a tag that the last one completes lies in this many of them.
        written = [x for x in map(int, turn) if x not in self._unwritten]
        return SEARCH_END in self._text(written[-len(SEARCH_END) :])

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(
            [int(x) for x in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text
