"""Log-probabilities of given tokens: against the model's own whole logits, row by row, and never a whole of them."""

import warnings

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stepcredit import InputError
from stepcredit.errors import StepCreditWarning
from stepcredit.signals.causal import sequence_logprobs

transformers = pytest.importorskip("transformers")

VOCABULARY, WIDTH = 97, 16
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FAMILIES = {
    "llama": ("Llama", {"num_key_value_heads": 1, "tie_word_embeddings": False}),
    "llama tied": ("Llama", {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {"num_key_value_heads": 1, "layer_types": ["full_attention"] * 2}),
    "gemma2": ("Gemma2", {"num_key_value_heads": 1, "head_dim": 8, "final_logit_softcapping": 5.0}),
    "granite": ("Granite", {"logits_scaling": 0.125, "embedding_multiplier": 3.0}),
    "cohere": ("Cohere", {"logit_scale": 7.0}),
}


def make(name: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.nn.Module:
    kind, options = FAMILIES[name]
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(**SHAPE, **options)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():  # logits of a fresh model are near 0, where neither a cap nor a scale would show
        model.get_output_embeddings().weight.mul_(30 if name != "granite" else 8)
    return model.to(dtype)


def gpt2() -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": 64}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=1, eos_token_id=2)).eval()
    with torch.no_grad():
        model.transformer.ln_f.weight.mul_(20)
    return model.double()


def with_lora() -> torch.nn.Module:
    peft = pytest.importorskip("peft")
    targets = ["q_proj", "down_proj", "lm_head"]
    model = peft.get_peft_model(make("llama"), peft.LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:  # an adapter that does nothing would not show if it were left out
                weight.normal_()
    return model.double().eval()


MODELS = {**{name: (lambda name=name: make(name)) for name in FAMILIES}, "gpt2": gpt2, "lora": with_lora}


def ragged(seed: int = 0) -> tuple[list[list[int]], list[list[int]]]:
    g = torch.Generator().manual_seed(seed)
    lengths = [(1, 30), (7, 0), (12, 5), (3, 1), (20, 40), (2, 2), (9, 17)]
    rows = [(torch.randint(3, VOCABULARY, (p + c,), generator=g).tolist(), p) for p, c in lengths]
    return [row[:p] for row, p in rows], [row[p:] for row, p in rows]


def one_by_one(model, prompts, completions, temperature=1.0) -> list[torch.Tensor]:
    """Each row alone, without padding, through the model's own logits."""
    rows = []
    for prompt, completion in zip(prompts, completions, strict=True):
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0].double() / temperature
        picked = [torch.log_softmax(logits[len(prompt) + j - 1], -1)[token] for j, token in enumerate(completion)]
        rows.append(torch.stack(picked) if picked else torch.empty(0, dtype=torch.float64))
    return rows


@pytest.mark.parametrize("name", MODELS)
def test_equals_the_models_own_logits_row_by_row(name: str) -> None:
    model, (prompts, completions) = MODELS[name](), ragged()
    close = 1e-6 if name == "gemma2" else 1e-9  # the softmax of its own attention is in float32
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")  # a fallback to whole logits would pass, too
        for temperature in (1.0, 0.7):
            want = one_by_one(model, prompts, completions, temperature)
            assert min(row.min() for row in want if len(row)) < -5  # spread-out logits: caps and scales matter
            for budget, chunk in ((1, 3), (70, 1000), (10_000, 7)):
                got = sequence_logprobs(
                    model, prompts, completions, temperature=temperature, batch_tokens=budget, chunk=chunk
                )
                for mine, wanted in zip(got, want, strict=True):
                    torch.testing.assert_close(mine, wanted, rtol=close, atol=close, check_dtype=len(wanted) > 0)


@pytest.mark.parametrize("name", ["llama tied", "gemma2", "lora"])
def test_gradients_equal_those_through_whole_logits(name: str) -> None:
    model, (prompts, completions) = MODELS[name](), ragged(1)
    weights = [torch.randn(len(row), dtype=torch.float64) for row in completions]
    found = []
    for read in (one_by_one, lambda *args: sequence_logprobs(*args, batch_tokens=80, chunk=5)):
        model.zero_grad()
        rows = read(model, prompts, completions)
        sum((row * w).sum() for row, w in zip(rows, weights, strict=True)).backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) > 4
    close = 1e-5 if name == "gemma2" else 1e-9  # Gemma2 computes its norms in float32, whatever it is made of
    for key, want in found[0].items():
        torch.testing.assert_close(found[1][key], want, rtol=close, atol=close, msg=key)


class Largest(TorchDispatchMode):
    """The most numbers that any tensor with the vocabulary as its last axis holds."""

    rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.ndim > 1 and tensor.shape[-1] == VOCABULARY:
                self.rows = max(self.rows, tensor.numel() // VOCABULARY)
        return out


@pytest.mark.parametrize("grad", [False, True])
def test_no_more_than_a_chunk_of_logits_ever_exists(grad: bool) -> None:
    model, (prompts, completions) = make("llama"), ragged()
    with torch.no_grad():
        sequence_logprobs(model, prompts, completions)  # the probe is behind us
    with Largest() as seen, torch.set_grad_enabled(grad):
        rows = sequence_logprobs(model, prompts, completions, chunk=8)
        if grad:
            sum(row.sum() for row in rows).backward()
    # the head's weight [97, 16] and its gradient never have the vocabulary last; its transpose [16, 97] does
    assert seen.rows == WIDTH if grad else seen.rows == max(8, WIDTH)
    with Largest() as whole, torch.no_grad():
        one_by_one(model, prompts, completions)
    assert whole.rows == 60  # the longest row: the counter counts


def test_half_precision_is_read_in_float32() -> None:
    model, (prompts, completions) = make("granite", torch.bfloat16), ragged()
    with torch.no_grad():
        got = sequence_logprobs(model, prompts, completions)
        want = one_by_one(make("granite"), prompts, completions)
    assert {row.dtype for row in got if len(row)} == {torch.float32}
    error = torch.cat([a.double() - b for a, b in zip(got, want, strict=True)]).abs()
    assert error.mean() < 0.1  # bfloat16 has three digits, the logits are up to 30
    steps = torch.cat(got) * 2**10
    assert (steps != steps.round()).any()  # finer than bfloat16's own steps at these sizes


class Banning(transformers.LlamaForCausalLM):
    """Does something to its logits that no scale or cap is."""

    def forward(self, **inputs):
        output = super().forward(**inputs)
        output.logits[..., 5] -= 3.0
        return output


def test_a_model_that_changes_its_logits_is_read_whole_and_that_is_said_once() -> None:
    torch.manual_seed(0)
    model = Banning(transformers.LlamaConfig(**SHAPE)).double().eval()
    prompts, completions = ragged()
    with torch.no_grad(), pytest.warns(StepCreditWarning, match="logits of Banning .* one rollout at a time"):
        got = sequence_logprobs(model, prompts, completions, chunk=4)
    with torch.no_grad():
        again = sequence_logprobs(model, prompts, completions)  # warnings are errors: none
        for mine, same, want in zip(got, again, one_by_one(model, prompts, completions), strict=True):
            torch.testing.assert_close(mine, want, rtol=1e-9, atol=1e-9, check_dtype=len(want) > 0)
            torch.testing.assert_close(same, want, rtol=1e-9, atol=1e-9, check_dtype=len(want) > 0)


@pytest.mark.parametrize(
    ("prompts", "completions", "options", "message"),
    [
        ([[]], [[3]], {}, "`prompt_ids` must have a token in every row; got none in row 0"),
        ([[1]], [[3], [4]], {}, "one row a completion; got 1 for 2"),
        ([[1], [1]], [[3], [4, 97]], {}, "`completion_ids` must be ids below the model's 97; got 97 in row 1"),
        ([[-1]], [[3]], {}, "`prompt_ids` must be ids below the model's 97; got -1"),
        ([[1] * 60], [[3] * 5], {}, "fit the model's 64 positions after the prompt; got 65 tokens in row 0"),
        ([[1]], [[3]], {"temperature": 0.0}, "`temperature` must be .*> 0"),
        ([[1]], [[3]], {"chunk": 0}, "`chunk` must be .*>= 1"),
    ],
)
def test_refuses_what_cannot_be_read(prompts, completions, options, message) -> None:
    with pytest.raises(InputError, match=message):
        sequence_logprobs(make("llama"), prompts, completions, **options)
