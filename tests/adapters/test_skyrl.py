"""SkyRL's hook and its trainer, from the batch that they make to the credit that they get, against plain loops.

Each test runs on a stand-in for SkyRL that does what its source (0.3.0) does at the hook, and on SkyRL itself where
that is installed: its registry, its batch, its padding, its trainer's method.
"""

import sys
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

import references
from skyrl_engines import MODULE, Conversation, Installed, StandIn, aligned, conversations, plain
from stepcredit import GDPO, GOPD, GRPO, OPD, PAPO, PASS, RLOO, SPRO, DrGRPO, InputError, LogRatio, REINFORCEpp
from stepcredit.adapters.skyrl import Function, register, turns
from stepcredit.errors import MissingExtraError

SEEDS = range(12)


@pytest.fixture(params=[StandIn, Installed])
def engine(request: pytest.FixtureRequest) -> StandIn:
    if request.param is Installed:
        pytest.importorskip(MODULE, reason="SkyRL is not installed: the stand-in alone is tried")
    made: StandIn = request.param()
    return made


def credit(
    engine: StandIn,
    function: Function,
    rollouts: list[Conversation],
    *,
    pad: int = 0,
    step_wise: bool = False,
    **more: Any,
) -> torch.Tensor:
    """What the engine's trainer holds after its method, padding rows and all."""
    engine.register("stepcredit_test", function)
    trainer = engine.trainer("stepcredit_test", inherits=function.from_trainer, step_wise=step_wise, **more)
    data = trainer.compute_advantages_and_returns(engine.batch(rollouts, pad))
    assert torch.equal(data["advantages"], data["returns"])
    advantages: torch.Tensor = data["advantages"]
    return advantages


def check(got: torch.Tensor, want: list[list[float]]) -> None:
    torch.testing.assert_close(got, torch.tensor(want), rtol=1e-5, atol=1e-5)
    assert bool(got.any())


def test_the_hook_gives_outcome_schemes_the_sum_of_the_rewards(engine: StandIn) -> None:
    for seed in SEEDS:
        rollouts = conversations(seed)
        batch = plain(rollouts, loss_mask=False)
        check(credit(engine, Function(RLOO()), rollouts), references.rloo(batch))
        check(credit(engine, Function(DrGRPO(singletons="raw")), rollouts), references.dr_grpo(batch, singletons="raw"))


def test_every_tokens_reward_is_its_process_reward(engine: StandIn) -> None:
    for seed in SEEDS:
        rollouts = conversations(seed)
        batch = plain(rollouts, loss_mask=False)
        batch |= {"process": aligned([c.rewards for c in rollouts], 0.0), "rewards": None}
        with pytest.warns(match="`step_ids` is None"):
            check(credit(engine, Function(PASS(k=1.0), "tokens"), rollouts), references.pass_(batch, k=1.0))


def test_turns_are_steps_and_the_last_one_is_the_outcome(engine: StandIn) -> None:
    for seed in SEEDS:
        rollouts = conversations(seed)
        batch = plain(rollouts, loss_mask=True, by_turns=True)
        check(
            credit(engine, Function(PASS(k=0.7), "turns", from_trainer=True), rollouts), references.pass_(batch, k=0.7)
        )
        papo = Function(PAPO(), "turns", from_trainer=True)
        check(credit(engine, papo, rollouts), references.papo(batch))


def test_log_probs_come_from_the_trainer(engine: StandIn) -> None:
    for seed in SEEDS:
        rollouts = conversations(seed)
        batch = plain(rollouts, loss_mask=True)
        check(credit(engine, Function(SPRO(beta=0.5), from_trainer=True), rollouts), references.spro(batch, beta=0.5))
        ratio = [
            [0.5 * (a - b) for a, b in zip(*rows, strict=True)] for rows in zip(batch["old"], batch["ref"], strict=True)
        ]
        signal = Function(PASS(k=1.0), signal=LogRatio(beta=0.5), from_trainer=True)
        check(credit(engine, signal, rollouts), references.pass_({**batch, "process": ratio}, k=1.0))
        teacher = Function(PASS(k=1.0), signal=OPD(), from_trainer=True, ref_model="teacher")
        towards = [[-2 * x for x in row] for row in ratio]
        check(credit(engine, teacher, rollouts), references.pass_({**batch, "process": towards}, k=1.0))


@pytest.mark.parametrize(
    "function", [Function(REINFORCEpp()), Function(GDPO()), Function(REINFORCEpp(), from_trainer=True)]
)
def test_rows_that_fill_up_the_ranks_count_in_nothing(engine: StandIn, function: Function) -> None:
    rollouts = conversations(3)
    got = credit(engine, function, rollouts, pad=3)
    assert not bool(got[-3:].any())
    torch.testing.assert_close(got[:-3], credit(engine, function, rollouts), rtol=0, atol=1e-6)


def test_a_prompt_that_is_called_like_padding_is_none(engine: StandIn) -> None:
    rollouts = [Conversation(uid, [(2, r)], []) for uid, r in (("pad0", 1.0), ("pad0", 0.0), ("q", 1.0), ("q", 0.5))]
    assert credit(engine, Function(DrGRPO()), rollouts)[:, 0].tolist() == [0.5, -0.5, 0.25, -0.25]


def test_step_wise_training_gets_one_number_a_trajectory_or_a_refusal(engine: StandIn) -> None:
    rollouts = [c for c in conversations(5) if c.trained]
    got = credit(engine, Function(RLOO()), rollouts, step_wise=True)
    want = torch.tensor(references.rloo(plain(rollouts, loss_mask=False)))
    mask = engine.batch(rollouts, 0)["response_mask"] > 0
    torch.testing.assert_close(got[mask], want[mask], rtol=1e-5, atol=1e-6)
    for function, why in (
        (Function(REINFORCEpp(gamma=0.5)), "varies inside a response"),
        (Function(PASS(), "tokens"), "varies inside a response"),
        (Function(PASS(), "turns", from_trainer=True), "Credit crosses turns"),
    ):
        with pytest.raises(InputError, match=why), pytest.warns() if function.process == "tokens" else nullcontext():
            credit(engine, function, rollouts, step_wise=True)


@pytest.mark.parametrize(
    ("setting", "function", "name"),
    [
        ({"advantage_batch_normalize": True}, Function(GRPO()), "advantage_batch_normalize` must be false"),
        ({"use_kl_in_reward": True}, Function(GRPO()), "use_kl_in_reward` must be false"),
        ({"use_kl_in_reward": True}, Function(PASS(), "turns", from_trainer=True), "use_kl_in_reward` must be false"),
        ({"policy_loss_type": "cross_entropy"}, Function(GRPO()), "policy_loss_type` must read advantages"),
    ],
)
def test_settings_that_spoil_the_credit_are_refused(
    engine: StandIn, setting: dict[str, Any], function: Function, name: str
) -> None:
    with pytest.raises(InputError, match=rf"`trainer\.algorithm\.{name}"):
        credit(engine, function, conversations(1), **setting)


@pytest.mark.parametrize("column", ["action_log_probs", "base_action_log_probs"])
def test_a_column_that_is_missing_is_named_with_the_option(engine: StandIn, column: str) -> None:
    engine.register("stepcredit_test", Function(SPRO(), from_trainer=True))
    data = engine.batch(conversations(1), 0)
    data[column] = None
    trainer = engine.trainer("stepcredit_test", inherits=True, step_wise=False)
    with pytest.raises(
        InputError, match=rf"`{column}` must be in SkyRL's training batch; got none. .*`trainer.algorithm"
    ):
        trainer.compute_advantages_and_returns(data)
    stock = engine.trainer("stepcredit_test", inherits=False, step_wise=False)
    with pytest.raises(InputError, match="must inherit CreditTrainer"):  # nothing is left over from the batch before
        stock.compute_advantages_and_returns(data)


def test_rewards_on_tool_output_are_never_dropped() -> None:
    rewards, mask = torch.tensor([[0.0, 0.5, 0.0, 1.0]]), torch.tensor([[True, False, False, True]])
    assert turns(rewards, mask)["process_rewards"][0, 0] == 0.5  # of the turn before it
    with pytest.raises(InputError, match="before the first turn of row 0"):
        turns(torch.tensor([[0.5, 0.0]]), torch.tensor([[False, True]]))
    stand_in, lost = StandIn(), [Conversation("q", [(1, 0.5), (1, 1.0)], [1])]
    stand_in.register("f", Function(PASS(), "tokens", from_trainer=True))
    data = stand_in.batch(lost, 0)
    data["rewards"] = torch.tensor([[0.0, 0.5, 1.0]])
    with pytest.raises(InputError, match=r"must be 0 on tokens that are not trained on; got 0\.5 in row 0"):
        stand_in.trainer("f", inherits=True, step_wise=False).compute_advantages_and_returns(data)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"estimator": SPRO()}, "`from_trainer` must be True for old_logprobs.*inherits `CreditTrainer`"),
        ({"estimator": PASS()}, "`process` must say where the process rewards of PASS are"),
        ({"estimator": PASS(), "process": "turns"}, "`from_trainer` must be True for process='turns'"),
        ({"estimator": PASS(), "process": "steps"}, "`process` must be one of"),
        ({"estimator": PAPO(), "process": "tokens"}, "must leave PAPO an outcome"),
        ({"estimator": PASS(), "signal": OPD(), "from_trainer": True}, "got 'reference' for teacher_logprobs"),
        ({"estimator": SPRO(), "from_trainer": True, "ref_model": "teacher"}, "got 'teacher' for ref_logprobs"),
        ({"estimator": PASS(), "signal": GOPD(), "from_trainer": True}, "`ref_model` must be what PASS"),
        ({"estimator": PASS(), "signal": LogRatio(), "process": "turns", "from_trainer": True}, "without `process`"),
        ({"estimator": "pass"}, "`estimator` must be an Estimator"),
    ],
)
def test_what_skyrl_does_not_bring_is_refused_at_registration(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        register("stepcredit_test", **arguments)


def test_without_skyrl_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    absent(monkeypatch, "skyrl")
    absent(monkeypatch, "skyrl_train")
    with pytest.raises(MissingExtraError, match=r"stepcredit\[skyrl\]"):
        register("stepcredit_test", GRPO())


def test_the_package_before_todays_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    registered: dict[str, Any] = {}
    module = ModuleType("skyrl_train.utils.ppo_utils")
    module.AdvantageEstimatorRegistry = SimpleNamespace(register=registered.__setitem__)  # type: ignore[attr-defined]
    absent(monkeypatch, "skyrl")
    for name in ("skyrl_train", "skyrl_train.utils"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    register("stepcredit_test", GRPO(std_eps=0.5))
    assert registered == {"stepcredit_test": Function(GRPO(std_eps=0.5))}


def test_our_grpo_is_skyrls(skyrl: ModuleType) -> None:
    for seed in SEEDS:
        rollouts = conversations(seed)
        data = Installed().batch(rollouts, 0)
        asked = {
            "token_level_rewards": data["rewards"],
            "response_mask": data["response_mask"],
            "index": data.metadata["uids"],
        }
        theirs, _ = skyrl.compute_grpo_outcome_advantage(**{**asked, "token_level_rewards": data["rewards"].clone()})
        ours, _ = Function(GRPO(std_eps=1e-6, singletons="raw"))(**asked)
        tied = torch.tensor([_is_tied(c, rollouts) for c in rollouts])  # ours is 0, theirs a rounding error over 1e-6
        torch.testing.assert_close(ours[~tied], theirs[~tied], rtol=1e-4, atol=1e-5)


def test_the_gradient_of_skyrls_losses_follows_the_credit(skyrl: ModuleType) -> None:
    from skyrl.train.config import AlgorithmConfig

    rng = torch.Generator().manual_seed(0)
    mask = (torch.rand(6, 9, generator=rng) < 0.8).float()
    given = torch.randn(6, 9, generator=rng) * mask * (torch.rand(6, 9, generator=rng) < 0.7)
    names = set(skyrl.PolicyLossRegistry.list_available()) - {"cross_entropy", "clip_cov"}  # drops tokens by design
    assert names >= {"regular", "dual_clip", "gspo", "cispo", "sapo", "kl_cov", "rollout_is", "dppo"}
    for name in names:
        old = -2 * torch.rand(6, 9, generator=rng)
        logprobs = old.clone().requires_grad_()
        config = AlgorithmConfig(policy_loss_type=name, loss_reduction="sequence_mean")
        loss, _ = skyrl.PolicyLossRegistry.get(name)(
            logprobs, old, given, config, loss_mask=mask, rollout_logprobs=old.clone()
        )
        loss.backward()
        slope = -(logprobs.grad * given).sum() / given.square().sum()
        assert slope > 0, name
        torch.testing.assert_close(-logprobs.grad, slope * given, rtol=1e-4, atol=1e-6, msg=name)


def test_another_ray_process_finds_what_is_registered(skyrl: ModuleType) -> None:
    ray = pytest.importorskip("ray")
    registry = skyrl.AdvantageEstimatorRegistry
    registry.reset()
    register("stepcredit_rloo", RLOO())  # before Ray, as in an entry point
    ray.init(
        num_cpus=1,
        include_dashboard=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": ":".join(sys.path)}},
    )
    try:
        registry.sync_with_actor()

        @ray.remote
        def far(rewards: torch.Tensor, mask: torch.Tensor, index: list[str]) -> Any:
            from skyrl.backends.skyrl_train.utils.ppo_utils import compute_advantages_and_returns

            return compute_advantages_and_returns(rewards, mask, index, "stepcredit_rloo", None)

        rollouts = conversations(2)
        data = Installed().batch(rollouts, 0)
        advantages, _ = ray.get(far.remote(data["rewards"], data["response_mask"], data.metadata["uids"]))
        check(advantages, references.rloo(plain(rollouts, loss_mask=False)))
    finally:
        ray.shutdown()
        registry.reset()
        skyrl.repopulate_all_registries()


@pytest.fixture
def skyrl() -> ModuleType:
    module: ModuleType = pytest.importorskip(MODULE, reason="SkyRL is not installed")
    return module


def absent(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """As if the package were not installed."""

    class Finder:
        @staticmethod
        def find_spec(name: str, *_: Any) -> None:
            if name == package:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])


def _is_tied(one: Conversation, rollouts: list[Conversation]) -> bool:
    peers = [sum(c.rewards) for c in rollouts if c.uid == one.uid]
    return len(peers) > 1 and max(peers) == min(peers)
