"""The reward manager inside verl's own: outcome alone in the score, spans on tokens, and what is refused."""

import asyncio
import json
import re
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("verl.trainer", reason="verl is not installed: nothing can run on it")

from omegaconf import OmegaConf
from tensordict import TensorDict
from verl import DataProto
from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls

from stepcredit.runs.policies import load_policy

TEXT = "a:3b:+5=8\n"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_policy("tiny-arithmetic").tokenizer


def managed(tokenizer: Any, score: Any, text: str = TEXT, estimator: str = "stepcredit_pass", **options: Any) -> Any:
    """What the manager makes of one response, as verl's reward worker calls it."""
    config = OmegaConf.create({"algorithm": {"adv_estimator": estimator, "stepcredit": options}})
    manager = get_reward_manager_cls("stepcredit")
    manager._class_initialized = False
    ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    prompt, padding = [5, 6], 3
    responses = torch.tensor([ids + [tokenizer.pad_token_id] * padding])
    attention = torch.tensor([[1] * (len(prompt) + len(ids)) + [0] * padding])
    data = DataProto(
        batch=TensorDict(
            {"prompts": torch.tensor([prompt]), "responses": responses, "attention_mask": attention}, batch_size=1
        ),
        non_tensor_batch={
            "data_source": np.array(["x"], dtype=object),
            "reward_model": np.array([{"ground_truth": "8"}], dtype=object),
            "raw_prompt": np.array([[{"role": "user", "content": "a:3\n"}], None], dtype=object)[:1],
        },
    )

    result = asyncio.run(run_single(manager, config, tokenizer, score, data))
    return result["reward_score"], result["reward_extra_info"], ids


def test_the_outcome_is_alone_in_the_score_and_the_rest_beside_it(tokenizer: Any) -> None:
    seen: dict[str, Any] = {}

    def score(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None) -> dict[str, Any]:
        seen.update(text=solution_str, truth=ground_truth)
        return {
            "score": 0.5, "format": 1, "correct": False, "extra": {"brevity": -2}, "note": "kept",
            "process": [(0, 3, 0.25), (3, len(solution_str), -1.0)],
        }  # fmt: skip

    outcome, said, ids = managed(tokenizer, score)
    assert outcome == 0.5
    assert seen == {"text": TEXT, "truth": "8"}
    package = json.loads(said["stepcredit"])
    assert package["format"] == 1.0
    assert package["correct"] is False
    assert package["extra"] == {"brevity": -2.0}
    assert said["note"] == "kept"
    assert "process" not in said and "extra" not in said  # noqa: PT018 - verl would average them
    by_token = {t: score for _, first, end, score in package["steps"] for t in range(first, end)}
    decoded = [tokenizer.decode([token], skip_special_tokens=True) for token in ids]
    want, at = {}, 0
    for t, piece in enumerate(decoded):
        want[t] = 0.25 if at + len(piece) <= 3 and at < 3 else -1.0
        at += len(piece)
    assert by_token == want  # the end of sequence belongs to the last step


def test_a_plain_number_is_an_outcome(tokenizer: Any) -> None:
    outcome, said, _ = managed(tokenizer, lambda **_: 1.0)
    assert outcome == 1.0
    assert json.loads(said["stepcredit"]) == {}


def test_a_signal_of_the_config_scores_the_steps(tokenizer: Any) -> None:
    """The calculator finds the wrong sum in the second line, cut as lines."""
    text = "1+1=2\n1+1=3\n"
    signal = {"type": "on_verl.test_rewards:Halves"}
    _, said, ids = managed(tokenizer, lambda **_: 1.0, text, signal=signal, steps="lines")
    runs = json.loads(said["stepcredit"])["steps"]
    scores = {t: score for _, first, end, score in runs for t in range(first, end)}
    assert [scores[t] for t in range(len(ids))] == [0.0] * 6 + [1.0] * 7


class Halves:
    """Scores each step by its place; for the test above, which names it in a config."""

    name, unit, requires = "halves", "place", frozenset({"steps"})

    def score(self, rollouts: Any) -> Any:
        assert rollouts.messages == [[{"role": "user", "content": "a:3\n"}]]
        assert rollouts.references == ["8"]
        return [[(start, end, float(i)) for i, (start, end) in enumerate(row)] for row in rollouts.steps]


@pytest.mark.parametrize(
    ("answer", "options", "message"),
    [
        ({"score": 1.0, "process": [(0, 99, 1.0)]}, {}, "must lie inside the completion"),
        ({"score": 1.0, "process": [(4, 6, 1.0), (0, 5, 1.0)]}, {}, "must be in order"),
        ({"score": 1.0, "process": []}, {"signal": {"type": "on_verl.test_rewards:Halves"}}, "got both"),
    ],
)
def test_what_the_manager_refuses_travels_to_the_controller(
    tokenizer: Any, answer: dict[str, Any], options: Any, message: str
) -> None:
    """Raised here, verl would drop the rollout and train on the others."""
    outcome, said, _ = managed(tokenizer, lambda **_: dict(answer), **options)
    assert outcome != outcome  # nan
    assert re.search(message, json.loads(said["stepcredit"])["failed"])


def test_so_does_what_the_reward_function_raises(tokenizer: Any) -> None:
    def score(**_: Any) -> float:
        raise ZeroDivisionError("no steps")

    _, said, _ = managed(tokenizer, score)
    assert json.loads(said["stepcredit"])["failed"] == "ZeroDivisionError: no steps"


@pytest.mark.parametrize("before", [1, 9])
def test_the_last_row_of_several_is_read_without_the_others_padding(tokenizer: Any, before: int) -> None:
    """verl pads the rows of a rollout to one width and cuts the attention mask where a single row's response begins."""
    texts = ["3+4=7\n", "5=8\n"]
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] for text in texts]
    prompts = [[5] * before, [5, 6]]
    pad = lambda ids: torch.nn.utils.rnn.pad_sequence([torch.tensor(x) for x in ids], batch_first=True)  # noqa: E731
    whole = [prompt + row for prompt, row in zip(prompts, rows, strict=True)]
    tensors = {
        "prompts": pad(prompts), "responses": pad(rows), "attention_mask": pad([[1] * len(x) for x in whole]),
        "input_ids": pad(whole),
    }  # fmt: skip
    others = {
        "data_source": ["x"] * 2, "reward_model": [{"ground_truth": "8"}] * 2,
        "prompt_len": [len(x) for x in prompts], "response_len": [len(x) for x in rows],
    }  # fmt: skip
    data = DataProto(
        batch=TensorDict(tensors, batch_size=2),
        non_tensor_batch={name: np.array(x, dtype=object) for name, x in others.items()},
    )
    seen = []

    def score(solution_str: str, **_: Any) -> dict[str, Any]:
        seen.append(solution_str)
        return {"score": 1.0, "process": [(0, len(solution_str), 0.5)]}

    config = OmegaConf.create({"algorithm": {"adv_estimator": "stepcredit_pass", "stepcredit": {}}})
    manager = get_reward_manager_cls("stepcredit")
    manager._class_initialized = False
    said = asyncio.run(run_single(manager, config, tokenizer, score, data))["reward_extra_info"]
    assert seen == [texts[1]]
    assert json.loads(said["stepcredit"])["steps"] == [[0, 0, len(rows[1]), 0.5]]


async def run_single(manager: Any, config: Any, tokenizer: Any, score: Any, data: Any) -> Any:
    """Within a running loop, which the manager takes hold of as it is made."""
    return await manager(config, tokenizer, score).run_single(data)
