"""PASS: the laws of its three steps, and what the paper's text gets wrong or leaves open."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import stepcredit as sc
from stepcredit import InputError, RolloutBatch, StepCreditWarning
from strategies import padded, plain_batch, seeds

LAW = settings(max_examples=80, deadline=None)
PURE = {"w_outcome": 0.0, "w_format": 0.0}


def compliant(seed: int) -> RolloutBatch:
    return padded(
        {**plain_batch(seed, step_mode=True), "format_ok": None, "format_rewards": None, "extra_rewards": None}
    )


def one_step_a_chunk(values: list[list[float]], **fields: object) -> RolloutBatch:
    """Rollouts of one-token steps with the given signal."""
    lengths = [len(row) for row in values]
    ids = [list(range(n)) for n in lengths]
    return RolloutBatch.from_lists(lengths, [0] * len(values), step_ids=ids, process_rewards=values, **fields)


def check_equal(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@LAW
@given(seed=seeds(), w=st.sampled_from([0.5, 1.0, 3.0]))
def test_outcome_alone_at_k_1_is_grpo(seed: int, w: float) -> None:
    batch = compliant(seed)
    shaped = sc.PASS(k=1.0, w_process=0.0, w_format=0.0, w_outcome=w)(batch)
    check_equal(shaped.advantages, w * sc.GRPO()(batch).advantages)


@LAW
@given(seed=seeds())
def test_process_alone_at_k_0_is_grpo_process(seed: int) -> None:
    rng = random.Random(seed)
    values = [[rng.choice([0.0, 0.5, rng.random()]) for _ in range(rng.randint(1, 6))] for _ in range(4)]
    batch = one_step_a_chunk(values)
    check_equal(sc.PASS(k=0.0, **PURE)(batch).advantages, sc.GRPOProcess()(batch).advantages)


@LAW
@given(seed=seeds(), a=st.floats(0.1, 9.0), b=st.floats(-5.0, 5.0))
def test_masked_norm_ignores_scale_and_shift_and_abs_max_ignores_scale(seed: int, a: float, b: float) -> None:
    rng = random.Random(seed)
    values = [[rng.gauss(0, 1) for _ in range(rng.randint(1, 5))] for _ in range(4)]
    rewards = [rng.random() for _ in values]
    for norm, shift in (("masked_norm", b), ("abs_max", 0.0)):
        moved = [[a * s + shift for s in row] for row in values]
        scheme = sc.PASS(norm=norm, std_eps=0.0)
        check_equal(
            scheme(one_step_a_chunk(moved, rewards=rewards)).advantages,
            scheme(one_step_a_chunk(values, rewards=rewards)).advantages,
        )


@LAW
@given(seed=seeds())
def test_a_violators_credit_depends_on_formats_and_its_chunk_count_alone(seed: int) -> None:
    rng = random.Random(seed)
    formats, lengths = [1.0, 0.0, 1.0, 0.0], [rng.randint(1, 5) for _ in range(4)]
    draw = lambda: one_step_a_chunk(  # noqa: E731
        [[rng.gauss(0, 1) for _ in range(n)] for n in lengths],
        rewards=[rng.random() for _ in lengths],
        format_rewards=formats,
    )
    scheme = sc.PASS(k=0.7, std_eps=0.0, correction=0)
    first, second = scheme(draw()).advantages, scheme(draw()).advantages
    assert torch.equal(first[[1, 3]], second[[1, 3]])
    # W = 3, f~ = -1; with K chunks left the sum of K such values over K^.7.
    for row in (1, 3):
        for t in range(lengths[row]):
            assert first[row, t] == pytest.approx(-3.0 * (lengths[row] - t) ** 0.3)


@pytest.mark.parametrize("k", [0.0, 0.3, 0.7, 1.0, 2.0])
def test_first_and_last_chunk(k: float) -> None:
    batch = one_step_a_chunk([[0.2, 0.9, 0.5, 0.7], [0.1, 0.4]], rewards=[1.0, 0.0])
    plain, shaped = sc.PASS(k=0.0)(batch).advantages, sc.PASS(k=k)(batch).advantages
    assert shaped[0, 3] == pytest.approx(float(plain[0, 3]))  # the last chunk's own value whatever k
    assert shaped[0, 0] == pytest.approx(float(plain[0, 0]) / 4**k)  # S(o) = G_1 / K^k


@pytest.mark.parametrize("k", [0.0, 0.5, 1.0])
def test_equal_chunks_collapse_inflate_or_are_indifferent(k: float) -> None:
    """K chunks of value e give e K^(1-k): k = 0 pays for length, k = 1 does not; for k < 1 length still pays."""
    scores = []
    for chunks in (1, 2, 8):
        ids = [list(range(chunks)), [0]]
        batch = RolloutBatch.from_lists([chunks, 1], [0, 0], step_ids=ids, process_rewards=[[1.0] * chunks, [-1.0]])
        scores.append(float(sc.PASS(k=k, norm="abs_max")(batch).advantages[0, 0]))
    assert scores == pytest.approx([1.0, 2 ** (1 - k), 8 ** (1 - k)])


def test_neutral_chunks_raise_a_negative_score_when_k_is_positive() -> None:
    short = sc.functional.divide_length(torch.tensor([-1.0]), sc.functional.Segments.from_lengths(torch.tensor([1])))
    long = sc.functional.divide_length(
        torch.tensor([-1.0, 0.0]), sc.functional.Segments.from_lengths(torch.tensor([2]))
    )
    assert long[0] > short[0]


@pytest.mark.parametrize("k", [0.3, 0.7, 1.0])
def test_the_threshold_of_a_worthwhile_chunk_is_not_the_printed_one(k: float) -> None:
    """Appending v to K chunks that sum to A leaves S = A / K^k as it is at v = A [((K + 1) / K)^k - 1]."""
    values = torch.tensor([2.0, 1.0, 3.0], dtype=torch.float64)
    a, n = 6.0, 3
    v = a * (((n + 1) / n) ** k - 1)

    def score(x: torch.Tensor) -> torch.Tensor:
        return sc.functional.divide_length(x, sc.functional.Segments.from_lengths(torch.tensor([x.numel()])), k)[0]

    assert score(torch.cat([values, values.new_tensor([v])])) == pytest.approx(float(score(values)))
    assert v == pytest.approx(k * a / n, rel=0.25)  # its first-order form
    assert v != pytest.approx(k * a / n, rel=1e-3) or k == 1.0


@LAW
@given(seed=seeds(), mode=st.booleans())
def test_both_dl_scopes_agree_at_k_1(seed: int, mode: bool) -> None:
    batch = compliant(seed) if mode else padded(plain_batch(seed, step_mode=mode))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stepcredit.estimators.compacted.Compacted.warn_if_piecewise_constant", lambda _: None)
        check_equal(
            sc.PASS(k=1.0, dl_scope="fused")(batch).advantages,
            sc.PASS(k=1.0, dl_scope="process")(batch).advantages,
        )


def test_for_k_under_1_the_outcomes_weight_grows_with_the_remaining_chunks() -> None:
    batch = one_step_a_chunk([[0.0] * 4, [0.0] * 4], rewards=[1.0, 0.0])
    outcome = sc.PASS(k=0.5, std_eps=0.0, correction=0)(batch).terms()["outcome"]
    assert outcome[0].tolist() == pytest.approx([2.0, 3**0.5, 2**0.5, 1.0])


def test_only_the_last_tokens_value_survives_in_a_merged_chunk() -> None:
    batch = RolloutBatch.from_lists([3, 3], [0, 0], process_rewards=[[1.0, 0.5, 0.0], [-1.0, -0.5, 0.25]])
    options = {"norm": "abs_max", "eta": 10.0, "k": 1.0}
    values = {how: sc.PASS(chunk_value=how, **options)(batch).advantages[0, 0] for how in ("last", "mean", "sum")}
    assert [float(values[how]) for how in ("last", "mean", "sum")] == pytest.approx([0.0, 0.5, 1.5])


def test_token_mode_hardly_merges_anything() -> None:
    """The group average differs between neighbors almost always: about as many chunks as tokens."""
    generator = torch.Generator().manual_seed(0)
    signal = torch.randn(8, 64, generator=generator, dtype=torch.float64)
    batch = RolloutBatch(torch.ones(8, 64, dtype=torch.bool), torch.zeros(8, dtype=torch.long), process_rewards=signal)
    assert (sc.PASS()(batch).segment_ids().amax(1) + 1 == 64).all()


def test_a_step_shaped_signal_without_step_ids_is_warned_about() -> None:
    batch = RolloutBatch.from_lists([6], [0], process_rewards=[[0.1, 0.1, 0.1, 0.9, 0.9, 0.9]])
    with pytest.warns(StepCreditWarning, match="step_ids") as warned:
        sc.PASS()(batch)
    assert warned[0].filename == __file__  # it points at the caller
    with pytest.warns(StepCreditWarning, match="step_ids"):
        sc.GRPOProcess()(batch)
    whole = RolloutBatch.from_lists([3, 3], [0, 0], process_rewards=[[0.9] * 3, [0.1] * 3])
    with pytest.warns(StepCreditWarning, match="at 0 of 4"):  # one score a response, spread over it
        sc.PASS()(whole)
    silent = RolloutBatch.from_lists([3, 3], [0, 0], process_rewards=[[0.0] * 3, [0.0] * 3])
    assert (sc.PASS()(silent).advantages == 0).all()


def test_a_negative_format_reward_needs_format_ok() -> None:
    with pytest.raises(InputError, match="`format_ok` must be given"):
        one_step_a_chunk([[1.0], [0.0]], format_rewards=[-1.0, 0.0])
    kept = one_step_a_chunk([[1.0], [0.0]], format_rewards=[-1.0, 0.0], format_ok=[False, True])
    assert sc.PASS()(kept).advantages[0, 0] < 0


def test_literal_abs_max_never_pushes_the_format_back() -> None:
    fields = {"format_rewards": [0.0, 1.0], "rewards": [1.0, 0.0]}
    batch = one_step_a_chunk([[1.0], [0.5]], **fields)
    assert sc.PASS(norm="abs_max", norm_scope="all")(batch).advantages[0, 0] == 0
    assert sc.PASS(norm="abs_max")(batch).advantages[0, 0] < 0


def test_a_group_of_equal_violators_gets_nothing_and_is_counted() -> None:
    batch = one_step_a_chunk([[1.0], [0.5]], rewards=[1.0, 0.0], format_rewards=[0.0, 0.0])
    credit = sc.PASS()(batch)
    assert (credit.advantages == 0).all()
    assert credit.counts()["violating_groups"] == 1


@pytest.mark.parametrize("options", [{"singletons": "raw"}, {"norm": "abs_max", "norm_scope": "all"}])
def test_violators_that_are_pushed_back_are_not_counted(options: dict[str, str]) -> None:
    batch = one_step_a_chunk([[1.0]], rewards=[1.0], format_rewards=[-1.0], format_ok=[False])
    credit = sc.PASS(**{"singletons": "raw", **options})(batch)
    assert credit.advantages[0, 0] != 0
    assert credit.counts()["violating_groups"] == 0


def test_an_absent_stream_leaves_the_total_weight() -> None:
    """Violator: W f~ with W = w_process + w_format when there is no outcome; f~ of 0 among (1, 0) is -1."""
    batch = one_step_a_chunk([[1.0], [0.5]], format_rewards=[1.0, 0.0])
    credit = sc.PASS(w_process=5.0, w_outcome=100.0, std_eps=0.0, correction=0)(batch)
    assert credit.advantages[1, 0] == pytest.approx(-6.0)


def test_opd_samples_have_either_sign() -> None:
    batch = RolloutBatch.from_lists([2], [0], old_logprobs=[[-1.0, -1.0]], teacher_logprobs=[[-2.0, -0.5]])
    assert sc.OPD()(batch).process_rewards.tolist() == [[-1.0, 0.5]]


def test_a_signal_is_needed() -> None:
    with pytest.raises(InputError, match="`process_rewards` must be in the batch for PASS"):
        sc.PASS()(RolloutBatch.from_lists([1], [0], [1.0]))
