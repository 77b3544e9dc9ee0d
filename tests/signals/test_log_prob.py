"""The log-prob signals: token by token, and summed over the tokens of a step."""

import pytest
import torch
from hypothesis import given, settings

import stepcredit as sc
from stepcredit import InputError, RolloutBatch
from stepcredit.signals import LogProbSignal
from strategies import packed, padded, plain_batch, seeds

LAW = settings(max_examples=60, deadline=None)


def expected(plain: dict, value) -> torch.Tensor:
    """A loop: ``value(old, ref)`` on every response token, or its sum over the response tokens of the token's step."""
    rows = []
    for i, mask in enumerate(plain["mask"]):
        live = plain["row_mask"] is None or plain["row_mask"][i]
        token = [value(plain["old"][i][t], plain["ref"][i][t]) if on and live else 0.0 for t, on in enumerate(mask)]
        if plain["step_ids"] is not None:
            ids = plain["step_ids"][i]
            covered = [
                on and live and ids[t] >= 0 and (plain["process_mask"] is None or plain["process_mask"][i][t])
                for t, on in enumerate(mask)
            ]
            sums = {step: sum(x for t, x in enumerate(token) if covered[t] and ids[t] == step) for step in set(ids)}
            token = [sums[ids[t]] if covered[t] else 0.0 for t in range(len(mask))]
        rows.append(token)
    return torch.tensor(rows, dtype=torch.float64)


@LAW
@given(seed=seeds())
def test_log_ratio_and_opd_equal_loops_in_both_modes_and_layouts(seed: int) -> None:
    plain = plain_batch(seed)
    mask = torch.tensor(plain["mask"])
    for signal, value in (
        (sc.LogRatio(beta=0.3), lambda old, ref: 0.3 * (old - ref)),
        (sc.OPD(), lambda old, ref: ref - old),  # the reference in the teacher's place
        (sc.GOPD(lam=1.0), lambda old, ref: ref - old),  # at lambda 1 the base plays no part
        (sc.GOPD(lam=2.0), lambda old, ref: -(old - (ref - 1)) + 2 * (ref - (ref - 1))),
    ):
        want = expected(plain, value)
        for batch in (padded(plain), packed(plain)):
            given_ = batch.replace(teacher_logprobs=batch.ref_logprobs, base_logprobs=batch.ref_logprobs - 1)
            got = signal(given_).process_rewards
            torch.testing.assert_close(got, want if got.ndim == 2 else want[mask], rtol=1e-12, atol=1e-12)


def test_a_step_gets_the_sum_of_its_tokens_once() -> None:
    lists = {"old_logprobs": [[-1.0, -2.0, -3.0, -4.0]], "teacher_logprobs": [[-0.5, -1.0, -4.0, 0.0]]}
    batch = RolloutBatch.from_lists([4], [0], step_ids=[[0, 0, 1, -1]], **lists)
    assert sc.OPD()(batch).process_rewards.tolist() == [[1.5, 1.5, -1.0, 0.0]]


@pytest.mark.parametrize(("dtype", "out"), [(torch.float64, torch.float64), (torch.bfloat16, torch.float32)])
def test_dtype_and_what_is_kept(dtype: torch.dtype, out: torch.dtype) -> None:
    lists = {"old_logprobs": [[-1.0, -2.0]], "ref_logprobs": [[-2.0, -2.0]]}
    batch = RolloutBatch.from_lists([2], [0], [1.0], dtype=dtype, **lists)
    scored = sc.LogRatio()(batch)
    assert scored.process_rewards.dtype == out
    assert scored.rewards is not None
    assert batch.process_rewards is None  # the given batch is as it was


@pytest.mark.parametrize("signal", [sc.OPD(), sc.GOPD(), sc.LogRatio()])
def test_a_missing_field_is_named(signal: LogProbSignal) -> None:
    with pytest.raises(InputError, match=f"must be in the batch for {type(signal).__name__}; got None"):
        signal(RolloutBatch.from_lists([1], [0]))
