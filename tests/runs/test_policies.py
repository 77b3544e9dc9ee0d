import copy
import json
import re
import socket
import sys

import peft
import pytest
import torch
from safetensors.torch import load, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from stepcredit.errors import InputError, MissingExtraError
from stepcredit.runs.policies import BUILT_IN, add_lora, load_policy
from stepcredit.runs.prompts import encode_prompt, render_prompt
from stepcredit.runs.tiny import tiny_model, tiny_tokenizer
from stepcredit.tasks import Arithmetic, Mathematics

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
IDS = torch.tensor([[1, 19, 7, 20, 14, 9, 18, 20]])


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Whoever asks for the network is told that there is none, and noticed even if the error is swallowed."""
    asked = []

    def refuse(*args, **_):
        asked.append(args)
        raise OSError("no network in tests")

    for owner, name in ((socket, "getaddrinfo"), (socket.socket, "connect")):
        monkeypatch.setattr(owner, name, refuse)
    yield
    assert not asked


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "policy"
    tiny_model(3).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def refused(name, **options):
    with pytest.raises(InputError) as caught:
        load_policy(name, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_policy_comes_whole(name):
    policy = load_policy(name)
    assert (policy.name, policy.model.training, policy.model.dtype) == (name, False, torch.float32)
    assert repr(policy) == f"Policy(name={name!r})"
    assert policy.tokenizer.pad_token_id == 0


def test_a_folder_by_path_text_home_and_relative_name(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.chdir(folder.parent)
    expected = logits(tiny_model(3))
    for name in (folder, str(folder), "~/policy", "./policy", "policy"):
        assert torch.equal(logits(load_policy(name).model), expected)


def test_a_built_in_name_wins_over_a_folder_called_like_it(folder, monkeypatch):
    folder.rename(folder.parent / "tiny-arithmetic")
    monkeypatch.chdir(folder.parent)
    assert not torch.equal(logits(load_policy("tiny-arithmetic").model), logits(tiny_model(3)))
    assert torch.equal(logits(load_policy("./tiny-arithmetic").model), logits(tiny_model(3)))


def test_dtype_and_device(folder):
    for dtype in ("bfloat16", torch.bfloat16):
        assert load_policy(folder, dtype=dtype).model.dtype == torch.bfloat16
    assert load_policy(folder, dtype="auto", device="cpu").model.dtype == torch.float32
    for dtype in ("float99", "int64", "nn", torch.int64):
        assert "`dtype` must be a floating-point type of torch" in refused(folder, dtype=dtype)
    assert "`device` must be one of this machine; got 'nonsense'" in refused(folder, device="nonsense")


@pytest.mark.parametrize("name", ["./nothing", "/nothing", "~nobody", "~/nothing", "../a", "a/b/c", "a\\b", ""])
def test_a_misspelt_path_does_not_wait_for_the_hub(name):
    assert "local folder or a hub name; got" in refused(name)


def test_a_file_is_no_policy(folder):
    assert "which is no folder" in refused(folder / "config.json")


@pytest.mark.parametrize("name", ["tiny-arithmetik", "tiny_arithmetic", "Tiny-Arithmetic"])
def test_a_misspelt_built_in_name_is_told_the_right_one(name):
    assert "did you mean tiny-arithmetic?" in refused(name)


def test_a_hub_name_that_is_not_there(monkeypatch):
    def absent(name, **options):
        assert options["local_files_only"] is False
        raise OSError(f"{name} is not a model identifier\nlisted on the hub")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", absent)
    assert "got 'nobody/nothing': OSError: nobody/nothing is not a model identifier listed" in refused("nobody/nothing")


def test_a_folder_that_is_no_whole_model(folder):
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    tensors = load(whole)
    weights.write_bytes(whole[:1000])
    assert "`policy` must be loadable" in refused(folder)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    assert "lacks 1, model.layers.1.mlp.up_proj.weight first" in refused(folder)
    weights.unlink()
    assert "`policy` must be loadable" in refused(folder)
    weights.write_bytes(whole)
    (folder / "config.json").write_text("{")
    assert "`policy` must be loadable" in refused(folder)
    (folder / "config.json").unlink()
    assert "has no config.json" in refused(folder)


def test_a_tokenizer_is_not_made_up(folder):
    # Transformers gives a Qwen2 model without tokenizer files a tokenizer with a vocabulary of one.
    (folder / "tokenizer.json").unlink()
    assert "has no tokenizer files" in refused(folder)
    config = Qwen2Config(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1)
    Qwen2ForCausalLM(config).save_pretrained(folder.parent / "qwen")
    assert "has no tokenizer files" in refused(folder.parent / "qwen")


def test_a_tokenizer_needs_an_end_and_gets_a_padding(folder):
    edit(folder / "tokenizer_config.json", pad_token=None)
    policy = load_policy(folder)
    assert policy.tokenizer.pad_token_id == policy.tokenizer.eos_token_id == 2
    edit(folder / "tokenizer_config.json", eos_token=None)
    assert "has no eos_token" in refused(folder)


def adapter(folder, path, tokenizer=None, grow=False):
    """A LoRA adapter over a folder, with weights that matter."""
    model = load_policy(folder).model
    if grow:
        model.resize_token_embeddings(len(tokenizer))
    model = add_lora(model, {"r": 2, "lora_alpha": 4})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    model.save_pretrained(path)
    if tokenizer is not None:
        tokenizer.save_pretrained(path)
    return model.eval()


def test_an_adapter_folder_has_its_base_below_it(folder, tmp_path):
    made = adapter(folder, tmp_path / "adapter")
    policy = load_policy(tmp_path / "adapter")
    assert isinstance(policy.model, peft.PeftModel)
    assert (policy.name, policy.model.training) == (str(tmp_path / "adapter"), False)
    assert torch.equal(logits(policy.model), logits(made))
    assert not torch.allclose(logits(policy.model), logits(tiny_model(3)))
    assert not any(parameter.requires_grad for parameter in policy.model.parameters())
    assert policy.tokenizer("a:3")["input_ids"] == [1, 19, 7]
    wide = load_policy(tmp_path / "adapter", dtype="float64").model
    assert {parameter.dtype for parameter in wide.parameters()} == {torch.float64}


def test_an_adapter_over_a_built_in_policy_by_its_name(tmp_path):
    made = adapter("tiny-arithmetic", tmp_path)
    edit(tmp_path / "adapter_config.json", base_model_name_or_path="tiny-arithmetic")
    assert torch.equal(logits(load_policy(tmp_path).model), logits(made))


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`")
def test_an_adapter_with_a_tokenizer_of_its_own(folder, tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["more"])
    made = adapter(folder, tmp_path / "adapter", tokenizer, grow=True)
    policy = load_policy(tmp_path / "adapter")
    assert policy.tokenizer("more")["input_ids"] == [1, len(tiny_tokenizer())]
    assert torch.equal(logits(policy.model), logits(made))


def test_an_adapter_without_base_weights_or_peft(folder, tmp_path, monkeypatch):
    path = tmp_path / "adapter"
    adapter(folder, path)
    settings = path / "adapter_config.json"
    edit(settings, base_model_name_or_path="/gone/policy")
    assert re.search("adapter whose base could not be loaded: .*'/gone/policy', which is no folder", refused(path))
    edit(settings, base_model_name_or_path=str(path))
    assert "the base must be a folder with a whole model" in refused(path)
    edit(settings, base_model_name_or_path=None)
    assert "the name of its base" in refused(path)
    edit(settings, base_model_name_or_path=str(folder))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "peft", None)
        with pytest.raises(MissingExtraError, match=r"`peft` is needed to load an adapter.*stepcredit\[trl\]"):
            load_policy(path)
    (path / "adapter_model.safetensors").write_bytes(b"no weights")
    assert "`policy` must be loadable" in refused(path)
    (path / "adapter_model.safetensors").unlink()
    assert "an adapter with its weights" in refused(path)


def test_lora_starts_where_the_model_is_and_trains_alone():
    model = tiny_model(0).eval()
    before = logits(model)
    wrapped = add_lora(model, {"r": 4})
    assert torch.equal(logits(wrapped), before)
    trained = {name for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name for name in trained)
    assert len(trained) == 2 * 7 * 2  # two factors for each of seven linear layers in each of two blocks
    assert sum(p.numel() for n, p in wrapped.named_parameters() if n in trained and "layers.0.self_attn.q" in n) == 512


def test_lora_options_are_checked():
    with pytest.raises(InputError, match="got 'lora_alfa'; did you mean lora_alpha"):
        add_lora(tiny_model(), {"lora_alfa": 1})
    with pytest.raises(InputError, match="`lora` must have values that LoraConfig takes"):
        add_lora(tiny_model(), {"r": 0})
    with pytest.raises(InputError, match="`lora` must have values that LoraConfig takes"):
        add_lora(tiny_model(), {"target_modules": ["nothing"]})
    with pytest.raises(InputError, match="has an adapter already"):
        add_lora(add_lora(tiny_model(), {}), {})


@pytest.fixture(scope="module")
def chat():
    """A byte-level BPE tokenizer with a chat template."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        ["step by step"], trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>", clean_up_tokenization_spaces=False)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def test_a_chat_template_wraps_instruction_and_prompt(chat):
    task = Mathematics(instruction="Think step by step.")
    messages = [{"role": "system", "content": "Think step by step."}, {"role": "user", "content": "1 + 1?"}]
    assert render_prompt(chat, task, "1 + 1?") == messages
    ids = encode_prompt(chat, task, "1 + 1?")
    assert all(type(token) is int for token in ids)
    assert chat.decode(ids) == "<|system|>Think step by step.<|end|><|user|>1 + 1?<|end|><|assistant|>"
    assert render_prompt(chat, Arithmetic(), "a:3\n") == [{"role": "user", "content": "a:3\n"}]
    assert chat.decode(encode_prompt(chat, Arithmetic(), "a:3\n")) == "<|user|>a:3\n<|end|><|assistant|>"


def test_a_policy_with_a_chat_template_reloads_with_it(chat, tmp_path):
    config = Qwen2Config(
        vocab_size=len(chat), hidden_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1
    )
    Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    chat.save_pretrained(tmp_path)
    policy = load_policy(tmp_path)  # for this type of model Transformers makes up a padding token, here beyond the rows
    assert policy.tokenizer.pad_token == "<|end|>"
    task = Mathematics()
    assert encode_prompt(policy.tokenizer, task, "é?") == encode_prompt(chat, task, "é?")


def test_a_template_that_refuses_the_messages_is_named(chat):
    picky = copy.deepcopy(chat)
    picky.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(InputError, match=r"takes a system and a user message; got 'System role not supported'"):
        encode_prompt(picky, Mathematics(), "1 + 1?")


def test_without_a_template_the_text_itself_is_the_prompt():
    tokenizer = tiny_tokenizer()
    assert render_prompt(tokenizer, Arithmetic(), "a:3\n") == "a:3\n"
    assert encode_prompt(tokenizer, Arithmetic(), "a:3\n") == [1, 19, 7, 18]
    assert render_prompt(tokenizer, Mathematics(instruction="Think."), "2?") == "Think.\n\n2?"
