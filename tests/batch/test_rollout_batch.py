"""`RolloutBatch`: three constructors for one thing, and an error for everything else."""

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings

import stepcredit as sc
from stepcredit import GRPO, InputError, RolloutBatch
from stepcredit.ops import kernels
from strategies import packed, padded, plain_batch, seeds

MASK = torch.tensor([[True, True, True], [True, True, False]])
GROUPS = torch.tensor([0, 0])
SIGNAL = torch.tensor([[0.1, 0.1, 0.2], [0.3, 0.4, 0.0]])
NAN = float("nan")

BAD: list[tuple[dict[str, Any], str]] = [
    ({"response_mask": MASK.float()}, "`response_mask` must be bool; got torch.float32"),
    ({"response_mask": MASK.long()}, "`response_mask` must be bool; got torch.int64"),
    ({"response_mask": MASK[0]}, r"`response_mask` must have shape \[batch, time\]; got \[3\]"),
    ({"response_mask": "yes"}, "`response_mask` must be a tensor"),
    ({"group_ids": torch.tensor([0.0, 1.0])}, r"`group_ids` must be integers; got torch\.float32"),
    ({"group_ids": torch.tensor([0, 0, 1])}, r"`group_ids` must have shape \[batch\] = \[2\]; got \[3\]"),
    ({"rewards": torch.tensor([[1.0], [0.0]])}, r"`rewards` must have shape \[batch\] = \[2\]; got \[2, 1\]"),
    ({"rewards": torch.tensor([1.0, NAN])}, "`rewards` must be finite on every row that counts; got nan in row 1"),
    ({"rewards": torch.tensor([1.0, float("inf")])}, "got inf in row 1"),
    ({"rewards": torch.tensor([1.0, -1e200], dtype=torch.float64)}, "`rewards` must be smaller than"),
    ({"rewards": torch.tensor([1j, 0j])}, "`rewards` must be real numbers; got torch.complex64"),
    ({"rewards": ["a", "b"]}, "`rewards` must be a tensor"),
    ({"format_rewards": torch.tensor([NAN, 1.0])}, "`format_rewards` must be finite"),
    (
        {"format_rewards": torch.tensor([0.5, 1.0])},
        "`format_ok` must be given when `format_rewards` holds other values",
    ),
    ({"format_ok": torch.tensor([True, False])}, "`format_rewards` must be given when `format_ok` holds a violation"),
    ({"format_ok": torch.tensor([1, 0])}, "`format_ok` must be bool"),
    ({"correct": torch.tensor([1.0, 0.0])}, "`correct` must be bool"),
    ({"row_mask": torch.tensor([True])}, r"`row_mask` must have shape \[batch\] = \[2\]; got \[1\]"),
    ({"extra_rewards": torch.tensor([1.0, 0.0])}, "`extra_rewards` must be a dict"),
    ({"extra_rewards": {"brief": torch.tensor([1.0])}}, r"`extra_rewards\['brief'\]` must have shape"),
    ({"extra_rewards": {"brief": torch.tensor([1.0, NAN])}}, r"`extra_rewards\['brief'\]` must be finite"),
    (
        {"extra_rewards": {"outcome": torch.tensor([1.0, 0.0])}},
        "`extra_rewards` must not use the name of another channel",
    ),
    ({"process_rewards": SIGNAL[:, :2]}, r"`process_rewards` must have shape \[batch, time\] = \[2, 3\]; got \[2, 2\]"),
    ({"process_rewards": SIGNAL.index_fill(1, torch.tensor([1]), NAN)}, "got nan at row 0, response token 1"),
    ({"process_rewards": SIGNAL, "step_ids": torch.tensor([[0, 0, 1], [0, 0, 0]])}, "must be constant within a step"),
    (
        {"step_ids": torch.tensor([[0, 1, 0], [0, 0, 0]])},
        "`step_ids` must never decrease .* got 0 after 1 at row 0, response token 2",
    ),
    (
        {"step_ids": torch.tensor([[0, -2, 0], [0, 0, 0]])},
        "`step_ids` must be >= -1; got -2 at row 0, response token 1",
    ),
    ({"step_ids": torch.zeros(2, 3)}, "`step_ids` must be integers; got torch.float32"),
    ({"process_mask": torch.ones(2, 3)}, "`process_mask` must be bool"),
    ({"old_logprobs": SIGNAL * NAN}, "`old_logprobs` must be finite"),
    ({"ref_logprobs": SIGNAL[0]}, r"`ref_logprobs` must have shape \[batch, time\] = \[2, 3\]; got \[3\]"),
    ({"rewards": torch.zeros(2, device="meta")}, "`rewards` must be on the device of `response_mask`, cpu; got meta"),
]


@pytest.mark.parametrize(("fields", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_bad_input_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        RolloutBatch(**{"response_mask": MASK, "group_ids": GROUPS, **fields})
    assert "\n" not in str(error.value)


def test_what_is_masked_may_hold_anything() -> None:
    batch = RolloutBatch(
        MASK,
        GROUPS,
        torch.tensor([1.0, NAN]),
        row_mask=torch.tensor([True, False]),
        process_rewards=torch.tensor([[0.1, 0.2, 0.3], [NAN, NAN, NAN]]),
        step_ids=torch.tensor([[0, 1, 2], [-9, 7, -9]]),
    )
    assert sc.PASS()(batch).advantages[1].tolist() == [0.0, 0.0, 0.0]
    assert sc.PASS()(batch).counts()["excluded_rows"] == 1


@pytest.mark.filterwarnings("ignore::stepcredit.StepCreditWarning")
@settings(max_examples=40, deadline=None)
@given(seed=seeds())
def test_lists_padded_and_packed_agree(seed: int) -> None:
    plain = plain_batch(seed)
    columns = {
        "rewards": "rewards",
        "format_rewards": "format_rewards",
        "format_ok": "format_ok",
        "row_mask": "row_mask",
    }
    tokens = {"process_rewards": "process", "step_ids": "step_ids", "process_mask": "process_mask"}
    cut = [max((t + 1 for t, on in enumerate(row) if on), default=0) for row in plain["mask"]]
    ragged = {
        new: [row[:n] for row, n in zip(plain[old], cut, strict=True)] for new, old in tokens.items() if plain[old]
    }
    mask = [row[:n] for row, n in zip(plain["mask"], cut, strict=True)]
    lists = RolloutBatch.from_lists(
        mask, plain["group"], **{new: plain[old] for new, old in columns.items()}, correct=plain["correct"], **ragged
    )
    scheme = sc.GRPOProcess(fusion="separate")
    want = scheme(padded({**plain, "extra_rewards": None}))
    got = scheme(lists)
    assert lists.dtype == torch.float64
    assert torch.equal(got.advantages, want.advantages[:, : max(cut, default=0)])
    assert torch.equal(scheme(packed(plain)).advantages, want.advantages[torch.tensor(plain["mask"])])
    assert packed(plain).layout.rows.size == padded(plain).layout.rows.size


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RolloutBatch.from_lists([2], [0], [1.0], process_rewards=[[0.5]]), "one entry a token; got 1 for 2"),
        (lambda: RolloutBatch.from_lists([2, 1], [0, 0], [1.0], step_ids=[[0, 0]]), "one list a rollout, 2; got 1"),
        (lambda: RolloutBatch.from_lists([1], ["a"]), "`group_ids` must be one int a rollout"),
        (lambda: RolloutBatch.from_lists([1], [0.5]), r"`group_ids` must be integers; got torch\.float32"),
        (lambda: RolloutBatch.from_lists([1], [2**80]), "`group_ids` must be one int a rollout"),
        (
            lambda: RolloutBatch.from_lists([True], [0]),
            "`response_mask` must hold lists of bools, or lengths >= 0; got True",
        ),
        (lambda: RolloutBatch.from_lists([-1], [0]), "got -1 for row 0"),
        (lambda: RolloutBatch.from_lists([[1, 0]], [0]), "`response_mask` must be bool; got torch.int64"),
        (lambda: RolloutBatch.from_lists([1], [0], [None]), "`rewards` must be one float a rollout"),
        (lambda: RolloutBatch.from_lists([1], [0], step_ids=[[0.5]]), "`step_ids` must be integers"),
        (lambda: RolloutBatch.from_lists([1], [0], process_rewards=3.0), "`process_rewards` must be a list of lists"),
        (lambda: RolloutBatch.from_lists([1], [0], process_rewards=[1.0]), "`process_rewards` must be a list of lists"),
        (lambda: RolloutBatch.from_lists([1], [0], process_rewards=[[None]]), "`process_rewards` must be one float"),
        (lambda: RolloutBatch.from_lists(3, [0]), "`response_mask` must be a list"),
        (
            lambda: RolloutBatch.from_lists([None], [0]),
            "`response_mask` must hold lists of bools, or lengths; got None",
        ),
        (lambda: RolloutBatch.from_lists([1], [0], [1.7], dtype=torch.int64), "`dtype` must be a floating point"),
        (
            lambda: RolloutBatch.from_packed(SIGNAL[0], torch.tensor([0, 3]), GROUPS[:1]),
            "must hold token fields .* 'Tensor'",
        ),
        (lambda: RolloutBatch.from_packed({}, torch.tensor([]), GROUPS), "`cu_seqlens` must rise from 0"),
        (
            lambda: RolloutBatch.from_lists([1], [0], extra_rewards={"a": ["b"]}),
            r"`extra_rewards\['a'\]` must be one float",
        ),
        (lambda: RolloutBatch.from_packed({}, torch.tensor(3), GROUPS), "`cu_seqlens` must rise from 0"),
        (lambda: RolloutBatch.from_packed({}, torch.tensor([[0, 1]]), GROUPS), "`cu_seqlens` must rise from 0"),
        (
            lambda: RolloutBatch.from_packed({}, torch.tensor([0, 2]), GROUPS[:1], process_rewards=SIGNAL[0]),
            "`process_rewards` must be given in `values`",
        ),
        (
            lambda: RolloutBatch.from_lists([1], [0], reward=[1.0]),
            "`reward` must be a field of RolloutBatch; did you mean rewards",
        ),
        (
            lambda: RolloutBatch.from_packed({"step": SIGNAL}, torch.tensor([0, 2]), GROUPS),
            "`values` must hold token fields",
        ),
        (
            lambda: RolloutBatch.from_packed({"process_rewards": SIGNAL[0]}, torch.tensor([0, 2]), GROUPS[:1]),
            "`cu_seqlens` must rise from 0 to the number of tokens, 3; got",
        ),
        (
            lambda: RolloutBatch.from_packed({"response_mask": MASK[0]}, torch.tensor([0, 3, 2]), GROUPS),
            r"`cu_seqlens` must rise from 0 to the number of tokens, 3; got \[0, 3, 2\]",
        ),
        (
            lambda: RolloutBatch(MASK, GROUPS).replace(reward=1),
            "`reward` must be a field of RolloutBatch; did you mean rewards",
        ),
    ],
)
def test_bad_constructor_calls_are_named(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_dtype_is_float64_if_anything_is() -> None:
    wide = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert sc.GRPO()(RolloutBatch(MASK, GROUPS, wide.to(dtype))).advantages.dtype == torch.float32
    assert sc.GRPO()(RolloutBatch(MASK, GROUPS, wide)).advantages.dtype == torch.float64
    assert sc.GRPO()(RolloutBatch(MASK, GROUPS, torch.tensor([1, 0]))).advantages.dtype == torch.float32
    assert sc.GRPO()(RolloutBatch(MASK, GROUPS, torch.tensor([True, False]))).advantages[0, 0] > 0


BAD_OUT = {
    "type": 5,
    "shape": torch.zeros(2, 4),
    "dtype": torch.zeros(2, 3, dtype=torch.float64),
    "strides": torch.zeros(3, 2).T,
    "device": torch.zeros(2, 3, device="meta"),
    "graph": torch.zeros(2, 3, requires_grad=True),
}


@pytest.mark.parametrize("out", BAD_OUT.values(), ids=BAD_OUT)
def test_out_must_fit(out: Any) -> None:
    with pytest.raises(InputError, match="`out` must be a contiguous"):
        sc.GRPO()(RolloutBatch(MASK, GROUPS, torch.tensor([1.0, 0.0])), out=out)


def test_a_batch_is_frozen_and_replaced() -> None:
    batch = RolloutBatch(MASK, GROUPS, torch.tensor([1.0, 0.0]))
    with pytest.raises(AttributeError):
        batch.rewards = None  # type: ignore[misc]
    assert batch.replace(rewards=torch.tensor([0.0, 1.0])).rewards.tolist() == [0.0, 1.0]
    assert batch.rewards.tolist() == [1.0, 0.0]
    assert len(batch) == 2


@pytest.mark.parametrize("send", [copy.deepcopy, lambda batch: pickle.loads(pickle.dumps(batch))])
@pytest.mark.parametrize("choice", ["auto", "never"])
def test_a_batch_that_was_credited_may_be_copied_and_sent(send: Any, choice: Any) -> None:
    batch = RolloutBatch(torch.ones(4, 1 << 13, dtype=torch.bool), [0, 0, 1, 1], [1.0, 0.0, 1.0, 1.0])
    with kernels.using(choice):
        want = GRPO()(batch).advantages
        assert torch.equal(GRPO()(send(batch)).advantages, want)


def test_a_replaced_batch_has_the_layout_of_its_own_masks() -> None:
    batch = RolloutBatch(MASK, GROUPS, torch.tensor([1.0, 0.0]))
    assert batch.replace(process_rewards=SIGNAL).layout is batch.layout
    assert batch.replace(row_mask=torch.tensor([True, False])).layout.live.tolist() == [0]
    assert batch.replace(response_mask=torch.zeros_like(MASK)).layout.live.tolist() == []
    packed = RolloutBatch.from_packed({}, torch.tensor([0, 2, 3]), GROUPS)
    assert packed.replace(cu_seqlens=torch.tensor([0, 1, 3])).layout.lengths.tolist() == [1, 2]
    with pytest.raises(InputError, match="`process_rewards` must be finite on every response token"):
        batch.replace(process_rewards=torch.full_like(SIGNAL, torch.nan))
    with pytest.raises(InputError, match=r"`rewards` must have shape \[batch\] = \[2\]; got \[3\]"):
        batch.replace(rewards=torch.zeros(3))


def test_step_ids_of_uncovered_tokens_are_minus_one_in_segment_ids() -> None:
    covered = torch.tensor([[True, True, False], [True, False, False]])
    ids = torch.tensor([[0, 0, 3], [0, 1, -1]])
    batch = RolloutBatch(MASK, GROUPS, process_rewards=SIGNAL[:, :1].expand(2, 3), step_ids=ids, process_mask=covered)
    assert sc.GRPOProcess()(batch).segment_ids().tolist() == [[0, 0, -1], [0, -1, -1]]
    batch = batch.replace(rewards=torch.tensor([1.0, 0.0]))
    assert sc.REINFORCEpp()(batch).segment_ids().tolist() == [[0, 0, -1], [0, -1, -1]]
    for whole in (sc.REINFORCEpp(baseline=True), sc.GRPO(), sc.PAPO()):
        assert whole(batch).segment_ids().tolist() == [[0, 0, 0], [0, 0, -1]]


def test_rollouts_that_the_signal_does_not_reach_are_counted() -> None:
    batch = RolloutBatch.from_lists([2, 1], [0, 0], process_rewards=[[1.0, 1.0], [0.0]], step_ids=[[0, 0], [-1]])
    assert sc.PASS()(batch).counts()["unscored_rollouts"] == 1
