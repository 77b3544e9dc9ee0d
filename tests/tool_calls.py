"""What a policy may write where it can call tools, turn by turn, and what has to be installed for it."""

import importlib.util
from importlib.metadata import version
from typing import Any

import pytest
import transformers

from dialogues import Asking, make_tokenizer

TEMPLATES = pytest.importorskip("trl.chat_template_utils")
BY_TEMPLATE = getattr(TEMPLATES, "_SUPPORTS_RESPONSE_TEMPLATE", False)
"""From transformers 5.13 on, TRL reads calls by a template of the response, for which it needs what was before."""
NEEDED = [
    pytest.mark.skipif(
        tuple(map(int, version("trl").split(".")[:2])) < (1, 10), reason="before TRL 1.10, tools are refused"
    ),
    pytest.mark.skipif(
        importlib.util.find_spec("jmespath") is None
        and tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 13),
        reason="before transformers 5.13, tool calls are parsed with jmespath",
    ),
]

TASK = Asking(searches=2, result_tokens=60)
END = "<|im_end|>"
DEEP = "[" * 1500


def call(arguments: str, name: str = '"search"') -> str:
    return f'<tool_call>\n{{"name": {name}, "arguments": {arguments}}}\n</tool_call>'


SCRIPTS = {  # what the policy writes, turn by turn
    "an answer": ["<answer>r0</answer>" + END],
    "two searches": [call('{"query": "ab"}') + END, "so " + call('{"query": "cd"}') + END, "<answer>r1</answer>" + END],
    "two calls in a turn": [call('{"query": "ab"}') + "\n" + call('{"query": "cd"}') + END, "x" + END],
    "endless calls": [call(f'{{"query": "{c}"}}') + END for c in "abcdefgh"],
    "bad JSON": [call('{"query": ') + END, "never"],
    "not an object": ["<tool_call>\n[1, 2]\n</tool_call>" + END],
    "no name": ['<tool_call>\n{"arguments": {"query": "ab"}}\n</tool_call>' + END],
    "a name that is none": [call('{"query": "ab"}', name="7") + END],
    "unknown tool": [call('{"query": "ab"}', name='"reset"') + END, "x" + END],
    "a tag for a tool": [call("{}", name='"</tool_response> \\n# a\\n\\"b\\""') + END, "x" + END],
    "a tag for an argument": [call('{"<answer>": 1}') + END, "x" + END],
    "extra arguments": [call('{"query": "ab", "k": 9}') + END, "x" + END],
    "no arguments": [call("{}") + END, "x" + END],
    "arguments in a list": [call('["ab"]') + END, "x" + END],
    "arguments in a text": [call('"ab"') + END, "x" + END],
    "null": [call("null") + END, "x" + END],
    "empty query": [call('{"query": " "}') + END, "x" + END],
    "a number": [call('{"query": 7}') + END, "x" + END],
    "10 kB": [call('{"query": "%s"}' % ("ab " * 3400)) + END, "x" + END],
    "half a surrogate pair": [call('{"query": "\\ud800"}') + END, "x" + END],
    "such a tool": [call("{}", name='"\\ud800"') + END, "x" + END],
    "such an argument": [call('{"\\udfff": 1}') + END, "x" + END],
    "an end inside": [call('{"query": "a"}', name=f'"{END}"') + END, "x" + END],
    "deep": [f"<tool_call>\n{DEEP}\n</tool_call>" + END],
    "never closed": ["<tool_call>\n" + END],
    "the environment's own tags": ["</tool_response><search>a</search>" + END],
    "nothing": [END],
    "no end": ["abc" * 10],
    "a call without an end": [call('{"query": "ab"}'), "x" + END],
}


def make_calling_tokenizer() -> Any:
    """A token a character, with the chat template of Qwen3."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATES.qwen3_chat_template
    return tokenizer
