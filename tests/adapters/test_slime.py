"""slime's hooks, from samples to the advantages of the ranks that train, against plain loops.

slime is not on PyPI: `slime_worker` does what its source does on the way. Nothing here runs slime itself.
"""

import asyncio
import copy
import pickle
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

import references
import slime_worker
from slime_worker import EXPECTED, PER_PROMPT, arguments, megatron, on_the_rank, plain, rollout_data, samples, train
from stepcredit import GOPD, OPD, PASS, SPRO, InputError, StepCreditError
from stepcredit.adapters.slime import AdvantageFunction, Reward, raw_rewards
from stepcredit.signals import Calculator

ROLES = ("old", "ref", "teacher")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "megatron.core", megatron())


def logprobs(made: list[Any]) -> dict[str, list[list[float]]]:
    return {role: [sample.log_probs[role] for sample in made] for role in ROLES}


def credit(name: str, made: list[Any], **flags: Any) -> list[torch.Tensor]:
    args = arguments(custom_advantage_function_path=f"slime_worker.{name}", **flags)
    return on_the_rank(args, rollout_data(args, made, 0, 1), logprobs(made))


@pytest.mark.filterwarnings("ignore:`process_rewards` changes")
@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("formats", [True, False])
def test_the_credit_is_that_of_the_loops(name: str, formats: bool) -> None:
    nonzero = 0
    for seed in range(20):
        made = samples(seed, formats=formats, first=seed)
        want = EXPECTED[name](plain(made))
        for sample, row, got in zip(made, want, credit(name, made), strict=True):
            torch.testing.assert_close(got, torch.tensor(row[: sample.response_length]), rtol=1e-5, atol=1e-5)
            nonzero += bool(got.any())
    assert nonzero > 100


def test_groups_split_over_ranks_get_the_credit_of_the_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ranks = 2
    assert ranks < PER_PROMPT  # slime deals samples out by stride: every group is split
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    context = mp.spawn(train, args=(ranks, f"{tmp_path}/store"), nprocs=ranks, join=False)
    deadline = time.monotonic() + 240
    while not context.join(timeout=5):  # returns False at each rank's end, raises at a rank's error
        assert time.monotonic() < deadline, "a rank did not finish"


def test_the_samplers_log_probs_are_used_where_slime_trains_on_them() -> None:
    made = samples(1)
    args = arguments(custom_advantage_function_path="slime_worker.spro", use_rollout_logprobs=True)
    data = rollout_data(args, made, 0, 1)
    data["rollout_log_probs"] = [torch.tensor(row) for row in logprobs(made)["old"]]
    got = on_the_rank(args, data, {"ref": logprobs(made)["ref"]})
    assert all(torch.equal(a, b) for a, b in zip(got, credit("spro", made), strict=True))


def test_a_reward_is_a_number_that_knows_more() -> None:
    reward = Reward(0.5, steps=[(2, 0.25), (5, None)], format=1.0, format_ok=True)
    for kept in (reward, pickle.loads(pickle.dumps(reward)), copy.deepcopy(reward)):
        assert kept == 0.5
        assert (kept.steps, kept.format, kept.format_ok) == (((2, 0.25), (5, None)), 1.0, True)
    assert torch.tensor([reward, 1.0]).tolist() == [0.5, 1.0]
    assert type(sum([reward, reward])) is float
    assert Reward(1.0).steps is None


@pytest.mark.parametrize("steps", [[(0, 0.5)], [(3, 0.5), (3, 0.5)], [(3, 0.5), (2, None)], [(3, float("nan"))]])
def test_steps_are_refused_where_they_are_made(steps: list[Any]) -> None:
    with pytest.raises(InputError, match="`steps` must have"):
        Reward(1.0, steps=steps)


def test_a_step_beyond_the_response_is_refused() -> None:
    made = samples(2)
    made[3].reward = Reward(1.0, steps=[(made[3].response_length + 1, 0.5)], format=1.0)
    with pytest.raises(InputError, match=r"`steps` must end inside the response; got \d+ of \d+ tokens in sample 3"):
        credit("pass_", made)


def test_raw_rewards_take_slimes_reward_key_and_nothing_but_numbers() -> None:
    made = samples(3)[:2]
    inner = made[0].reward
    for sample in made:
        sample.reward = {"math": sample.reward}
    raw, rewards = raw_rewards(arguments(reward_key="math"), made)
    assert rewards[0] is inner
    assert raw[0] == float(inner)
    with pytest.raises(InputError, match=r"must be a number; got dict\. Pass `--reward-key`"):
        raw_rewards(arguments(), made)


def test_rewards_that_know_no_steps_are_refused_with_the_flags() -> None:
    with pytest.raises(
        InputError, match=r"must carry steps for PASS.*--custom-rm-path.*--custom-reward-post-process-path"
    ):
        credit("pass_", samples(4, steps=False))


def test_a_format_reward_is_in_every_sample_or_in_none() -> None:
    made = samples(5)
    made[7].reward = Reward(1.0)
    with pytest.raises(InputError, match="`format` must be in every Reward or in none; got none in sample 7"):
        credit("rloo", made)


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        (
            "grpo",
            {"custom_reward_post_process_path": None},
            "`--custom-reward-post-process-path` must be .*standardized",
        ),
        ("grpo", {"normalize_advantages": True}, "`--normalize-advantages` must be off"),
        ("grpo", {"advantage_estimator": "gspo"}, "must not be gspo"),
        ("grpo", {"advantage_estimator": "ppo"}, "must not be ppo"),
        ("opd", {"use_opd": True}, r"`--opd-kl-coef` must be 0, or the teacher counts twice; got 1\.0"),
    ],
)
def test_flags_that_lose_the_credit_are_refused(name: str, flags: dict[str, Any], message: str) -> None:
    function = getattr(slime_worker, name)
    made = samples(6)
    data = rollout_data(arguments(), made, 0, 1)
    with pytest.raises(InputError, match=message):
        function(arguments(**flags), data)


@pytest.mark.parametrize(
    "flags",
    [
        {"use_opd": True, "opd_kl_coef": 0.0},
        {"custom_reward_post_process_path": None, "rewards_normalization": False},
        {"custom_reward_post_process_path": None, "advantage_estimator": "reinforce_plus_plus"},
    ],
)
def test_flags_that_do_not_are_not(flags: dict[str, Any]) -> None:
    made = samples(6)
    args = arguments()
    data = on_the_rank(args, rollout_data(args, made, 0, 1), logprobs(made))
    again = rollout_data(args, made, 0, 1)
    slime_worker.grpo(arguments(**flags), again)
    assert all(torch.equal(a, b) for a, b in zip(data, again["advantages"], strict=True))


def test_slices_of_context_parallelism_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "megatron.core", megatron(context_parallel=2))
    with pytest.raises(InputError, match="`--context-parallel-size` must be 1: ranks hold slices; got 2"):
        credit("grpo", samples(7))


@pytest.mark.parametrize(
    ("name", "column", "flag"),
    [
        ("spro", "log_probs", "--kl-coef 1 --ref-load DIR"),
        ("spro", "ref_log_probs", "--kl-coef 1 --ref-load DIR"),
        ("opd", "teacher_log_probs", "--use-opd --opd-kl-coef 0"),
        ("grpo", "sample_indices", "index"),
    ],
)
def test_a_column_that_is_missing_is_named_with_its_flag(name: str, column: str, flag: str) -> None:
    made = samples(8)
    args = arguments(custom_advantage_function_path=f"slime_worker.{name}")
    data = rollout_data(args, made, 0, 1)
    data.pop(column, None)
    brought = {
        role: rows for role, rows in logprobs(made).items() if column != f"{role}_log_probs".removeprefix("old_")
    }
    with pytest.raises(InputError, match=f"`{column}` must.*{flag}"):
        on_the_rank(args, data, brought)


def test_a_column_of_other_lengths_is_refused() -> None:
    made = samples(9)
    args = arguments(custom_advantage_function_path="slime_worker.spro")
    rows = logprobs(made)
    rows["ref"][2] = rows["ref"][2][:-1]
    with pytest.raises(InputError, match="`ref_log_probs` must have one entry a response token"):
        on_the_rank(args, rollout_data(args, made, 0, 1), rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"estimator": "pass"}, "`estimator` must be an Estimator"),
        ({"estimator": PASS(), "signal": GOPD()}, "must not read base_logprobs"),
        ({"estimator": PASS(), "signal": Calculator()}, "must be a log-prob signal; got Calculator.*steps="),
    ],
)
def test_what_slime_never_brings_is_refused_where_the_function_is_made(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AdvantageFunction(**arguments)


def test_the_function_is_printed_and_compared_and_pickled() -> None:
    function = AdvantageFunction(SPRO(beta=0.5), signal=OPD())
    assert pickle.loads(pickle.dumps(function)) == function
    assert "SPRO(beta=0.5" in repr(function)


def test_the_module_of_the_manual_works() -> None:
    manual = (Path(__file__).parents[2] / "docs" / "engines.md").read_text()
    code = manual.split("# my_credit.py\n")[1].split("```")[0]
    module: dict[str, Any] = {"my_judge": lambda sample: (1.0, [(2, 0.9), (sample.response_length, 0.1)])}
    exec(code, module)
    made = [sample for sample in samples(11) if sample.response_length > 2]
    for sample in made:
        sample.reward = asyncio.run(module["reward"](arguments(), sample))
    data = rollout_data(arguments(), made, 0, 1)
    data["loss_masks"] = [torch.tensor(mask) for mask in data["loss_masks"]]
    module["advantages"](arguments(), data)
    want = references.pass_(plain(made), k=0.7)
    for sample, row, got in zip(made, want, data["advantages"], strict=True):
        torch.testing.assert_close(got, torch.tensor(row[: sample.response_length]), rtol=1e-5, atol=1e-5)


def test_without_megatron_the_error_says_who_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "megatron.core", None)
    with pytest.raises(StepCreditError, match="must be called by slime"):
        credit("grpo", samples(0))
