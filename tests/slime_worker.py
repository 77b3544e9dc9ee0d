"""slime's way from samples to a rank's advantages, written down from its source, and one rank of it as a process.

A module of its own, so that spawned processes can import it, and so that slime's paths can name what is in it.
"""

import importlib
import pickle
import random
import sys
import warnings
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

import references
from stepcredit import GDPO, GRPO, OPD, PASS, RLOO, SPRO, InputError, LogRatio, REINFORCEpp
from stepcredit.adapters.slime import AdvantageFunction, Reward

PER_PROMPT = 4
KEYS = (
    "tokens", "response_lengths", "rewards", "truncated", "loss_masks", "sample_indices", "rollout_ids",
    "rollout_log_probs", "teacher_log_probs",
)  # fmt: skip
"""What slime hands on of its training data, as far as it is made here."""

grpo = AdvantageFunction(GRPO())
rloo = AdvantageFunction(RLOO(w_format=0.5))
gdpo = AdvantageFunction(GDPO())
reinforce_pp = AdvantageFunction(REINFORCEpp())
pass_ = AdvantageFunction(PASS(k=0.7))
spro = AdvantageFunction(SPRO(beta=0.5))
opd = AdvantageFunction(PASS(k=1.0), signal=OPD())
log_ratio = AdvantageFunction(PASS(k=1.0), signal=LogRatio(beta=0.5))

EXPECTED = {
    "grpo": lambda plain: references.grpo(plain),
    "rloo": lambda plain: references.rloo(plain, w_format=0.5),
    "gdpo": lambda plain: references.gdpo(plain),
    "reinforce_pp": lambda plain: references.reinforce_pp(plain),
    "pass_": lambda plain: references.pass_(plain, k=0.7),
    "spro": lambda plain: references.spro(plain, beta=0.5),
    "opd": lambda plain: references.pass_(with_token_signal(plain, "teacher", 1.0), k=1.0),
    "log_ratio": lambda plain: references.pass_(with_token_signal(plain, "ref", -0.5), k=1.0),
}


def arguments(**changes: Any) -> SimpleNamespace:
    """slime's flags, with their defaults there, and the two paths of a credit module."""
    named = {
        "advantage_estimator": "grpo", "rewards_normalization": True, "normalize_advantages": False,
        "use_rollout_logprobs": False, "use_opd": False, "opd_kl_coef": 1.0, "reward_key": None,
        "n_samples_per_prompt": PER_PROMPT, "custom_advantage_function_path": "slime_worker.grpo",
        "custom_reward_post_process_path": "stepcredit.adapters.slime.raw_rewards",
    }  # fmt: skip
    return SimpleNamespace(**{**named, **changes})


def samples(seed: int, *, steps: bool = True, formats: bool = True, first: int = 0) -> list[Any]:
    """Three prompts' samples: tool output, removed samples, steps that end early, responses that nothing scored."""
    rng = random.Random(seed)
    made = []
    for index in range(first * PER_PROMPT, (first + 3) * PER_PROMPT):
        length = rng.randint(1, 9)
        ends = sorted(rng.sample(range(1, length + 1), rng.randint(0, min(3, length))))
        scored = [(end, rng.choice([None, 0.25, 0.5, 1.0])) for end in ends]
        known: dict[str, Any] = {"steps": scored if steps and rng.random() < 0.8 else None}
        if formats:
            known |= {"format": rng.choice([0.0, 1.0, 1.0])}
        made.append(
            SimpleNamespace(
                index=index,
                tokens=[3] * (4 + length),
                response_length=length,
                loss_mask=[int(rng.random() < 0.8) for _ in range(length)],
                remove_sample=rng.random() < 0.1,
                reward=Reward(rng.choice([0.0, 1.0, 0.5]), **known),
                get_reward_value=None,
                log_probs={role: [rng.uniform(-2, 0) for _ in range(length)] for role in ("old", "ref", "teacher")},
            )
        )
    for sample in made:
        sample.get_reward_value = lambda args, sample=sample: (
            sample.reward[args.reward_key] if args.reward_key else sample.reward
        )
    return made


def load_function(path: str) -> Any:
    """How slime finds a function."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def rollout_data(args: Any, made: list[Any], rank: int, ranks: int) -> dict[str, Any]:
    """What reaches a rank: slime's conversion, its split by stride, the key list, the object store."""
    raw, rewards = load_function(args.custom_reward_post_process_path)(args, made)
    assert all(type(reward) is float for reward in raw)
    data = {
        "tokens": [sample.tokens for sample in made],
        "response_lengths": [sample.response_length for sample in made],
        "rewards": rewards,
        "raw_reward": raw,
        "sample_indices": [sample.index for sample in made],
        "rollout_ids": [sample.index for sample in made],
        "loss_masks": [[0] * s.response_length if s.remove_sample else s.loss_mask for s in made],
        "metadata": [{"lost": True} for _ in made],
    }
    mine = range(rank, len(made), ranks)
    return pickle.loads(pickle.dumps({key: [data[key][i] for i in mine] for key in KEYS if key in data}))


def on_the_rank(args: Any, data: dict[str, Any], logprobs: dict[str, list[list[float]]]) -> list[torch.Tensor]:
    """What the training actor does with it: tensors, forward passes, the advantages, and the mean rewards it logs."""
    data["loss_masks"] = [torch.tensor(mask, dtype=torch.int) for mask in data["loss_masks"]]
    for name, column in (("old", "log_probs"), ("ref", "ref_log_probs"), ("teacher", "teacher_log_probs")):
        if name in logprobs:
            data[column] = [torch.tensor(row, dtype=torch.float32) for row in logprobs[name]]
    load_function(args.custom_advantage_function_path)(args, data)
    advantages, returns = data["advantages"], data["returns"]
    assert advantages is not returns  # slime changes one in place
    assert [x.shape for x in advantages] == [x.shape for x in returns] == [x.shape for x in data["loss_masks"]]
    assert all(x.dtype == torch.float32 for x in advantages)
    assert isinstance(sum(data["rewards"]) / len(data["rewards"]), float)
    return list(advantages)


def megatron(group: Any = None, ranks: int = 1, context_parallel: int = 1) -> ModuleType:
    """The part of Megatron that is asked for the ranks."""

    def size(with_context_parallel: bool) -> int:
        assert not with_context_parallel
        return ranks

    def data_parallel(with_context_parallel: bool) -> Any:
        assert not with_context_parallel
        return group

    module = ModuleType("megatron.core")
    module.mpu = SimpleNamespace(  # type: ignore[attr-defined]
        get_data_parallel_world_size=size,
        get_data_parallel_group=data_parallel,
        get_context_parallel_world_size=lambda: context_parallel,
    )
    return module


def plain(made: list[Any]) -> dict[str, Any]:
    """The samples as `references` reads them."""
    width = max(sample.response_length for sample in made)
    pad = lambda row, fill: [*row, *[fill] * (width - len(row))]  # noqa: E731
    ids, scores = [], []
    for sample in made:
        row_ids, row_scores, start = [-1] * width, [0.0] * width, 0
        for step, (end, score) in enumerate(sample.reward.steps or ()):
            for t in range(start, end):
                row_ids[t], row_scores[t] = (step, score) if score is not None else (-1, 0.0)
            start = end
        ids.append(row_ids)
        scores.append(row_scores)
    scored = any(sample.reward.steps is not None for sample in made)
    formats = [sample.reward.format for sample in made]
    return {
        "mask": [pad([bool(on) and not s.remove_sample for on in s.loss_mask], False) for s in made],
        "group": [sample.index // PER_PROMPT for sample in made],
        "rewards": [float(sample.reward) for sample in made],
        "format_rewards": None if None in formats else formats,
        "process": scores if scored else None,
        "step_ids": ids if scored else None,
        **{role: [pad(sample.log_probs[role], 0.0) for sample in made] for role in ("old", "ref", "teacher")},
    }


def with_token_signal(batch: dict[str, Any], role: str, weight: float) -> dict[str, Any]:
    """A plain batch whose process signal is ``weight`` times the log-ratio of a role to the policy."""
    rows = zip(batch[role], batch["old"], strict=True)
    signal = [[weight * (a - b) for a, b in zip(*row, strict=True)] for row in rows]
    return {**batch, "process": signal, "step_ids": None}


def train(rank: int, ranks: int, store: str) -> None:
    """One rank: its part of every scheme's credit is that of the loops on all samples."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    sys.modules["megatron.core"] = megatron(dist.group.WORLD, ranks)
    for seed in range(8):
        made = samples(seed, steps=seed != 7)
        if seed == 6:  # one rank alone holds rewards that know of steps
            for sample in made[1::ranks]:
                sample.reward = Reward(sample.reward, format=sample.reward.format)
        for name, expected in EXPECTED.items():
            if name == "pass_" and seed == 7:  # nothing to work on
                continue
            args = arguments(custom_advantage_function_path=f"slime_worker.{name}")
            mine = made[rank::ranks]
            logprobs = {role: [sample.log_probs[role] for sample in mine] for role in ("old", "ref", "teacher")}
            got = on_the_rank(args, rollout_data(args, made, rank, ranks), logprobs)
            want = expected(plain(made))
            for sample, row, advantages in zip(mine, want[rank::ranks], got, strict=True):
                torch.testing.assert_close(
                    advantages, torch.tensor(row[: sample.response_length]), rtol=1e-5, atol=1e-5, msg=f"{name} {seed}"
                )
    made = samples(0, formats=False)
    for sample in made[1::ranks]:  # one rank's steps end beyond its responses; none may be left waiting
        sample.reward = Reward(sample.reward, steps=[(sample.response_length + 1, 0.5)])
    args = arguments(custom_advantage_function_path="slime_worker.pass_")
    with pytest.raises(InputError, match="must end inside the response" if rank == 1 else "from another one"):
        on_the_rank(args, rollout_data(args, made, rank, ranks), {})
    dist.barrier()  # none is gone while another still talks to it
    dist.destroy_process_group()
