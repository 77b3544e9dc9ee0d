"""The worked example of four ragged rollouts, computed elsewhere in numpy, and its hand-checked numbers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import stepcredit as sc

VECTORS = Path(__file__).parents[2] / "shared" / "vectors"
DATA: dict[str, Any] = {
    "lengths": [8, 5, 6, 3],
    "rewards": [1.0, 0.0, 1.0, 0.0],
    "format_rewards": [1.0, 1.0, 1.0, 0.0],
    "steps": [[(2, 0.9), (5, 0.4), (7, 0.7)], [(1, 0.2), (4, 0.2)], [(3, 0.6), (5, 0.8)], [(2, 0.1)]],
    "old_logprobs": [
        [-0.5, -0.2, -1.0, -0.1, -0.4, -0.3, -0.2, -0.1],
        [-0.9, -0.4, -0.6, -0.2, -0.5],
        [-0.3, -0.7, -0.2, -0.2, -0.1, -0.6],
        [-1.2, -0.8, -0.5],
    ],
    "ref_logprobs": [
        [-0.7, -0.3, -0.8, -0.1, -0.6, -0.3, -0.4, -0.2],
        [-0.8, -0.4, -0.3, -0.4, -0.5],
        [-0.5, -0.8, -0.5, -0.1, -0.1, -0.8],
        [-1.0, -0.7, -0.2],
    ],
    "teacher_logprobs": [
        [-0.4, -0.2, -0.6, -0.3, -0.2, -0.3, -0.1, -0.1],
        [-1.5, -0.6, -0.9, -0.2, -0.9],
        [-0.2, -0.5, -0.4, -0.2, -0.1, -0.3],
        [-2.0, -0.8, -1.1],
    ],
}


def batch(dtype: torch.dtype = torch.float64) -> sc.RolloutBatch:
    step_ids, scores = [], []
    for row in DATA["steps"]:
        starts = [0, *(end + 1 for end, _ in row[:-1])]
        sizes = [end + 1 - start for start, (end, _) in zip(starts, row, strict=True)]
        step_ids.append([j for j, size in enumerate(sizes) for _ in range(size)])
        scores.append([score for size, (_, score) in zip(sizes, row, strict=True) for _ in range(size)])
    return sc.RolloutBatch.from_lists(
        DATA["lengths"],
        [0, 0, 0, 0],
        DATA["rewards"],
        dtype=dtype,
        format_rewards=DATA["format_rewards"],
        step_ids=step_ids,
        process_rewards=scores,
        old_logprobs=DATA["old_logprobs"],
        ref_logprobs=DATA["ref_logprobs"],
        teacher_logprobs=DATA["teacher_logprobs"],
        base_logprobs=DATA["ref_logprobs"],
    )


def entries(dtype: torch.dtype, ddof: int) -> dict[str, tuple[sc.Estimator, sc.RolloutBatch]]:
    """Every entry of the worked example: the estimator and the batch that give it."""
    step = batch(dtype)
    token = step.replace(step_ids=None, process_rewards=None)
    opd, gopd, implicit = sc.OPD()(token), sc.GOPD()(token), sc.LogRatio(beta=0.05)(token)
    scale: dict[str, Any] = {"std_eps": 0.0, "correction": ddof}
    found: dict[str, tuple[sc.Estimator, sc.RolloutBatch]] = {
        "grpo": (sc.GRPO(**scale), step),
        "dr_grpo": (sc.DrGRPO(), step),
        "rloo": (sc.RLOO(), step),
        "reinforce_pp": (sc.REINFORCEpp(), step),
        "gdpo/rollouts": (sc.GDPO(**scale), step),
        "gdpo/tokens": (sc.GDPO(whiten_over="tokens", **scale), step),
        "papo": (sc.PAPO(**scale), step),
    }
    for fusion in ("process", "pooled", "summed", "separate"):
        found[f"grpo_process/{fusion}"] = (sc.GRPOProcess(fusion=fusion, **scale), step)
    for attribution in ("prefix", "token", "return_to_go"):
        found[f"spro/{attribution}"] = (sc.SPRO(beta=0.5, attribution=attribution, **scale), step)
    for baseline in ("code", "paper"):
        found[f"prime/{baseline}"] = (sc.PRIME(token_baseline=baseline), implicit)
        found[f"prime/{baseline}/unnormed"] = (sc.PRIME(token_baseline=baseline, process_norm=None), implicit)
    for name, options, given in (
        ("step k=0.7", {}, step),
        ("step k=1", {"k": 1.0}, step),
        ("step k=0", {"k": 0.0}, step),
        ("step abs_max k=1", {"k": 1.0, "norm": "abs_max"}, step),
        ("step abs_max all", {"norm": "abs_max", "norm_scope": "all"}, step),
        ("step weights (2, .5, 1)", {"w_process": 2.0, "w_outcome": 0.5}, step),
        ("step dl_scope=process", {"dl_scope": "process"}, step),
        ("step fusion=summed k=1", {"fusion": "summed", "k": 1.0}, step),
        ("opd", {}, opd),
        ("opd abs_max", {"norm": "abs_max"}, opd),
        ("gopd", {}, gopd),
        ("opd eta=0.3", {"eta": 0.3}, opd),
        ("opd eta=0.3 mean", {"eta": 0.3, "chunk_value": "mean"}, opd),
        ("opd eta=0.3 sum", {"eta": 0.3, "chunk_value": "sum"}, opd),
    ):
        found[f"pass/{name}"] = (sc.PASS(**scale, **options), given)
    return found


@pytest.mark.skipif(not VECTORS.exists(), reason="the worked example's JSON files are not beside the project")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("ddof", [0, 1])
def test_equals_the_worked_example(ddof: int, dtype: torch.dtype) -> None:
    vectors = json.loads((VECTORS / f"worked_example_ddof{ddof}.json").read_text())
    found = entries(dtype, ddof)
    assert set(vectors) - {"data"} == set(found) | {f"{name}/K" for name in found if name.startswith("pass/")}
    for name, (estimator, given) in found.items():
        want = torch.tensor([[0.0 if x is None else x for x in row] for row in vectors[name]], dtype=torch.float64)
        credit = estimator(given)
        rounding = 6e-10  # the file holds nine decimals
        tolerance = 1e-9 if dtype == torch.float64 else 1e-5
        error = (credit.advantages.double() - want).abs().max()
        assert error <= tolerance * want.abs().max() + rounding, name
        if name.startswith("pass/"):
            assert (credit.segment_ids().amax(1) + 1).tolist() == vectors[f"{name}/K"], name


def test_equals_the_numbers_worked_by_hand() -> None:
    """The process pool is .9 .4 .7 .2 .2 .6 .8 .1: sum 3.9, mean .4875, squares 2.55, population variance .0811."""
    assert pytest.approx(0.4875) == 3.9 / 8
    std = (2.55 / 8 - 0.4875**2) ** 0.5
    assert std == pytest.approx(0.28477, abs=1e-5)
    # Row 1: outcomes 1 0 1 0 give +1, formats 1 1 1 0 give (1 - .75) / .4330 = .5774.
    fused = [(s - 0.4875) / std + 1 + 0.25 / 0.1875**0.5 for s in (0.9, 0.4, 0.7)]
    assert fused[0] == pytest.approx(3.0259, abs=1e-4)
    credit = sc.PASS(k=1.0, correction=0, std_eps=0.0)(batch())
    row = [sum(fused) / 3, sum(fused[1:]) / 2, fused[2]]
    assert row == pytest.approx([2.2065, 1.7968, 2.3236], abs=1e-4)
    assert credit.advantages[0].tolist() == pytest.approx([row[0]] * 3 + [row[1]] * 3 + [row[2]] * 2)
    # Row 4 violates the format: W f~ = 3 (0 - .75) / .4330.
    assert credit.advantages[3, :3].tolist() == pytest.approx([3 * -0.75 / 0.1875**0.5] * 3)
    assert credit.advantages[3, 0] == pytest.approx(-5.1962, abs=1e-4)
