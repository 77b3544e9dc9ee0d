"""The implicit process reward model: scores and steps against plain loops over whole logits, and resuming."""

import copy
import io
import math

import pytest
import torch

from stepcredit import InputError, Rollouts
from stepcredit.signals import LearningSignal
from stepcredit.signals.implicit import ImplicitPRM

transformers = pytest.importorskip("transformers")

VOCABULARY = 31


def start(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=64, initializer_range=0.3, attention_dropout=0.3, tie_word_embeddings=True,
            bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip


def made(model=None, **options) -> ImplicitPRM:
    signal = ImplicitPRM(**{"dtype": "float64", "beta": 0.7, "learning_rate": 0.01, **options})
    signal.bind(model=start() if model is None else model)
    return signal


def ragged(seed: int, rows: int = 7) -> tuple[Rollouts, list[float]]:
    """Prompts of 1..6 ids, completions of 1..12 with holes in the mask; row 2 has no response token at all."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 13, (rows, 2), generator=g).tolist()
    ids = [torch.randint(3, VOCABULARY, (n,), generator=g).tolist() for _, n in lengths]
    mask = [(torch.rand(n, generator=g) < 0.8).tolist() for _, n in lengths]
    mask[0][-1], mask[2] = True, [False] * len(mask[2])
    prompts = [torch.randint(3, VOCABULARY, (1 + n % 6,), generator=g).tolist() for n, _ in lengths]
    texts = [""] * rows
    rollouts = Rollouts(texts, texts, [0] * rows, token_ids=ids, response_mask=mask, prompt_ids=prompts)
    return rollouts, [float(i % 3 == 0) for i in range(rows)]


def log_ratios(model, reference, rollouts: Rollouts, row: int) -> torch.Tensor:
    """log pi_phi - log pi_ref of each completion token, from whole logits of the row alone."""
    prompt, completion = rollouts.prompt_ids[row], rollouts.token_ids[row]
    found = []
    for one in (model, reference):
        logits = one(input_ids=torch.tensor([[*prompt, *completion]])).logits[0]
        at = range(len(prompt) - 1, len(prompt) + len(completion) - 1)
        found.append(torch.stack([logits[i].log_softmax(-1)[token] for i, token in zip(at, completion, strict=True)]))
    return found[0] - found[1].detach()


@pytest.mark.parametrize(("mini_batch_size", "epochs", "batch_tokens"), [(100, 1, 8192), (3, 2, 30), (2, 1, 1)])
def test_updates_and_scores_equal_plain_loops(mini_batch_size: int, epochs: int, batch_tokens: int) -> None:
    signal = made(mini_batch_size=mini_batch_size, epochs=epochs, batch_tokens=batch_tokens, max_grad_norm=0.5)
    model = start().double().eval()
    reference = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
    for seed in range(3):
        rollouts, outcomes = ragged(seed)
        with torch.inference_mode():  # as a trainer may
            numbers = signal.update(rollouts, outcomes)
        losses, sums, norms = [], {}, []
        rows = [row for row in range(len(rollouts)) if any(rollouts.response_mask[row])]
        for epoch in range(epochs):
            for begin in range(0, len(rows), mini_batch_size):
                optimizer.zero_grad()
                some = rows[begin : begin + mini_batch_size]
                for row in some:
                    mask = torch.tensor(rollouts.response_mask[row])
                    x = 0.7 * log_ratios(model, reference, rollouts, row)[mask].sum()
                    p = 1 / (1 + torch.exp(-x))
                    loss = -(outcomes[row] * p.log() + (1 - outcomes[row]) * (1 - p).log())
                    (loss / len(some)).backward()
                    if epoch == 0:
                        losses.append(loss.item())
                        sums[row] = x.item()
                norm = math.sqrt(sum(float(w.grad.square().sum()) for w in model.parameters()))
                norms.append(norm)
                if norm > 0.5:
                    for w in model.parameters():
                        w.grad *= 0.5 / norm
                optimizer.step()
        right, wrong = ([x for row, x in sums.items() if outcomes[row] == y] for y in (1.0, 0.0))
        assert numbers == {
            "loss": pytest.approx(sum(losses) / len(losses)),
            "accuracy": pytest.approx(sum((sums[row] > 0) == (outcomes[row] == 1) for row in rows) / len(rows)),
            "margin": pytest.approx(sum(right) / len(right) - sum(wrong) / len(wrong)),
            "grad_norm": pytest.approx(sum(norms) / len(norms), rel=1e-5),  # torch's clip adds 1e-6 to the norm
            "skipped": len(rollouts) - len(rows),
        }
        assert max(norms) > 0.5  # clipping took part
        with torch.no_grad():
            for row, values in enumerate(signal.score(rollouts)):
                want = 0.7 * log_ratios(model, reference, rollouts, row)
                torch.testing.assert_close(torch.tensor(values, dtype=torch.float64), want, rtol=1e-4, atol=1e-6)
                assert want.abs().max() > 1e-3


def test_the_first_scores_are_zero_and_both_kinds_of_rollout_come_apart() -> None:
    signal = made(learning_rate=0.02, beta=0.05)
    g = torch.Generator().manual_seed(0)
    ids = [torch.randint(5, VOCABULARY, (6,), generator=g).tolist() for _ in range(16)]
    outcomes = [float(i % 2) for i in range(16)]
    for row, outcome in zip(ids, outcomes, strict=True):
        row[3] = 3 + int(outcome)
    rollouts = Rollouts([""] * 16, [""] * 16, [0] * 16, token_ids=ids, prompt_ids=[[1]] * 16)
    assert signal.score(rollouts) == [[0.0] * 6] * 16
    history = [signal.update(rollouts, outcomes) for _ in range(30)]
    assert history[0]["loss"] == pytest.approx(math.log(2))
    assert history[-1]["accuracy"] == 1.0
    assert history[-1]["loss"] < 0.5
    decisive = torch.tensor(signal.score(rollouts))[:, 3]
    assert (decisive[1::2].min() > decisive[0::2].max()).item()  # the credit lies on the token that decides


def test_resuming_goes_on_to_the_same_bits() -> None:
    batches = [ragged(seed) for seed in range(5)]
    whole = made(start(3), dtype="float32", mini_batch_size=2)
    for batch in batches:
        whole.update(*batch)
    first = made(start(3), dtype="float32", mini_batch_size=2)
    for batch in batches[:2]:
        first.update(*batch)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    first.update(*batches[4])  # what happens after the checkpoint is not in it
    file.seek(0)
    second = made(start(3), dtype="float32", mini_batch_size=2)
    second.load_state_dict(torch.load(file, weights_only=True))
    for batch in batches[2:]:
        second.update(*batch)
    assert second.score(batches[0][0]) == whole.score(batches[0][0])
    one, other = whole.state_dict(), second.state_dict()
    assert one["updates"] == other["updates"] == 5
    assert all(torch.equal(one["model"][name], other["model"][name]) for name in one["model"])
    before = {name: weight.clone() for name, weight in other["model"].items()}
    second.update(*batches[0])
    assert all(torch.equal(weight, before[name]) for name, weight in other["model"].items())  # a copy


def test_a_state_of_another_model_is_refused() -> None:
    state = made().state_dict()
    other = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**start().config.to_dict(), "hidden_size": 8}))
    for wrong in (state, {"model": state["model"]}, {}):
        with pytest.raises(InputError, match="`state` must be of an ImplicitPRM with the same model"):
            made(other if wrong is state else None).load_state_dict(wrong)


def test_a_model_by_name_must_have_the_policys_vocabulary(tmp_path, tokenizers) -> None:
    policy = tokenizers["byte_level"]
    config = transformers.LlamaConfig(**{**start().config.to_dict(), "vocab_size": len(policy)})
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    policy.save_pretrained(tmp_path)
    rollouts, outcomes = ragged(0)
    signal = ImplicitPRM(model=str(tmp_path), reference=str(tmp_path), learning_rate=0.01, device="cpu")
    signal.bind(tokenizer=policy)
    assert all(value == 0.0 for row in signal.score(rollouts) for value in row)
    signal.update(rollouts, outcomes)
    assert any(value != 0.0 for row in signal.score(rollouts) for value in row)
    other = ImplicitPRM(model=str(tmp_path), device="cpu")
    other.bind(tokenizer=tokenizers["unigram"])
    with pytest.raises(InputError, match=r"`model` must have the policy's vocabulary; .* has id \d+ for"):
        other.score(rollouts)
    with pytest.raises(InputError, match="`model` must be named or bound, not both"):
        other.bind(model=start())


def test_it_is_a_learning_signal_and_refuses_in_words() -> None:
    signal, (rollouts, outcomes) = made(), ragged(0)
    assert isinstance(signal, LearningSignal)
    assert signal.when == "before"
    with pytest.raises(InputError, match="`model` must be named or bound for ImplicitPRM"):
        ImplicitPRM().score(rollouts)
    with pytest.raises(InputError, match=r"`outcomes` must be in \[0, 1\] for ImplicitPRM; got -1.0 in row 1"):
        signal.update(rollouts, [1.0, -1.0, *outcomes[2:]])
    with pytest.raises(InputError, match=r"`outcomes` must be in \[0, 1\] .* got nan"):
        signal.update(rollouts, [math.nan, *outcomes[1:]])
    with pytest.raises(InputError, match="one entry a rollout; got 2 for 7"):
        signal.update(rollouts, [1.0, 0.0])
    with pytest.raises(InputError, match="`prompt_ids` must be in the rollouts"):
        signal.score(rollouts.replace(prompt_ids=None))
    with pytest.raises(InputError, match="`model` must be bound once"):
        signal.bind(model=start())
    nothing = rollouts.replace(response_mask=[[False] * len(row) for row in rollouts.token_ids])
    assert signal.update(nothing, outcomes) == {"skipped": 7.0}
    assert all(value == 0.0 for row in signal.score(rollouts) for value in row)
    with torch.no_grad():
        next(signal.state_dict.__self__._state.model.parameters()).fill_(math.nan)
    with pytest.raises(InputError, match="must have finite gradients"):
        signal.update(rollouts, outcomes)
