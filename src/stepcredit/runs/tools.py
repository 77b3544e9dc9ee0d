"""Searching by tool calls, in the form of a policy's chat template, with the very ids of TRL's own loop."""

import json
import re
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

from stepcredit.errors import InputError, MissingExtraError
from stepcredit.runs.conversing import Dialogue, token_count
from stepcredit.runs.prompts import render_prompt
from stepcredit.tasks import MultiHopSearch, SearchTask
from stepcredit.tasks.multihop.question import render_paragraphs
from stepcredit.tasks.multihop.results import shown_paragraphs
from stepcredit.tasks.multihop.world import World

_TOOLS_SINCE = {"trl": (1, 10), "transformers": (5, 2)}  # TRL before that trained on a tool's result that did not fit
_HARMFUL = re.compile(r"[^\w .:/-]")


class SearchTool:
    """What TRL's ``environment_factory`` makes, one a rollout: the task's environment with its tool, ``search``.

    Args:
        task: Makes the environment.
        count: The length of a text in the policy's tokens.
    """

    def __init__(self, task: SearchTask, count: Callable[[str], int] | None = None) -> None:
        self._task, self._count = task, count
        self._environment: Any = None

    def reset(self, reference: str, **_: Any) -> None:
        """A new rollout."""
        self._environment = self._task.environment(reference, self._count)

    def search(self, query: str) -> str:
        """Searches an encyclopedia and shows the paragraphs that match best.

        Args:
            query: A few words to search for.

        Returns:
            The paragraphs found, or one sentence that says why there are none.
        """
        result: str = self._environment.search(query)
        return result


class ToolProtocol:
    """Calls of a tool named ``search``, in the form of the policy's chat template; the ids are those of TRL's own loop.

    A rollout's searches, and one round more in which it is told that none are left, are answered; a reply that does
    not fit ends the rollout, as in TRL. Calls of other tools, with other arguments, or that cannot be read are answered
    with an error or taken for text; none raises.

    Args:
        task: Makes the environments, whose results are measured in the policy's tokens.
        tokenizer: The policy's, with a chat template that has tools and whose calls TRL or Transformers can read. It
            is given what reads them where it has nothing of its own.

    Raises:
        InputError: The chat template has no tools, its calls cannot be read, it writes results such that the task does
            not find them again, or TRL or Transformers is too old.
        MissingExtraError: TRL is not installed; or jmespath, with which Transformers before 5.13 reads calls.
    """

    stop_ids: frozenset[int] = frozenset()
    stops = None

    def __init__(self, task: SearchTask, tokenizer: Any) -> None:
        self.task, self.tokenizer = task, tokenizer
        self._templates = _chat_templates()
        self._template = self._prepared(self._templates)
        self._count = token_count(tokenizer)
        self._tools = [SearchTool(task).search]
        self._check_results()
        self._opening = self.prompt("")  # ends in what opens a turn: all of a context that reading a turn needs

    def prompt(self, prompt: str) -> list[int]:
        """The ids of the messages, the tool's description included, and of what opens the policy's turn."""
        messages = render_prompt(self.tokenizer, self.task, prompt)
        return self._render(messages, tools=self._tools, add_generation_prompt=True)

    def environment(self, reference: str) -> SearchTool:
        """A tool for one rollout."""
        tool = SearchTool(self.task, self._count)
        tool.reset(reference)
        return tool

    def asks(self, turn: Sequence[int]) -> bool:
        """Whether the turn calls a tool."""
        return bool(self._calls(turn, self._opening))

    def reply(self, dialogue: Dialogue, turn: Sequence[int], room: int) -> list[int] | None:
        """What the calls gave, as messages of the tool, and what opens the next turn."""
        if dialogue.turns > self.task.searches:
            return None
        results = []
        for call in self._calls(turn, dialogue.context):
            name, arguments = call["function"]["name"], call["function"]["arguments"]
            results.append({"role": "tool", "name": name, "content": _called(dialogue.environment, name, arguments)})
        ids = self._suffix(results)
        return ids if len(ids) <= room else None

    def _check_results(self) -> None:
        """Refuses a chat template behind which the task would read another result than the environment gave."""
        result = render_paragraphs(World(0).paragraphs[:2])
        ids = self._suffix([{"role": "tool", "name": "search", "content": result}])
        written: str = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if isinstance(self.task, MultiHopSearch):
            known = shown_paragraphs(written) == shown_paragraphs(result)
        else:
            known = result.strip() in written
        if not known:
            raise InputError("`policy` must have a chat template that shows a tool's result as it is, its title on a "
                             f"line of its own; got {written!r:.200}.")  # fmt: skip

    def _calls(self, turn: Sequence[int], context: Sequence[int]) -> list[Any]:
        read = self._templates.parse_response
        ids = [int(x) for x in turn]
        options: dict[str, Any] = {"prefix": list(context), "tools": self._tools}
        known = read.__code__.co_varnames[: read.__code__.co_argcount]
        parsed = read(self.tokenizer, ids, **{name: x for name, x in options.items() if name in known})
        return list(parsed.get("tool_calls") or [])

    def _suffix(self, results: list[dict[str, Any]]) -> list[int]:
        """The ids behind a turn's end token: a made-up conversation rendered with and without the results."""
        call = {"type": "function", "function": {"name": results[0]["name"], "arguments": {}}}
        before = [{"role": "user", "content": "dummy"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
        prefix = self._render(before)
        whole = self._render([*before, *results], add_generation_prompt=True)
        ends = [i for i, token in enumerate(prefix) if token == self.tokenizer.eos_token_id]
        kept = ends[-1] + 1 if ends else len(prefix)
        if whole[:kept] != prefix[:kept]:
            raise InputError("`policy` must have a chat template that renders a conversation's start the same whatever "
                             "follows; got one that does not.")  # fmt: skip
        return whole[kept:]

    def _render(self, messages: Any, **options: Any) -> list[int]:
        options = {"tokenize": True, "return_dict": False, "chat_template": self._template, **options}
        return list(self.tokenizer.apply_chat_template(messages, **options))

    def _prepared(self, templates: Any) -> str | None:
        """The chat template to train with, None for the tokenizer's own; the tokenizer can read its calls after it."""
        try:
            if not templates.supports_tool_calling(self.tokenizer):
                raise InputError("`policy` must have a chat template with tools, or none at all; got one without.")
            if not any(getattr(self.tokenizer, x, None) for x in ("response_template", "response_schema")):
                templates.add_response_schema(self.tokenizer)
            whole = templates.is_chat_template_prefix_preserving(self.tokenizer)
            template = None if whole else templates.get_training_chat_template(self.tokenizer)
        except (ValueError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"`policy` must have a chat template whose tool calls TRL can read; it says: {reason}"
            ) from (error)
        harden(self.tokenizer)
        try:
            templates.parse_response(self.tokenizer, [self.tokenizer.eos_token_id])
        except ImportError:
            raise MissingExtraError("jmespath", "qa", "read the tool calls of a policy with a chat template") from None
        return template


def harden(tokenizer: Any) -> None:
    """Lets a tokenizer's `parse_response` refuse, with ValueError, every text whose calls could not be answered.

    TRL takes a turn that is refused with ValueError for plain text. But JSON a thousand brackets deep ends in a
    RecursionError, and a name with half of a surrogate pair in what no tokenizer encodes, in the middle of a step.

    The names of tools and of their arguments come back to the policy, in errors and in some templates' headings of
    results, as the environment's words. So in names only letters, digits, spaces and ``_.:/-`` are kept, and every
    other character becomes ``?``: no name can form a tag, a title or a quoted text.
    """
    if not isinstance(tokenizer.parse_response, _Parser):
        tokenizer.parse_response = _Parser(tokenizer.parse_response)


class _Parser:
    """A tokenizer's `parse_response`, hardened; a class of the module, so that the tokenizer can still be pickled."""

    def __init__(self, parse: Callable[..., Any]) -> None:
        self.parse = parse

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            parsed = self.parse(*args, **kwargs)
        except ImportError:
            raise
        except Exception as error:
            raise ValueError(f"A turn cannot be read: {type(error).__name__}: {str(error)[:200]}") from error
        for call in (parsed.get("tool_calls") if isinstance(parsed, dict) else None) or ():
            if not isinstance(call, dict) or call.get("type") != "function" or "function" not in call:
                raise ValueError("A call of a tool must be of type function.")
            json.dumps(call, ensure_ascii=False).encode()  # UnicodeEncodeError is a ValueError
            call["function"] = _plainly_named(call["function"])
        return parsed


def _plainly_named(function: Any) -> Any:
    """A function's call with harmless names in the place of its own and its arguments'."""
    if not isinstance(function, dict):
        return function
    named = dict(function)
    if isinstance(named.get("name"), str):
        named["name"] = _HARMFUL.sub("?", named["name"])
    if isinstance(named.get("arguments"), dict):
        named["arguments"] = {_HARMFUL.sub("?", str(name)): value for name, value in named["arguments"].items()}
    return named


def _called(tool: SearchTool, name: str, arguments: Any) -> str:
    """What a call gives, in TRL's words where it fails."""
    try:
        if name != "search":
            raise ValueError(f"Tool {name} not found.")
        return str(tool.search(**arguments))
    except Exception as error:  # noqa: BLE001 - whatever a model makes of a call, it is told
        return str({"error": str(error)})


def _chat_templates() -> Any:
    try:
        from trl import chat_template_utils
    except ImportError:
        raise MissingExtraError("trl", "trl", "let a policy with a chat template call tools") from None
    for name, least in _TOOLS_SINCE.items():
        if tuple(int(part) for part in version(name).split(".")[:2]) < least:
            wanted = ".".join(map(str, least))
            raise InputError(f"`{name}` must be {wanted} or newer where a policy calls tools; got {version(name)}.")
    return chat_template_utils
