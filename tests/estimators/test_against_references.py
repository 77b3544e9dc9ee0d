"""Every estimator against plain loops, on thousands of random batches, options and layouts."""

import math
import random
import warnings

import pytest
import torch

from references import pass_chunks
from schemes import SCHEMES
from stepcredit import ESTIMATORS, Credit, RolloutBatch, StepCreditWarning
from stepcredit.estimators import Estimator
from strategies import packed, padded, plain_batch

BATCHES = 250


def assign(estimator: Estimator, batch: RolloutBatch) -> Credit:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StepCreditWarning)  # tied random signals look like step scores, rightly
        return estimator(batch)


def close(got: torch.Tensor, want: torch.Tensor, rel: float, floor: float) -> bool:
    return bool((got - want).abs().max() <= rel * want.abs().max() + floor) if want.numel() else True


def test_every_estimator_has_a_reference() -> None:
    assert set(SCHEMES) == set(ESTIMATORS)


@pytest.mark.parametrize("name", SCHEMES)
def test_float64_equals_loops_in_every_layout(name: str) -> None:
    reference, draw = SCHEMES[name]
    nonzero = 0
    for seed in range(BATCHES):
        options, plain = draw(random.Random(seed)), plain_batch(seed)
        want = torch.tensor(reference(plain, **options), dtype=torch.float64)
        mask = torch.tensor(plain["mask"])
        estimator = ESTIMATORS[name](**options)
        got = assign(estimator, padded(plain)).advantages
        assert got.dtype == torch.float64
        assert close(got, want, 1e-9, 1e-9), (seed, estimator)
        assert close(assign(estimator, packed(plain)).advantages, want[mask], 1e-9, 1e-9), (seed, estimator)
        whole = assign(estimator, packed(plain, drop_masked=False)).advantages
        assert close(whole, want.flatten(), 1e-9, 1e-9), (seed, estimator)
        nonzero += bool(want.any())
    assert nonzero > BATCHES / 3  # the comparison is not one of zeros with zeros


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SCHEMES)
def test_narrow_inputs_equal_loops_on_the_rounded_values(name: str, dtype: torch.dtype) -> None:
    reference, draw = SCHEMES[name]
    for seed in range(60):
        options, plain = draw(random.Random(seed)), plain_batch(seed)
        rounded = {key: _rounded(value, dtype) for key, value in plain.items()}
        want = torch.tensor(reference(rounded, **options), dtype=torch.float64)
        got = assign(ESTIMATORS[name](**options), padded(plain, dtype)).advantages
        assert got.dtype == torch.float32
        assert close(got.double(), want, 1e-5, 1e-7), seed


def test_chunks_equal_loops() -> None:
    draw = SCHEMES["pass"][1]
    for seed in range(BATCHES):
        options, plain = draw(random.Random(seed)), plain_batch(seed)
        got = assign(ESTIMATORS["pass"](**options), padded(plain)).segment_ids()
        assert got.tolist() == pass_chunks(plain, **options), seed


def _rounded(value: object, dtype: torch.dtype) -> object:
    """Floats as the narrow dtype holds them; everything else as it is."""
    if isinstance(value, float):
        return value if math.isnan(value) else float(torch.tensor(value, dtype=torch.float64).to(dtype))
    if isinstance(value, list):
        return [_rounded(x, dtype) for x in value]
    return {key: _rounded(x, dtype) for key, x in value.items()} if isinstance(value, dict) else value
