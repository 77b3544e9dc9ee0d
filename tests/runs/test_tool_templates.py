"""Which chat templates let a policy search by tool calls: those whose calls are read and whose results are found."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

from dialogues import make_tokenizer
from stepcredit import InputError, MissingExtraError
from stepcredit.runs import tools as tools_module
from stepcredit.runs.tools import ToolProtocol
from stepcredit.tasks import MultiHopSearch
from stepcredit.tasks.multihop.results import shown_results
from tool_calls import BY_TEMPLATE, NEEDED, SCRIPTS, TASK, TEMPLATES, make_calling_tokenizer

pytestmark = NEEDED


@pytest.fixture
def tokenizer() -> Any:
    return make_calling_tokenizer()


def test_what_cannot_call_tools_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(InputError, match="`policy` must have a chat template with tools"):
        ToolProtocol(TASK, tokenizer)
    tokenizer.chat_template = TEMPLATES.qwen3_chat_template + " "
    with pytest.raises(InputError, match="whose tool calls TRL can read; it says: Unrecognized chat template"):
        ToolProtocol(TASK, tokenizer)

    tokenizer.chat_template = TEMPLATES.qwen3_chat_template
    found = tools_module.version
    for name, old in (("trl", "1.9.2"), ("transformers", "5.1.0")):
        monkeypatch.setattr(
            tools_module, "version", lambda asked, name=name, old=old: old if asked == name else found(asked)
        )
        with pytest.raises(InputError, match=f"`{name}` must be .* or newer where a policy calls tools; got {old}"):
            ToolProtocol(TASK, tokenizer)
    monkeypatch.setattr(tools_module, "version", found)

    def needs_more(*_: Any, **__: Any) -> Any:
        raise ImportError("jmespath is not installed")

    with monkeypatch.context() as patch:
        patch.setattr(TEMPLATES, "parse_response", needs_more)
        with pytest.raises(MissingExtraError, match="`jmespath` is needed to read the tool calls"):
            ToolProtocol(TASK, tokenizer)
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(MissingExtraError, match="`trl` is needed to let a policy with a chat template call tools"):
        ToolProtocol(TASK, tokenizer)


FOLDER = Path(TEMPLATES.__file__).parent / "chat_templates"
WRITE_JSON = {"llama3_1", "llama3_2", "gptoss"}
WRITE_AHEAD = {"gemma4", "gemma4_v2", "gemma4_v3", "gemma4_v4", "gemma4_v5", "lfm2_v2"}
"""They open a result with words of their own, on the line of the first title, which is then found no more."""
SHIPPED = sorted(path.stem for path in FOLDER.glob("*.jinja") if not path.stem.endswith("_training"))


@pytest.mark.parametrize("template", SHIPPED)
def test_a_result_is_found_again_behind_every_template_that_trl_ships(template: str) -> None:
    tokenizer, task = make_tokenizer(), MultiHopSearch(searches=2, k=2)
    tokenizer.chat_template = (FOLDER / f"{template}.jinja").read_text()
    try:
        protocol = ToolProtocol(task, tokenizer)
    except InputError as refused:
        protocol, reason = None, str(refused)
    if protocol is None:
        ahead = "a tool's result as it is" in reason and template in WRITE_AHEAD
        assert ahead or "with tools" in reason or "TRL can read" in reason
        assert template not in {*WRITE_JSON, "qwen2_5", "qwen3", "qwen3_instruct_2507", "glm4moe"}
        return
    environment = task.environment(task.examples("test", 1)[0].reference)
    names = ("Oslo", "Metalis", "Besna", "", "Mirel")  # nothing, two paragraphs, two, an empty query, no search left
    results = [{"role": "tool", "name": "search", "content": environment.search(name)} for name in names[1:]]
    for some in (results[:1], results[:2], results):
        written = tokenizer.decode(protocol._suffix(some), skip_special_tokens=True)
        found = shown_results(written)
        assert [len(paragraphs) for paragraphs in found] == [2, 2][: len(some)]
        for paragraphs, result in zip(found, some, strict=False):
            assert "".join(f"# {title}\n{text}\n" for title, text in paragraphs) == result["content"]
    if template in WRITE_JSON:
        with pytest.raises(InputError, match="shows a tool's result as it is, its title on a line of its own; got '"):
            ToolProtocol(TASK, tokenizer)  # whose grader is not known to read JSON
    else:
        ToolProtocol(TASK, tokenizer)


@pytest.mark.parametrize(
    "shown",
    ["{{- content | replace('\\n', ' ') }}", "{{- content | replace('The', 'the') }}", "{{- '<result>' + content }}"],
)
@pytest.mark.parametrize("task", [TASK, MultiHopSearch()], ids=lambda task: task.name)
def test_a_template_that_changes_results_is_refused(shown: str, task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, shipped = make_tokenizer(), TEMPLATES.qwen3_training_chat_template
    place = "{{- '\\n<tool_response>\\n' }}\n        {{- content }}"
    assert shipped.count(place) == 1
    tokenizer.chat_template = shipped.replace(place, place.replace("{{- content }}", shown))
    monkeypatch.setattr(TEMPLATES, "qwen3_chat_template", tokenizer.chat_template)  # its calls can be read
    if task is TASK and "<result>" in shown:
        ToolProtocol(task, tokenizer)  # the text is there as it is
        return
    with pytest.raises(InputError, match="must have a chat template that shows a tool's result as it is"):
        ToolProtocol(task, tokenizer)


def test_hardening_is_needed_and_once_is_enough(tokenizer: Any) -> None:
    TEMPLATES.add_response_schema(tokenizer)
    before = {"prefix": tokenizer("<|im_start|>assistant\n")["input_ids"]} if BY_TEMPLATE else {}
    with pytest.raises(RecursionError):
        TEMPLATES.parse_response(tokenizer, tokenizer(SCRIPTS["deep"][0])["input_ids"], **before)
    found = TEMPLATES.parse_response(tokenizer, tokenizer(SCRIPTS["such a tool"][0])["input_ids"], **before)
    with pytest.raises((TypeError, ValueError)):  # what TRL would do with the name next
        tokenizer(found["tool_calls"][0]["function"]["name"])
    ToolProtocol(TASK, tokenizer)
    parse = tokenizer.parse_response
    ToolProtocol(TASK, tokenizer)
    assert tokenizer.parse_response is parse
    assert pickle.loads(pickle.dumps(tokenizer)).chat_template == tokenizer.chat_template
    with pytest.raises(ValueError, match="cannot be read: RecursionError"):
        parse(tokenizer(SCRIPTS["deep"][0])["input_ids"], **before)
    with pytest.raises(UnicodeEncodeError):
        parse(tokenizer(SCRIPTS["such a tool"][0])["input_ids"], **before)
