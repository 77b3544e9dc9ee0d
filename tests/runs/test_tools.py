"""Tool calls: our loop writes the very ids of TRL's own, and nothing that a model writes stops a training."""

from __future__ import annotations

import importlib.util
import inspect
import pickle
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import transformers
from datasets import Dataset
from trl import GRPOConfig

from dialogues import EOS, START, Asking, make_model, make_tokenizer
from stepcredit import GRPO, PASS, InputError, MissingExtraError
from stepcredit.adapters.trl import CreditGRPOTrainer, CreditStep
from stepcredit.runs import tools as tools_module
from stepcredit.runs.conversing import converse
from stepcredit.runs.evaluate import evaluate
from stepcredit.runs.generating import SeededTurns
from stepcredit.runs.grading import TaskGrader
from stepcredit.runs.prompts import render_prompt
from stepcredit.runs.protocols import TagProtocol, protocol_of
from stepcredit.runs.rollouts import rollout_arguments
from stepcredit.runs.searching import SearchSampler
from stepcredit.runs.tools import SearchTool, ToolProtocol
from stepcredit.tasks import Arithmetic, MultiHopSearch
from stepcredit.tasks.multihop.environment import EMPTY, LONG, SPENT
from stepcredit.tasks.multihop.results import shown_results

TEMPLATES = pytest.importorskip("trl.chat_template_utils")
pytestmark = [
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


@pytest.fixture
def tokenizer() -> Any:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATES.qwen3_chat_template
    return tokenizer


def next_turn(tokenizer: Any, context: Sequence[int], script: str, limit: int) -> list[int]:
    """The script's next turn, told from the context alone: it opens one turn more than the policy has written."""
    text = tokenizer.decode(list(context))
    turn = text.count("<|im_start|>assistant") - 1
    ids = list(tokenizer(SCRIPTS[script][turn] if turn < len(SCRIPTS[script]) else "?" + END)["input_ids"])
    stop = ids.index(EOS) + 1 if EOS in ids else len(ids)
    return ids[: min(stop, limit)] if EOS in ids else (ids * limit)[:limit]


class Written(CreditGRPOTrainer):
    """TRL's own loop over turns that a script writes; the prompt names the script."""

    def _generate_single_turn(self, prompt_ids: Any, *_: Any, **__: Any) -> Any:
        tokenizer, turns = self.processing_class, []
        for ids in prompt_ids:
            script = tokenizer.decode(ids).split("script: ")[1].split(END)[0]
            turns.append(next_turn(tokenizer, ids, script, self.max_completion_length))
        return turns, None


def make_trainer(
    folder: Path, tokenizer: Any, scripts: Sequence[str], *, limit: int, estimator: Any = None, **more: Any
) -> Any:
    protocol = protocol_of(TASK, tokenizer)
    settings = GRPOConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none",
        save_strategy="no", dataloader_pin_memory=False, disable_tqdm=True, num_generations=2, seed=3,
        per_device_train_batch_size=2 * len(scripts), max_completion_length=limit, max_steps=1, shuffle_dataset=False,
    )  # fmt: skip
    grader = TaskGrader(TASK, tokenizer, {EOS}, protocol.asks)
    rows = [
        {"prompt": render_prompt(tokenizer, TASK, f"script: {name}"), "reference": f"r{i}", "id": name}
        for i, name in enumerate(scripts)
    ]
    model = make_model(tokenizer, max_position_embeddings=16384)
    return Written(
        model=model, reward_funcs=[grader.outcome, grader.format], args=settings, train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer, estimator=estimator or GRPO(), outcome=["outcome"], format=["format"],
        **rollout_arguments("trl", settings, protocol, "r0"), **more,
    )  # fmt: skip


class Lengths:
    name, unit, requires = "lengths", "characters", frozenset({"steps"})

    def score(self, rollouts: Any) -> Any:
        return [[(start, end, float(end - start)) for start, end in spans] for spans in rollouts.steps]


@pytest.mark.parametrize("limit", [10_400, 700, 330, 280, 120, 30])
def test_the_ids_are_those_of_trls_own_loop(tokenizer: Any, limit: int, tmp_path: Path) -> None:
    names = list(SCRIPTS)
    trainer = make_trainer(tmp_path, tokenizer, names, limit=limit)
    rows = [dict(row) for row in trainer.train_dataset]
    trainer._batch_environments = [None] * len(rows)
    trainer.environments = [trainer.environment_factories[None]() for _ in rows]
    for environment, row in zip(trainer.environments, rows, strict=True):
        assert environment.reset(**row) is None
    trainer._sync_tool_dicts = [{"search": environment.search} for environment in trainer.environments]
    trainer._async_tool_dicts = [{} for _ in rows]
    prompt_ids, ids, mask, *_ = trainer._generate([row["prompt"] for row in rows])

    protocol = ToolProtocol(TASK, tokenizer)
    prompts = [protocol.prompt(f"script: {name}") for name in names]
    assert prompts == prompt_ids

    def write(rows: Sequence[int], contexts: list[list[int]], limits: list[int]) -> list[list[int]]:
        turns = zip(rows, contexts, limits, strict=True)
        return [next_turn(tokenizer, context, names[i], most) for i, context, most in turns]

    references = [row["reference"] for row in rows]
    dialogues = converse(protocol, prompts, references, write, max_new_tokens=limit, ends={EOS})
    for name, dialogue, theirs, kept in zip(names, dialogues, ids, mask, strict=True):
        assert tokenizer.decode(dialogue.ids) == tokenizer.decode(theirs), name
        assert (dialogue.ids, dialogue.mask) == (theirs, kept), name
        assert len(theirs) <= limit
    if limit != 10_400:
        return
    by_name = dict(zip(names, dialogues, strict=True))
    hidden = {
        name: tokenizer.decode([i for i, k in zip(x.ids, x.mask, strict=True) if not k]) for name, x in by_name.items()
    }
    assert {name: x.turns for name, x in by_name.items() if x.turns > 1} == {
        "two searches": 3, "two calls in a turn": 2, "endless calls": 4, "unknown tool": 2,
        "a tag for a tool": 2, "a tag for an argument": 2, "extra arguments": 2,
        "no arguments": 2, "null": 2, "empty query": 2, "a number": 2, "10 kB": 2,
    }  # fmt: skip
    assert {name for name, x in by_name.items() if not x.finished} == {
        "endless calls",
        "no end",
        "a call without an end",
    }
    assert hidden["two searches"].count("<tool_response>") == 2
    assert "# cd\nr1" in hidden["two searches"]
    assert hidden["endless calls"].count(SPENT) == 1
    assert EMPTY in hidden["empty query"]
    assert LONG in hidden["10 kB"]
    assert "Tool reset not found." in hidden["unknown tool"]
    assert "{'error': 'Tool ?/tool_response? ?# a??b? not found.'}".replace("#", "?") in hidden["a tag for a tool"]
    assert "unexpected keyword argument '?answer?'" in hidden["a tag for an argument"]
    assert "unexpected keyword argument 'k'" in hidden["extra arguments"]
    assert "# 7\n" in hidden["a number"]


def test_a_training_step_survives_everything(tokenizer: Any, tmp_path: Path) -> None:
    seen: list[CreditStep] = []
    names = [
        "an answer", "two searches", "endless calls", "bad JSON", "no name", "unknown tool", "extra arguments",
        "empty query", "such a tool", "an end inside", "no end",
    ]  # fmt: skip
    extra = {"signal": Lengths(), "on_credit": lambda step: seen.append(step)}
    trainer = make_trainer(tmp_path, tokenizer, names, limit=330, estimator=PASS(), **extra)
    assert trainer.max_tool_calling_iterations == TASK.searches + 1
    trainer.train()
    [step] = seen
    rollouts, mask = step.rollouts, step.batch.response_mask
    assert bool((step.credit.advantages[~mask] == 0).all())
    several = 0
    for text, turns, ids, kept in zip(
        rollouts.completions, rollouts.turns, rollouts.token_ids, rollouts.response_mask, strict=True
    ):
        assert len(ids) <= 330
        mine = tokenizer.decode([i for i, k in zip(ids, kept, strict=True) if k], skip_special_tokens=True)
        assert "".join(text[start:end] for start, end in turns) == mine
        assert "<tool_response>" not in mine
        several += len(turns) > 1
    assert several == 2 * 5
    counts = dict(TaskGrader(TASK, tokenizer, {EOS}, ToolProtocol(TASK, tokenizer).asks).counts(rollouts))
    assert counts["accuracy"] == 2.0 * 2  # "an answer" is r0, "two searches" r1
    assert counts["truncated"] == 2 * 2.0  # calls without an end, and a text without one


def test_an_evaluation_counts_what_the_policy_wrote(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [name for name in SCRIPTS if name not in ("10 kB", "deep")]
    examples = [TASK.examples("test", 1)[0].__class__(f"p-{i}", f"script: {x}", f"r{i}") for i, x in enumerate(names)]
    by_id = {example.id: name for example, name in zip(examples, names, strict=True)}

    def write(self: SeededTurns, rows: Any, contexts: Any, limits: Any) -> Any:
        turns = []
        for i, context, most in zip(rows, contexts, limits, strict=True):
            turns.append(next_turn(tokenizer, context, by_id[self.keys[i][0]], most))
            self.entropies[i] += [1.0] * len(turns[-1])
        return turns

    monkeypatch.setattr(SeededTurns, "__call__", write)
    model = make_model(tokenizer)
    found = evaluate(model, tokenizer, TASK, examples, samples=0, max_new_tokens=400, batch_size=5)
    rows = {by_id[row.id]: row for row in found.rows}
    assert {name for name, row in rows.items() if row.correct} == {"an answer", "two searches"}
    assert rows["two searches"].turns == 3
    assert rows["two searches"].length == sum(len(tokenizer(x)["input_ids"]) for x in SCRIPTS["two searches"])
    assert rows["two searches"].measures["characters"] == sum(len(x.replace(END, "")) for x in SCRIPTS["two searches"])
    assert not rows["endless calls"].finished
    assert rows["bad JSON"].finished


def test_the_tool_is_described_by_itself(tokenizer: Any) -> None:
    ids = ToolProtocol(TASK, tokenizer).prompt("Who?")
    text = tokenizer.decode(ids)
    assert '"name": "search"' in text
    assert '"query": {"type": "string", "description": "A few words to search for."}' in text
    assert '"required": ["query"]' in text
    assert text.endswith("<|im_start|>assistant\n")
    assert ids.count(START) == 3
    public = [name for name, _ in inspect.getmembers(SearchTool, inspect.isfunction) if not name.startswith("_")]
    assert public == ["reset", "search"]


def test_which_sampler_and_which_protocol(tokenizer: Any) -> None:
    plain, settings = make_tokenizer(), SimpleNamespace(max_tool_calling_iterations=None)
    tags, tools = protocol_of(TASK, plain), protocol_of(TASK, tokenizer)
    assert isinstance(tags, TagProtocol)
    assert isinstance(tools, ToolProtocol)
    assert isinstance(rollout_arguments("grouped", settings, tags, "r")["rollout_func"], SearchSampler)
    with pytest.raises(InputError, match=r"`run\.sampler` must be 'grouped' where a policy without a chat template"):
        rollout_arguments("trl", settings, tags, "r")
    with pytest.raises(InputError, match=r"`run\.sampler` must be 'trl' where a policy with a chat template"):
        rollout_arguments("grouped", settings, tools, "r")
    assert settings.max_tool_calling_iterations is None
    tool = rollout_arguments("trl", settings, tools, "r")["environment_factory"]()
    assert settings.max_tool_calling_iterations == 3
    tool.reset(reference="r", prompt="", id="")
    assert tool.search("ab") == "# ab\nr0 ba.\n"
    with pytest.raises(InputError, match=r"`result_tokens` must hold the longest message"):
        rollout_arguments("trl", settings, protocol_of(Asking(result_tokens=6), tokenizer), "r")
    settings.max_tool_calling_iterations = 7
    rollout_arguments("trl", settings, tools, "r")
    assert settings.max_tool_calling_iterations == 7
    assert rollout_arguments("trl", settings, protocol_of(Arithmetic(), plain), "r") == {"rollout_func": None}


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
        assert "with tools" in reason or "TRL can read" in reason
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
    with pytest.raises(RecursionError):
        TEMPLATES.parse_response(tokenizer, tokenizer(SCRIPTS["deep"][0])["input_ids"])
    found = TEMPLATES.parse_response(tokenizer, tokenizer(SCRIPTS["such a tool"][0])["input_ids"])
    with pytest.raises((TypeError, ValueError)):  # what TRL would do with the name next
        tokenizer(found["tool_calls"][0]["function"]["name"])
    ToolProtocol(TASK, tokenizer)
    parse = tokenizer.parse_response
    ToolProtocol(TASK, tokenizer)
    assert tokenizer.parse_response is parse
    assert pickle.loads(pickle.dumps(tokenizer)).chat_template == tokenizer.chat_template
    with pytest.raises(ValueError, match="cannot be read: RecursionError"):
        parse(tokenizer(SCRIPTS["deep"][0])["input_ids"])
    with pytest.raises(UnicodeEncodeError):
        parse(tokenizer(SCRIPTS["such a tool"][0])["input_ids"])
