"""From TRL's batch to ours: texts, masks, groups; tokens of tools and environments have no part in anything."""

import importlib.util
import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

import references
from adapters.independent import HighDigits, check_seen, plain_batch
from stepcredit import GRPO, PASS, SPRO, GRPOProcess
from stepcredit.adapters.trl import CreditStep, attach
from stepcredit.adapters.trl import crediting as adapter
from stepcredit.adapters.trl.rollouts import group_ids, loss_mask
from stepcredit.batch.rollouts import prompt_text
from trl_trainer import EOS, NO_CHECKPOINTING, WORDS, Ledger, generate, make_model, make_trainer, scripted


def first_digit(completions: list[str], **_: Any) -> list[float]:
    """What no environment can change."""
    return [WORDS.index(text[0]) / 10 for text in completions]


def keeps_form(completions: list[str], **_: Any) -> list[float]:
    return [float(text[0] != "7") for text in completions]


def test_groups_go_by_place_over_the_ranks() -> None:
    device = torch.device("cpu")
    assert group_ids(6, 3, 0, device).tolist() == [0, 0, 0, 1, 1, 1]
    parts = [group_ids(3, 4, rank, device).tolist() for rank in range(4)]  # a group over two ranks
    assert parts == [[0, 0, 0], [0, 1, 1], [1, 1, 2], [2, 2, 2]]
    assert group_ids(4, 1, 1, device).tolist() == [4, 5, 6, 7]


def test_the_loss_mask_leaves_out_padding_and_tools() -> None:
    output = {
        "completion_mask": torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0]]),
        "tool_mask": torch.tensor([[1, 0, 1, 1]] * 2),
    }
    assert loss_mask(output).tolist() == [[True, False, True, False], [False] * 4]
    assert loss_mask({**output, "tool_mask": None}).tolist() == [[True, True, True, False], [False] * 4]


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("1 + 1?", "1 + 1?"),
        (
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
            "c",
        ),
        ([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What"}, {"text": "?"}]}], "What?"),
        ([{"role": "system", "content": "s"}], ""),
        ([{"role": "user", "content": None}], ""),
        ([], ""),
    ],
)
def test_a_prompts_own_words(prompt: Any, text: str) -> None:
    assert prompt_text(prompt) == text


def test_an_observer_sees_the_texts_that_were_sampled(tmp_path: Path) -> None:
    ledger = Ledger()
    trainer = make_trainer(
        tmp_path, reward_funcs=ledger.watch(first_digit), extra={"rollout_func": scripted(holes=True)}
    )
    steps: list[CreditStep] = []
    attach(trainer, PASS(), signal=HighDigits(), on_credit=lambda step: steps.append(step))
    output = generate(trainer)
    rollouts, generation = steps[0].rollouts, ledger.generations[0]
    assert rollouts.prompts == ["00\n"] * 4 + ["17\n"] * 4
    assert rollouts.references == ["0"] * 4 + ["1"] * 4
    assert rollouts.completions == generation.completions
    assert rollouts.token_ids == generation.ids
    assert rollouts.group_ids == [0] * 4 + [1] * 4
    for i, ids in enumerate(generation.ids):
        assert rollouts.response_mask[i] == output["tool_mask"][i, : len(ids)].bool().tolist()
        assert rollouts.offsets[i] == [(t, t + 1 - (token == EOS)) for t, token in enumerate(ids)]
        text, mine = rollouts.completions[i], rollouts.response_mask[i]
        written = "".join(WORDS[token] for token, kept in zip(ids, mine, strict=True) if kept and token != EOS)
        assert "".join(text[start:end] for start, end in rollouts.steps[i]) == written
        assert "".join(text[start:end] for start, end in rollouts.turns[i]) == written
        assert len(rollouts.turns[i]) == sum(b > a for a, b in itertools.pairwise([False, *mine]))


def test_offsets_and_steps_are_made_for_text_signals_alone(tmp_path: Path) -> None:
    steps: list[CreditStep] = []
    attach(trainer := make_trainer(tmp_path), GRPO(), on_credit=lambda step: steps.append(step))
    generate(trainer)
    assert steps[0].rollouts.offsets is None
    assert steps[0].rollouts.steps is None


def test_steps_are_cut_as_told_and_references_are_read_where_told(tmp_path: Path) -> None:
    class Gold(HighDigits):
        def score(self, rollouts: Any) -> Any:
            assert rollouts.references == rollouts.prompts
            assert all(
                spans == [(0, len(text))] for spans, text in zip(rollouts.steps, rollouts.completions, strict=True)
            )
            return super().score(rollouts)

    whole = lambda text: [(0, len(text))]  # noqa: E731
    attach(trainer := make_trainer(tmp_path), PASS(), signal=Gold(), steps=whole, reference="prompt")
    generate(trainer)


# ---------------------------------------------------------------------------------------------- tools


@pytest.mark.parametrize("estimator", [PASS(k=0.7), GRPOProcess(fusion="separate")], ids=lambda x: x.type)
def test_credit_around_environment_tokens_is_the_loops(estimator: Any, tmp_path: Path) -> None:
    ledger = Ledger()
    trainer = make_trainer(
        tmp_path, reward_funcs=ledger.watch(first_digit, keeps_form), num_generations=8,
        extra={"rollout_func": scripted(holes=True)},
    )  # fmt: skip
    attach(trainer, estimator, signal=HighDigits(), format=["keeps_form"])
    output = generate(trainer, num_generations=8, n_prompts=1)
    masks = [row[: len(ids)] for row, ids in zip(output["tool_mask"].tolist(), ledger.generations[0].ids, strict=True)]
    assert any(0 in mask for mask in masks)
    names = {"outcome": ["first_digit"], "format": ["keeps_form"]}
    options = {"k": 0.7} if estimator.type == "pass" else {"fusion": "separate"}
    loop = references.pass_ if estimator.type == "pass" else references.grpo_process
    batch = plain_batch(ledger.generations[0], 8, masks=masks, signal=True, **names)
    assert check_seen([output], ledger.generations, lambda _: loop(batch, **options)) == 8


def turns(with_environment: bool) -> Any:
    """Rollouts of several turns; a line of one digit, which `HighDigits` says nothing about, comes from outside."""

    def rollouts(prompts: Sequence[str], trainer: Any) -> dict[str, Any]:
        ids, masks = [], []
        for i in range(len(prompts)):
            rng = random.Random(i)
            row: list[int] = []
            mask: list[int] = []
            for _ in range(rng.randint(1, 3)):
                line = [WORDS.index(rng.choice("0123456789")) for _ in range(rng.randint(2, 4))]
                row += [*line, WORDS.index("\n")]
                mask += [1] * (len(line) + 1)
                speaks = rng.random() < 0.8
                if with_environment and speaks:
                    row += [WORDS.index("9"), WORDS.index("\n")]
                    mask += [0, 0]
            ids.append([*row, EOS])
            masks.append([*mask, 1])
        prompt_ids = [trainer.processing_class(prompt)["input_ids"] for prompt in prompts]
        return {"prompt_ids": prompt_ids, "completion_ids": ids, "logprobs": None, "env_mask": masks}

    return rollouts


@pytest.mark.parametrize(
    "estimator", [GRPO(), PASS(k=0.7), GRPOProcess(fusion="separate"), SPRO(beta=0.5)], ids=lambda x: x.type
)
def test_credit_is_that_of_the_run_without_the_environments_tokens(
    estimator: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def by_token(trainer: Any, model: Any, output: dict[str, Any]) -> torch.Tensor:
        """Log-probs that depend on the token alone, so that the context does not; wild where nothing may be read."""
        sign = 1.0 if model is trainer.model else -1.0
        return torch.where(loss_mask(output), -1.0 - 0.1 * sign * output["completion_ids"], 1e6)

    monkeypatch.setattr(adapter, "token_logprobs", by_token)
    monkeypatch.setattr(adapter, "reference_logprobs", by_token)
    credit, numbers = [], []
    for with_environment in (True, False):
        trainer = make_trainer(
            tmp_path, reward_funcs=[first_digit, keeps_form], extra={"rollout_func": turns(with_environment)},
            max_completion_length=24,
        )  # fmt: skip
        signal = HighDigits() if "process_rewards" in estimator.requires else None
        attach(trainer, estimator, signal=signal, format=["keeps_form"])
        output = generate(trainer)
        trained = loss_mask(output)
        assert bool((output["advantages"][~trained] == 0).all())
        assert with_environment == bool((output["tool_mask"] == 0).any())
        credit.append([row[on].tolist() for row, on in zip(output["advantages"], trained, strict=True)])
        measured = {name: x for name, x in trainer._metrics["train"].items() if name.startswith("credit/")}
        measured.pop("credit/seconds")
        numbers.append({**measured, "logged": list(trainer._logs["advantages"])})
    assert sum(map(len, credit[1])) == int(output["completion_mask"].sum())
    assert credit[0] == [pytest.approx(row, abs=1e-6) for row in credit[1]]
    assert numbers[0].keys() == numbers[1].keys()
    for name, values in numbers[0].items():
        assert values == pytest.approx(numbers[1][name], nan_ok=True, abs=1e-6), name


CALL = '<tool_call>\n{"name": "double", "arguments": {"x": 3}}\n</tool_call>'
SPECIAL = ["<pad>", "<|im_start|>", "<|im_end|>"]


def double(x: int) -> int:
    """Doubles a number.

    Args:
        x: The number.
    """
    return 2 * x


class Scripted(GRPOTrainer):
    """Calls the tool in the first turn of every other rollout, and answers in the next."""

    def _generate_single_turn(self, prompt_ids: Any, *_: Any, **__: Any) -> Any:
        texts = [self.processing_class.decode(ids) for ids in prompt_ids]
        answers = [
            "\n6" if "<tool_response>" in text else CALL if i % 2 == 0 else f"{i}\nno" for i, text in enumerate(texts)
        ]
        return [self.processing_class(f"{answer}<|im_end|>")["input_ids"] for answer in answers], None


@pytest.mark.skipif(
    importlib.util.find_spec("jmespath") is None and tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 13),
    reason="before transformers 5.13, tool calls are parsed with jmespath",
)
def test_the_output_of_real_tools_gets_no_credit(tmp_path: Path) -> None:
    templates = pytest.importorskip("trl.chat_template_utils")
    vocabulary = [*SPECIAL, *map(chr, range(32, 127)), "\n"]
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    words.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"]
    )
    tokenizer.chat_template = templates.qwen3_chat_template
    from datasets import Dataset

    settings = {
        "use_cpu": True, "bf16": False, "report_to": "none", "per_device_train_batch_size": 4, "num_generations": 4,
        "max_completion_length": 256, **NO_CHECKPOINTING,
    }  # fmt: skip
    trainer = Scripted(
        model=make_model(vocab_size=len(vocabulary), max_position_embeddings=2048, eos_token_id=2),
        reward_funcs=[lambda completions, **_: [float(len(messages)) for messages in completions]],
        args=GRPOConfig(output_dir=str(tmp_path), **settings),
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": "3"}]}] * 4),
        processing_class=tokenizer,
        tools=[double],
    )

    class Lengths:
        name, unit, requires = "lengths", "characters", frozenset({"steps"})

        def score(self, rollouts: Any) -> Any:
            return [[(start, end, float(end - start)) for start, end in spans] for spans in rollouts.steps]

    seen: list[CreditStep] = []
    attach(trainer, PASS(), signal=Lengths(), on_credit=lambda step: seen.append(step))
    output = generate(trainer, n_prompts=1)
    rollouts = seen[0].rollouts
    outside = output["tool_mask"] == 0
    for i, text in enumerate(rollouts.completions):
        hidden = tokenizer.decode(output["completion_ids"][i][outside[i]])
        assert ("<tool_response>\n6\n</tool_response>" in hidden) == (i % 2 == 0) == ("<tool_response>" in text)
        assert "<tool_call>" not in hidden
        assert rollouts.prompts[i] == "3"
        trained = (output["completion_mask"] * output["tool_mask"])[i].bool()
        assert not output["advantages"][i][~trained].any()
        assert output["advantages"][i][trained].any()
