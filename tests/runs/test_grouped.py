import collections

import pytest
import torch

from stepcredit.errors import InputError
from stepcredit.runs.decoding import steps_through_layers
from stepcredit.runs.grouped import GroupedSampler, sample_groups
from trl_trainer import make_model, make_tokenizer, make_trainer

EOS, PAD = 1, 0


def test_the_first_two_tokens_have_the_models_own_distribution():
    model = make_model(seed=2, scale=0.5).eval()
    prompt, n, temperature = [4, 5, 6], 6000, 1.3
    torch.manual_seed(0)
    drawn = sample_groups(model, [prompt] * n, eos_ids=[EOS], max_new_tokens=2, temperature=temperature, pad_id=PAD)
    expected = collections.Counter()
    with torch.no_grad():  # every pair, by plain forwards of the whole text
        first = (model(torch.tensor([prompt])).logits[0, -1] / temperature).softmax(-1)
        for i, p in enumerate(first.tolist()):
            if i == EOS:
                expected[(i,)] = p
                continue
            second = (model(torch.tensor([[*prompt, i]])).logits[0, -1] / temperature).softmax(-1)
            for j, q in enumerate(second.tolist()):
                expected[(i, j)] = p * q
    found = collections.Counter(map(tuple, drawn))
    assert set(found) <= set(expected)
    chi2 = sum((found[key] - n * p) ** 2 / (n * p) for key, p in expected.items() if n * p >= 5)
    cells = sum(n * p >= 5 for p in expected.values())
    assert chi2 < cells + 5 * (2 * cells) ** 0.5  # about five standard deviations of its law


def test_unequal_prompts_and_rows_that_leave_read_as_each_alone():
    model = make_model(seed=3, scale=0.5).eval()
    prompts = [[4], [4], [7, 8, 9, 2], [5, 6], [5, 6], [3] * 7]
    cold = {"eos_ids": [EOS], "max_new_tokens": 12, "temperature": 1e-6, "pad_id": PAD}
    together = sample_groups(model, prompts, **cold)
    for prompt, ids in zip(prompts, together, strict=True):
        text = list(prompt)
        for token in ids:  # greedy, by plain forwards of the whole text
            with torch.no_grad():
                assert token == int(model(torch.tensor([text])).logits[0, -1].argmax())
            text.append(token)
        assert ids[-1] == EOS or len(ids) == 12
        assert EOS not in ids[:-1]


def test_settings_that_plain_sampling_does_not_have_are_refused(tmp_path):
    trainer = make_trainer(tmp_path, top_p=0.9, extra={"rollout_func": GroupedSampler()})
    with pytest.raises(InputError, match=r"`run\.sampler` must be 'trl' with top_p 0\.9"):
        trainer.train()


def test_it_trains(tmp_path):
    trainer = make_trainer(tmp_path, extra={"rollout_func": GroupedSampler()})
    trainer.train()
    assert trainer.state.global_step == 2
    assert steps_through_layers(trainer.accelerator.unwrap_model(trainer.model))  # TRL's patch of it is seen through
    assert make_tokenizer().eos_token_id == EOS
