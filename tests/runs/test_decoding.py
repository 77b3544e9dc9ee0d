"""Going on through the layers in place against plain forwards of the whole text and Transformers' own `generate`."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
from trl.trainer.utils import add_fused_lm_head

from stepcredit.config import build_task
from stepcredit.runs import decoding
from stepcredit.runs.decoding import ThroughLayers, ThroughModel, read, steps_through_layers
from stepcredit.runs.policies import load_policy
from stepcredit.runs.writing import write

PROMPTS = [[4], [7, 8, 9, 2, 6, 3, 5, 5, 1], [5, 6], [3] * 7]
OF_ROW = torch.tensor([0, 0, 1, 2, 3, 3])
SHAPE = {
    "vocab_size": 11, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 40, "max_position_embeddings": 96, "initializer_range": 0.4, "attention_dropout": 0.0,
    "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
ROPES = {
    "default": {"rope_type": "default", "rope_theta": 100.0},
    "linear": {"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0},
    "yarn": {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 24},
}


def llama(**options: Any) -> Any:
    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(**SHAPE | {"attention_bias": True, "head_dim": 10} | options)).eval()


def qwen(**options: Any) -> Any:
    torch.manual_seed(2)
    model = Qwen2ForCausalLM(Qwen2Config(**SHAPE | {"tie_word_embeddings": True} | options)).eval()
    for layer in model.model.layers:  # they begin at 0
        torch.nn.init.normal_(layer.self_attn.k_proj.bias)
    return model


def alone(model: Any, text: list[int]) -> torch.Tensor:
    """The logits behind a text, by one plain forward of it."""
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([text]), use_cache=False).logits
    return logits[0, -1]


def check(model: Any, tolerance: float, *, prompts: list[list[int]] = PROMPTS, steps: int = 20) -> Any:
    """Reads the prompts, goes on with fixed tokens and drops rows on the way; each row is compared at each token."""
    texts = [list(prompts[i]) for i in OF_ROW.tolist()]
    tokens = torch.randint(2, 11, (steps, len(texts)), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, reading = read(model, prompts, OF_ROW, room=steps, pad_id=0)
        rows = list(range(len(texts)))
        for step in range(steps):
            for i, found in zip(rows, logits, strict=True):
                torch.testing.assert_close(found, alone(model, texts[i]), rtol=0, atol=tolerance)
            if step in (3, 11):
                kept = [4, 1, 2, 0] if step == 3 else [2, 0]
                reading.keep(torch.tensor(kept))
                rows = [rows[i] for i in kept]
            logits = reading.next(tokens[step, rows])
            for i in rows:
                texts[i].append(int(tokens[step, i]))
    return reading


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("make", [llama, qwen])
def test_the_logits_are_those_of_plain_forwards(make: Any, rope: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_ROOM", 2)  # so that the buffers grow
    model = make(rope_parameters=ROPES[rope]).double()
    tolerance = 1e-5  # a norm of Transformers is in float32, whatever the model; nats
    assert isinstance(check(model, tolerance), ThroughLayers)
    assert isinstance(check(model, tolerance, prompts=[[4, 5], [6, 7], [8, 9], [2, 3]]), ThroughLayers)  # no padding


@pytest.mark.parametrize("make", [llama, qwen])
def test_in_single_precision_they_differ_by_rounding(make: Any) -> None:
    assert isinstance(check(make(), 2e-4), ThroughLayers)


def lora() -> Any:
    model = get_peft_model(qwen(), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    torch.nn.init.normal_(model.base_model.model.model.layers[0].self_attn.q_proj.lora_B["default"].weight)
    return model.eval()


def hooked() -> Any:
    model = llama()
    model.model.layers[1].register_forward_hook(lambda _module, _inputs, output: output * 1.5)
    return model


def replaced() -> Any:
    class Twice(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    model = llama()
    model.model.layers[0].mlp.up_proj = Twice(24, 40)
    return model


def namesake() -> Any:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = LlamaForCausalLM.forward(self, *args, **kwargs)
        found.logits = found.logits / 4
        return found

    kind = type("LlamaForCausalLM", (LlamaForCausalLM,), {"forward": forward, "__module__": "somebody.else"})
    model = llama()
    model.__class__ = kind
    return model


def patched_under_trls() -> Any:
    model = llama()
    own = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        found = own(*args, **kwargs)
        found.logits = found.logits * 3
        return found

    model.forward = forward
    add_fused_lm_head(model, temperature=0.7)
    return model


def patched(part: str) -> Any:
    model = llama()
    target = model.get_submodule(part)
    own = target.forward
    target.forward = lambda *args, **kwargs: own(*args, **kwargs)
    return model


OTHERS: dict[str, Callable[[], Any]] = {
    "an adapter": lora,
    "a hook": hooked,
    "a replaced part": replaced,
    "a patched forward": lambda: patched(""),
    "a patched forward under TRL's": patched_under_trls,
    "another class of the same name": namesake,
    "a patched layer": lambda: patched("model.layers.2.self_attn"),
    "eager attention": lambda: llama(attn_implementation="eager"),
    "a sliding window": lambda: qwen(use_sliding_window=True, sliding_window=4, max_window_layers=1),
    "a rope of the length": lambda: llama(
        rope_parameters={"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0}, max_position_embeddings=96
    ),
}


@pytest.mark.parametrize("other", OTHERS)
def test_what_the_layers_alone_do_not_say_is_the_models_to_compute(other: str) -> None:
    model = OTHERS[other]()
    assert not steps_through_layers(model)
    assert isinstance(check(model, 2e-4), ThroughModel)


def test_a_policy_in_trls_trainer_goes_through_its_layers() -> None:
    model = llama()
    add_fused_lm_head(model, temperature=0.7)
    assert isinstance(check(model, 2e-4), ThroughLayers)


def test_another_precision_is_the_models() -> None:
    assert steps_through_layers(llama())
    assert not steps_through_layers(llama().bfloat16())
    mixed = llama()
    mixed.lm_head.double()
    assert not steps_through_layers(mixed)


def test_a_mixed_precision_around_the_forward_is_the_models() -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # a trainer of another test made one of another precision
    try:
        accelerator: Any = Accelerator(mixed_precision="bf16", cpu=True)
        model = accelerator.prepare_model(llama(), evaluation_mode=True)
        assert not steps_through_layers(model)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(("name", "task"), [("tiny-arithmetic", "arithmetic"), ("tiny-multihop", "multihop")])
def test_greedy_completions_are_those_of_generate(name: str, task: str) -> None:
    policy = load_policy(name, dtype=torch.float64)
    model, tokenizer = policy.model.eval(), policy.tokenizer
    prompts = [tokenizer(example.prompt)["input_ids"] for example in build_task(task, {}).examples("test", 24)]
    prompts = [ids[: len(ids) - i % 3] for i, ids in enumerate(prompts)]  # of three lengths at least
    end = tokenizer.eos_token_id

    def most_likely(logits: torch.Tensor, _rows: torch.Tensor) -> torch.Tensor:
        return logits.argmax(-1)

    found = write(model, prompts, most_likely, limits=40, ends=[end], pad_id=0)
    assert steps_through_layers(model)
    assert len({len(ids) for ids in found}) > 1
    for prompt, ids in zip(prompts, found, strict=True):
        options = {"do_sample": False, "max_new_tokens": 40, "eos_token_id": end, "pad_token_id": 0}
        whole = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), **options)
        assert whole[0, len(prompt) :].tolist() == ids
