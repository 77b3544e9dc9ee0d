import copy
import math

import pytest
import torch
from torch.nn import functional as F

from stepcredit.errors import InputError
from stepcredit.signals.prm.training import (
    StepTraining,
    fit_length,
    rate,
    soft_cross_entropy,
    step_probabilities,
    train_steps,
)

transformers = pytest.importorskip("transformers")
ROWS = [([1, 5, 9, 2, 7, 2], [3, 5]), ([1, 4, 2], [2]), ([1, 8, 8, 6, 5, 4, 2, 3, 2], [6, 8]), ([1, 9, 2], [2])]
LABELS = [[1.0, 0.0], [0.3], [None, 0.75], [None]]
KINDS = ["llama", "modernbert"]


def classifier(kind="llama", labels=2, dropout=0.0):
    sizes = {
        "vocab_size": 12, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
        "max_position_embeddings": 32, "num_labels": labels, "pad_token_id": 0, "attention_dropout": dropout,
        "classifier_dropout": dropout,
    }  # fmt: skip
    torch.manual_seed(1)
    if kind == "llama":
        return transformers.LlamaForTokenClassification(transformers.LlamaConfig(**sizes)).double().eval()
    config = transformers.ModernBertConfig(
        **sizes, cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2, mlp_dropout=dropout
    )
    return transformers.ModernBertForTokenClassification(config).double().eval()


def mean_loss_by_hand(model, rows, labels):
    """Row by row, without padding or mask; torch's own cross-entropy with class probabilities."""
    losses = []
    for (ids, marks), ys in zip(rows, labels, strict=True):
        logits = model(input_ids=torch.tensor([ids])).logits[0]
        for mark, y in zip(marks, ys, strict=True):
            if y is not None:
                losses.append(F.cross_entropy(logits[mark], torch.tensor([1 - y, y], dtype=logits.dtype)))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens_at_once", [1, 9, 10_000])
def test_an_update_follows_the_gradient_of_the_mean_over_known_labels(kind, tokens_at_once):
    model = classifier(kind)
    twin = copy.deepcopy(model)
    loss = mean_loss_by_hand(twin, ROWS, LABELS)
    loss.backward()
    norm = math.sqrt(sum(float((p.grad**2).sum()) for p in twin.parameters() if p.grad is not None))
    sgd = torch.optim.SGD(model.parameters(), lr=0.5)
    options = StepTraining(batch_size=4, clip=1e9, tokens_at_once=tokens_at_once)
    metrics = train_steps(model, ROWS, LABELS, options, optimizer=sgd)
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-9)
    assert metrics["gradient_norm"] == pytest.approx(norm, rel=1e-6)
    counts = {name: metrics[name] for name in ("updates", "rows", "unlabeled_rows", "steps", "tokens")}
    assert counts == {"updates": 1, "rows": 3, "unlabeled_rows": 1, "steps": 4, "tokens": 6 + 3 + 9}
    for (name, moved), p in zip(model.named_parameters(), twin.parameters(), strict=True):
        step = 0 if p.grad is None else 0.5 * p.grad
        torch.testing.assert_close(moved, p - step, rtol=1e-8, atol=1e-11, msg=name)


def test_gradients_are_clipped_to_the_norm():
    model = classifier()
    before = [p.detach().clone() for p in model.parameters()]
    train_steps(
        model,
        ROWS,
        LABELS,
        StepTraining(batch_size=4, clip=1e-3),
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
    )
    moved = math.sqrt(
        sum(float(((p.detach() - q) ** 2).sum()) for p, q in zip(model.parameters(), before, strict=True))
    )
    assert moved == pytest.approx(1e-3, rel=1e-4)


def test_the_rate_of_each_update_is_warm_up_then_a_line_to_zero(monkeypatch):
    seen = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW,
        "step",
        lambda self, *a: (seen.append([g["lr"] for g in self.param_groups]), step(self, *a))[1],
    )
    train_steps(classifier(), ROWS, LABELS, StepTraining(epochs=2, batch_size=1, learning_rate=0.4, warm_up=0.5))
    assert [rates[0] for rates in seen] == pytest.approx([0.4 * x for x in (1 / 3, 2 / 3, 1, 1, 2 / 3, 1 / 3)])
    assert all(rates[0] == rates[-1] for rates in seen)
    assert [rate(k, 3, 0.0) for k in range(3)] == pytest.approx([1, 2 / 3, 1 / 3])
    assert [rate(k, 2, 1.0) for k in range(2)] == [0.5, 1.0]


def test_training_is_a_function_of_its_seed_and_leaves_mode_and_random_state():
    torch.manual_seed(3)
    made = {}
    for name, seed in (("a", 0), ("again", 0), ("other", 1)):
        model = classifier("modernbert", dropout=0.3)
        torch.manual_seed(len(made))
        state = torch.get_rng_state()
        train_steps(model, ROWS, LABELS, StepTraining(epochs=2, batch_size=2, learning_rate=1e-2, seed=seed))
        assert torch.equal(state, torch.get_rng_state())
        assert not model.training
        made[name] = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert torch.equal(made["a"], made["again"])
    assert not torch.equal(made["a"], made["other"])


def test_an_optimizer_that_is_handed_over_goes_on():
    whole, halves = classifier(), classifier()
    adam = torch.optim.AdamW(whole.parameters(), lr=1e-2)
    train_steps(whole, ROWS, LABELS, StepTraining(epochs=2, batch_size=4), optimizer=adam)
    adam = torch.optim.AdamW(halves.parameters(), lr=1e-2)
    for _ in range(2):
        train_steps(halves, ROWS, LABELS, StepTraining(batch_size=4), optimizer=adam)
    for one, other in zip(whole.parameters(), halves.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    assert adam.param_groups[0]["lr"] == 1e-2


def test_the_probabilities_at_the_marks_meet_soft_labels():
    model = classifier()
    first = train_steps(model, ROWS, LABELS, StepTraining(epochs=150, batch_size=4, learning_rate=2e-2))["first_loss"]
    found = step_probabilities(model, ROWS, tokens_at_once=7)
    assert [len(row) for row in found] == [2, 1, 2, 1]
    for row, ys in zip(found, LABELS, strict=True):
        for p, y in zip(row, ys, strict=True):
            assert y is None or p == pytest.approx(y, abs=0.02)
    floor = -(0.3 * math.log(0.3) + 0.7 * math.log(0.7) + 0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / 4
    assert mean_loss_by_hand(model, ROWS, LABELS).item() == pytest.approx(floor, abs=5e-3)
    assert first > 2 * floor


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_are_the_models_own_whatever_is_padded(kind):
    model = classifier(kind)
    found = step_probabilities(model, [*ROWS, ([1, 2], [])])
    assert found[-1] == []
    for (ids, marks), row in zip(ROWS, found, strict=False):
        logits = model(input_ids=torch.tensor([ids])).logits[0].detach().float()
        expected = [math.exp(b) / (math.exp(a) + math.exp(b)) for a, b in logits[marks].tolist()]
        assert row == pytest.approx(expected, rel=1e-5)


def test_soft_cross_entropy_equals_torchs_with_class_probabilities():
    logits, y = torch.randn(50, 2, dtype=torch.float64), torch.rand(50, dtype=torch.float64)
    expected = F.cross_entropy(logits, torch.stack([1 - y, y], -1), reduction="none")
    torch.testing.assert_close(soft_cross_entropy(logits, y), expected)
    half = soft_cross_entropy(torch.tensor([30.0, -30.0], dtype=torch.bfloat16), torch.tensor(1.0))
    assert (half.dtype, half.item()) == (torch.float32, pytest.approx(60.0))


def test_rows_are_cut_and_the_marks_that_are_lost_are_counted():
    rows, labels, lost = fit_length(ROWS, LABELS, 4)
    assert [row for row, _ in rows] == [[1, 5, 9, 2], [1, 4, 2], [1, 8, 8, 6], [1, 9, 2]]
    assert [marks for _, marks in rows] == [[3], [2], [], [2]]
    assert (labels, lost) == ([[1.0], [0.3], [], [None]], 3)


@pytest.mark.parametrize(
    ("rows", "labels", "message"),
    [
        (ROWS, LABELS[:3], "one row an input; got 3 for 4"),
        ([ROWS[0]], [[1.0]], "one a mark; got 1 for 2 in row 0"),
        ([([1, 2], [2])], [[1.0]], "marks inside their ids; got 2 of 2 in row 0"),
        ([([1, 2], [1])], [[1.01]], "from 0 to 1, or None; got 1.01 in row 0"),
        ([([1, 2], [1])], [[float("nan")]], "from 0 to 1, or None; got nan"),
        ([([1, 2], [1])], [[None]], "one that is known; got none"),
        ([], [], "one that is known; got none"),
    ],
)
def test_what_does_not_fit_is_refused(rows, labels, message):
    with pytest.raises(InputError) as error:
        train_steps(classifier(), rows, labels)
    assert message in str(error.value)


def test_models_with_other_labels_and_losses_that_explode_are_refused():
    with pytest.raises(InputError, match="`model` must have 2 labels; got 3"):
        train_steps(classifier(labels=3), ROWS, LABELS)
    broken = classifier()
    with torch.no_grad():
        broken.score.weight.fill_(math.nan)
    with pytest.raises(InputError, match="`learning_rate` must keep the loss finite; got nan"):
        train_steps(broken, ROWS, LABELS)
    assert not broken.training
