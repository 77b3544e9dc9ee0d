"""The laws that every estimator keeps; estimators are found, not listed."""

import dataclasses
import importlib
import inspect
import math
import pkgutil
import random
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings

import stepcredit
from schemes import SCHEMES
from stepcredit import ESTIMATORS, Credit, RolloutBatch, StepCreditWarning
from stepcredit.estimators import Estimator
from strategies import NAN, padded, plain_batch, seeds

LAW = settings(max_examples=60, deadline=None)
NAMES = sorted(ESTIMATORS)


def found_estimators() -> set[type[Estimator]]:
    """Every concrete estimator class defined anywhere in the package."""
    found = set()
    for module in pkgutil.walk_packages(stepcredit.__path__, "stepcredit."):
        if ".cli" in module.name:
            continue
        try:
            imported = importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            if error.name not in ("ray", "verl"):  # what subclasses verl's classes is imported beside verl alone
                raise
            continue
        for _, thing in inspect.getmembers(imported, inspect.isclass):
            if issubclass(thing, Estimator) and not inspect.isabstract(thing):
                found.add(thing)
    return found


@pytest.fixture(autouse=True)
def _tied_signals_are_meant() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StepCreditWarning)
        yield


def draw(name: str, seed: int) -> Estimator:
    return ESTIMATORS[name](**SCHEMES[name][1](random.Random(seed)))


def credit(name: str, seed: int, plain: dict[str, Any]) -> Credit:
    return draw(name, seed)(padded(plain))


def check_equal(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_every_estimator_is_registered_by_its_type_and_public() -> None:
    assert found_estimators() == set(ESTIMATORS.values())
    assert all(name == scheme.type for name, scheme in ESTIMATORS.items())
    assert all(getattr(stepcredit, scheme.__name__) is scheme for scheme in ESTIMATORS.values())


@pytest.mark.parametrize("name", NAMES)
@LAW
@given(seed=seeds())
def test_zero_off_mask_and_segments_minus_one(name: str, seed: int) -> None:
    plain = plain_batch(seed)
    got = credit(name, seed, plain)
    counted = torch.tensor(plain["mask"])
    if plain["row_mask"] is not None:
        counted &= torch.tensor(plain["row_mask"])[:, None]
    assert (got.advantages[~counted] == 0).all()
    assert got.advantages.isfinite().all()
    assert (got.segment_ids()[~counted] == -1).all()
    assert got.segment_ids().dtype == torch.int64
    assert got.counts()["excluded_rows"] == int((~counted.any(1)).sum())


@pytest.mark.parametrize("name", NAMES)
@LAW
@given(seed=seeds())
def test_what_is_masked_is_never_read(name: str, seed: int) -> None:
    plain = plain_batch(seed)
    other = {key: _garbage(value, random.Random(seed)) for key, value in plain.items()}
    assert torch.equal(credit(name, seed, plain).advantages, credit(name, seed, other).advantages)


@pytest.mark.parametrize("name", NAMES)
@LAW
@given(seed=seeds())
def test_permuting_rollouts_permutes_rows(name: str, seed: int) -> None:
    plain = plain_batch(seed)
    order = random.Random(seed).sample(range(len(plain["mask"])), len(plain["mask"]))
    check_equal(credit(name, seed, _reorder(plain, order)).advantages, credit(name, seed, plain).advantages[order])


@pytest.mark.parametrize("name", NAMES)
@LAW
@given(seed=seeds())
def test_group_labels_do_not_matter(name: str, seed: int) -> None:
    plain = plain_batch(seed)
    other = {label: 1000 - 7 * i for i, label in enumerate(sorted(set(plain["group"])))}
    relabeled = {**plain, "group": [other[label] for label in plain["group"]]}
    check_equal(credit(name, seed, relabeled).advantages, credit(name, seed, plain).advantages)


@pytest.mark.parametrize("name", NAMES)
@LAW
@given(seed=seeds())
def test_inserted_masked_tokens_do_not_matter(name: str, seed: int) -> None:
    plain, rng = plain_batch(seed), random.Random(seed)
    at = sorted(rng.randint(0, len(plain["mask"][0])) for _ in range(3))
    fills = {"mask": False, "process_mask": True, "step_ids": 99}
    wider = dict(plain)
    for key in ("mask", "process", "step_ids", "process_mask", "old", "ref"):
        if plain[key] is not None:
            wider[key] = [_insert(row, at, fills.get(key, NAN)) for row in plain[key]]
    assert torch.equal(
        padded(wider).layout.pack(credit(name, seed, wider).advantages),
        padded(plain).layout.pack(credit(name, seed, plain).advantages),
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", NAMES)
@LAW
@given(seed=seeds())
def test_terms_sum_to_advantages(name: str, dtype: torch.dtype, seed: int) -> None:
    got = draw(name, seed)(padded(plain_batch(seed), dtype))
    terms = got.terms()
    largest = max(float(term.abs().max()) for term in terms.values())
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6}[dtype]
    error = (torch.stack(list(terms.values())).double().sum(0) - got.advantages).abs().max()
    assert error <= tolerance * max(largest, 1.0)
    assert all(term.dtype == dtype and term.shape == got.advantages.shape for term in terms.values())


@pytest.mark.parametrize("name", NAMES)
@LAW
@given(seed=seeds())
def test_nothing_is_mutated_and_out_is_filled(name: str, seed: int) -> None:
    batch = padded(plain_batch(seed))
    before = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    copies = {key: x.clone() for key, x in before.items() if isinstance(x, torch.Tensor)}
    estimator = draw(name, seed)
    first = estimator(batch)
    out = torch.full_like(first.advantages, NAN)
    second = estimator(batch, out=out)
    assert second.advantages is out
    assert torch.equal(first.advantages, out)
    for key, copy in copies.items():
        torch.testing.assert_close(before[key], copy, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", NAMES)
def test_advantages_are_detached(name: str) -> None:
    plain = plain_batch(3)
    fields = {f.name: getattr(padded(plain), f.name) for f in dataclasses.fields(RolloutBatch)}
    tracked = {
        key: x.clone().requires_grad_() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for key, x in fields.items()
    }
    got = draw(name, 0)(RolloutBatch(**tracked))
    assert not got.advantages.requires_grad
    assert not any(term.requires_grad for term in got.terms().values())


@pytest.mark.parametrize("name", NAMES)
def test_estimators_are_frozen_comparable_and_printable(name: str) -> None:
    estimator = draw(name, 1)
    assert eval(repr(estimator), {type(estimator).__name__: type(estimator)}) == estimator
    assert hash(estimator) == hash(draw(name, 1))
    assert isinstance(estimator.requires, frozenset)
    with pytest.raises(dataclasses.FrozenInstanceError):
        estimator.std_eps = 1.0  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"reinforce_pp", "gdpo", "prime"}))
@LAW
@given(seed=seeds())
def test_groups_do_not_touch_each_other(name: str, seed: int) -> None:
    """Holds for every scheme without a batch statistic."""
    plain = plain_batch(seed)
    label = plain["group"][0]
    alone = [i for i, other in enumerate(plain["group"]) if other == label]
    check_equal(credit(name, seed, _reorder(plain, alone)).advantages, credit(name, seed, plain).advantages[alone])


@pytest.mark.parametrize("name", NAMES)
def test_empty_batches_and_empty_rows(name: str) -> None:
    nothing = torch.zeros(0, 5)
    fields = {"rewards": torch.zeros(0), "process_rewards": nothing, "old_logprobs": nothing, "ref_logprobs": nothing}
    got = draw(name, 0)(RolloutBatch(torch.zeros(0, 5, dtype=torch.bool), torch.zeros(0), **fields))
    assert got.advantages.shape == (0, 5)
    assert got.counts()["groups"] == 0
    blank = torch.full((2, 3), NAN)
    fields = {"rewards": torch.full((2,), NAN), "process_rewards": blank, "old_logprobs": blank, "ref_logprobs": blank}
    got = draw(name, 0)(RolloutBatch(torch.zeros(2, 3, dtype=torch.bool), torch.tensor([0, 0]), **fields))
    assert (got.advantages == 0).all()
    assert got.counts()["excluded_rows"] == 2


def _garbage(value: Any, rng: random.Random) -> Any:
    """The same, with another unreadable number in the place of each nan."""
    if isinstance(value, float) and math.isnan(value):
        return rng.choice([math.inf, -math.inf, 1e300, -7.0])
    if isinstance(value, list):
        return [_garbage(x, rng) for x in value]
    return {key: _garbage(x, rng) for key, x in value.items()} if isinstance(value, dict) else value


def _reorder(plain: dict[str, Any], order: list[int]) -> dict[str, Any]:
    extra = plain["extra_rewards"]
    reordered = {key: [x[i] for i in order] for key, x in plain.items() if isinstance(x, list)}
    named = {key: [x[i] for i in order] for key, x in extra.items()} if extra else None
    return {**plain, **reordered, "extra_rewards": named}


def _insert(row: list[Any], at: list[int], fill: Any) -> list[Any]:
    row = list(row)
    for position in reversed(at):
        row.insert(position, fill)
    return row
