"""The models beside the policy: what they score is a plain forward of the weights that they should have."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen2ForCausalLM

import references
from adapters.independent import check_seen, plain_batch
from stepcredit import GOPD, OPD, SPRO, GRPOProcess
from stepcredit.adapters.trl import CreditStep, attach
from trl_trainer import (
    Ledger,
    Witness,
    generate,
    make_model,
    make_tokenizer,
    make_trainer,
    plain_logprobs,
    share_of_even,
)

Logprobs = list[list[float]]


def watched(trainer: Any, estimator: Any, **options: Any) -> list[CreditStep]:
    """The trainer's steps of credit, as they come."""
    steps: list[CreditStep] = []
    attach(trainer, estimator, on_credit=lambda step: steps.append(step), **options)
    return steps


def assert_scored_by(step: CreditStep, name: str, model: Any, temperature: float = 1.0) -> None:
    """One of a step's log-probabilities is what a plain forward of the model gives."""
    got = getattr(step.batch, name)
    for i, (prompt, ids) in enumerate(zip(step.rollouts.prompts, step.rollouts.token_ids or [], strict=True)):
        want = plain_logprobs(model, prompt, ids, temperature)
        assert got[i, : len(ids)].tolist() == pytest.approx(want, abs=1e-4), (name, i)


def lora(trained: bool, seed: int = 5, **options: Any) -> Any:
    """The tiny model with an adapter: fresh, or one that says something."""
    torch.manual_seed(seed)
    model = get_peft_model(make_model(), LoraConfig(r=2, target_modules=["q_proj", "v_proj", "up_proj"], **options))
    for name, parameter in model.named_parameters():
        if trained and "lora_B" in name:
            parameter.data.normal_()
    return model


def adapter(model: Any, name: str) -> dict[str, torch.Tensor]:
    return {key.replace(f".{name}.", "."): x.clone() for key, x in model.state_dict().items() if f".{name}." in key}


# ---------------------------------------------------------------------------------------------- the reference


def test_the_reference_stays_the_policy_of_the_start(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, learning_rate=0.1, max_steps=3, temperature=0.8)
    steps = watched(trainer, SPRO())
    trainer.train()
    for step in steps:
        assert_scored_by(step, "ref_logprobs", make_model(), 0.8)
    ratios = [float((s.batch.old_logprobs - s.batch.ref_logprobs)[s.batch.response_mask].abs().max()) for s in steps]
    assert ratios[0] == 0.0
    assert ratios[-1] > 0.01


def test_with_beta_it_is_trls_own(tmp_path: Path) -> None:
    make_model(seed=2).save_pretrained(tmp_path / "model")
    policy = Qwen2ForCausalLM.from_pretrained(tmp_path / "model")
    ledger = Ledger(policy)
    trainer = make_trainer(
        tmp_path, model=policy, trainer=Witness, beta=0.1, learning_rate=0.1, max_steps=3,
        reward_funcs=ledger.watch(share_of_even),
    )  # fmt: skip
    attach(trainer, SPRO(beta=0.5))
    assert trainer._credit.models["ref"] is None
    trainer.seen.clear()
    trainer.train()
    initial, current = make_model(seed=2), make_model()

    def expected(generation: Any) -> list[list[float]]:
        current.load_state_dict(generation.weights)
        rows = list(zip(generation.prompts, generation.ids, strict=True))
        old, ref = ([plain_logprobs(model, *row) for row in rows] for model in (current, initial))
        return references.spro(plain_batch(generation, 4, outcome=["share_of_even"], old=old, ref=ref), beta=0.5)

    assert check_seen(trainer.seen, ledger.generations, expected, atol=1e-4) == 24


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_a_reference_that_is_given_is_the_one_that_is_read(beta: float, tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "model")
    policy = Qwen2ForCausalLM.from_pretrained(tmp_path / "model")
    trainer = make_trainer(tmp_path, model=policy, beta=beta)
    [step] = [watched(trainer, SPRO(), ref_model=make_model(seed=1)), generate(trainer)][0]
    assert_scored_by(step, "ref_logprobs", make_model(seed=1))
    assert_scored_by(step, "old_logprobs", make_model())


@pytest.mark.parametrize("loaded", [True, False], ids=["loaded so", "cast later"])
def test_a_bfloat16_policy_equals_its_reference_to_the_bit(loaded: bool, tmp_path: Path) -> None:
    """Rotary frequencies that are rounded with the weights, or not rounded with them, would show as a log-ratio."""
    policy = make_model(max_position_embeddings=4096).to(torch.bfloat16)
    if loaded:
        policy.save_pretrained(tmp_path / "model")
        policy = Qwen2ForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    trainer = make_trainer(tmp_path, model=policy, max_completion_length=48)
    steps = watched(trainer, SPRO())
    generate(trainer)
    assert torch.equal(steps[0].batch.old_logprobs, steps[0].batch.ref_logprobs)


def test_parameters_kept_in_another_precision_stay_there(tmp_path: Path) -> None:
    policy = make_model().to(torch.bfloat16)
    policy.model.norm.float()
    policy.model.norm.weight.data.mul_(1.001)  # not a bfloat16 number
    trainer = attach(make_trainer(tmp_path, model=policy), SPRO())
    reference = trainer._credit.models["ref"]
    assert torch.equal(reference.model.norm.weight, policy.model.norm.weight)
    assert reference.lm_head.weight is reference.model.embed_tokens.weight
    assert not any(p.requires_grad for p in reference.parameters())
    assert not any(p is q for p in reference.parameters() for q in policy.parameters())


# ---------------------------------------------------------------------------------------------- LoRA


@pytest.mark.parametrize("trained", [False, True], ids=["fresh", "trained before"])
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_a_lora_policys_reference_is_its_start_even_after_training(trained: bool, beta: float, tmp_path: Path) -> None:
    policy, start = lora(trained), lora(trained).eval()
    trainer = make_trainer(tmp_path, model=policy, beta=beta, learning_rate=0.1, max_steps=3)
    flags = {name: parameter.requires_grad for name, parameter in policy.named_parameters()}
    steps = watched(trainer, SPRO())
    assert list(policy.peft_config) == ["default"] + ["ref"] * (beta > 0)  # TRL's
    trainer.train()
    for step in steps:
        assert_scored_by(step, "ref_logprobs", start)
    assert_scored_by(steps[0], "old_logprobs", start)
    ratio = steps[-1].batch.old_logprobs - steps[-1].batch.ref_logprobs
    assert ratio[steps[-1].batch.response_mask].abs().max() > 0.001
    after = {name: parameter.requires_grad for name, parameter in policy.named_parameters()}
    assert {name: after[name] for name in flags} == flags
    assert not any(flag for name, flag in after.items() if ".ref." in name)
    assert policy.active_adapter == "default"


@pytest.mark.parametrize("trained", [False, True], ids=["fresh", "trained before"])
def test_a_resumed_lora_run_keeps_its_reference(trained: bool, tmp_path: Path) -> None:
    settings = {"learning_rate": 0.1, "save_strategy": "steps", "save_steps": 2}
    trainer = make_trainer(tmp_path, model=lora(trained), max_steps=2, **settings)
    attach(trainer, SPRO())
    trainer.train()
    left_off = adapter(trainer.model, "default")
    resumed = make_trainer(tmp_path, model=lora(trained), max_steps=4, **settings)
    steps = watched(resumed, SPRO())
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [step.step for step in steps] == [2, 3]
    assert_scored_by(steps[0], "ref_logprobs", lora(trained).eval())
    went_on = lora(trained).eval()
    for name, x in left_off.items():
        went_on.get_parameter(name.replace(".weight", ".default.weight")).data.copy_(x)
    assert_scored_by(steps[0], "old_logprobs", went_on)


def test_a_resumed_run_keeps_its_reference(tmp_path: Path) -> None:
    settings = {"learning_rate": 0.1, "save_strategy": "steps", "save_steps": 2}
    trainer = attach(make_trainer(tmp_path, max_steps=2, **settings), SPRO())
    trainer.train()
    resumed = make_trainer(tmp_path, max_steps=4, **settings)
    steps = watched(resumed, SPRO())
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [step.step for step in steps] == [2, 3]
    assert_scored_by(steps[0], "ref_logprobs", make_model())
    went_on = make_model()
    went_on.load_state_dict(trainer.model.state_dict())
    assert_scored_by(steps[0], "old_logprobs", went_on)


def test_an_adapter_that_starts_inside_the_base_model_is_not_taken_out_of_it_twice(tmp_path: Path) -> None:
    policy = lora(False, init_lora_weights="pissa")
    start = copy.deepcopy(policy).eval()
    trainer = make_trainer(tmp_path, model=policy)
    steps = watched(trainer, SPRO())
    generate(trainer)
    assert_scored_by(steps[0], "old_logprobs", start)
    assert_scored_by(steps[0], "ref_logprobs", start)


@pytest.mark.parametrize("trained", [False, True], ids=["fresh", "trained before"])
def test_what_was_frozen_by_hand_stays_frozen(trained: bool, tmp_path: Path) -> None:
    policy = lora(trained)
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_("lora_B" in name)
    trainer = attach(make_trainer(tmp_path, model=policy), SPRO())
    generate(trainer)
    assert all(parameter.requires_grad == (".lora_B.default" in name) for name, parameter in policy.named_parameters())


def test_the_reference_has_no_dropout(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, model=lora(True, lora_dropout=0.5))
    steps = watched(trainer, SPRO())
    modes = {name: module.training for name, module in trainer.model.named_modules()}
    generate(trainer)
    assert_scored_by(steps[0], "ref_logprobs", lora(True).eval())
    assert {name: module.training for name, module in trainer.model.named_modules()} == modes


# ---------------------------------------------------------------------------------------------- teacher and base


def vouched() -> dict[str, Any]:
    """Models that come from nowhere read the policy's tokens."""
    return {"teacher_tokenizer": make_tokenizer(), "base_tokenizer": make_tokenizer()}


def test_teacher_and_base_are_scored_at_the_trainers_temperature(tmp_path: Path) -> None:
    teacher, base = make_model(seed=1), make_model(seed=2)
    for temperature in (1.0, 0.5):  # the same models, in one trainer after the other
        trainer = make_trainer(tmp_path, temperature=temperature)
        steps = watched(trainer, GRPOProcess(), signal=GOPD(), teacher_model=teacher, base_model=base, **vouched())
        generate(trainer)
        assert_scored_by(steps[0], "old_logprobs", make_model(), temperature)
        assert_scored_by(steps[0], "teacher_logprobs", make_model(seed=1), temperature)
        assert_scored_by(steps[0], "base_logprobs", make_model(seed=2), temperature)


def test_a_distillation_signal_trains_the_loops_credit(tmp_path: Path) -> None:
    ledger = Ledger()
    trainer = make_trainer(tmp_path, reward_funcs=ledger.watch(share_of_even))
    attach(trainer, GRPOProcess(fusion="separate"), signal=OPD(), teacher_model=make_model(seed=1), **vouched())
    output = generate(trainer)

    def expected(generation: Any) -> list[list[float]]:
        batch = plain_batch(generation, 4, outcome=["share_of_even"])
        rows = zip(generation.prompts, generation.ids, strict=True)
        gaps = []
        for prompt, ids in rows:
            teacher, policy = (plain_logprobs(make_model(seed=seed), prompt, ids) for seed in (1, 0))
            gaps.append([t - p for t, p in zip(teacher, policy, strict=True)])
        longest = max(map(len, gaps))
        batch["process"] = [row + [0.0] * (longest - len(row)) for row in gaps]
        return references.grpo_process(batch, fusion="separate")

    assert check_seen([output], ledger.generations, expected, atol=1e-4) == 8


def test_a_lora_teacher_is_scored_with_its_adapter(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    steps = watched(trainer, GRPOProcess(), signal=OPD(), teacher_model=lora(True), **vouched())
    generate(trainer)
    assert_scored_by(steps[0], "teacher_logprobs", lora(True).eval())


def counted_passes(trainer: Any, estimator: Any, **options: Any) -> tuple[list[Any], CreditStep]:
    """The models that a generation batch is scored by, one entry a forward, and what was seen."""
    steps = watched(trainer, estimator, **options)
    passes, scored = [], trainer._get_per_token_logps_and_entropies

    def score(model: Any, *args: Any, **kwargs: Any) -> Any:
        passes.append(model)
        return scored(model, *args, **kwargs)

    trainer._get_per_token_logps_and_entropies = score
    generate(trainer)
    return passes, steps[0]


def test_without_a_base_it_is_the_reference_and_shares_its_pass(tmp_path: Path) -> None:
    options = {"signal": GOPD(), "teacher_model": make_model(seed=1), "ref_model": make_model(seed=2), **vouched()}
    passes, step = counted_passes(make_trainer(tmp_path), GRPOProcess(), kl_every=1, **options)
    assert len(passes) == 3  # policy, teacher, reference
    assert_scored_by(step, "base_logprobs", make_model(seed=2))
    assert torch.equal(step.batch.base_logprobs, step.batch.ref_logprobs)
    passes, step = counted_passes(make_trainer(tmp_path), GRPOProcess(), **{**options, "ref_model": None})
    assert len(passes) == 3
    assert_scored_by(step, "base_logprobs", make_model())  # the policy at its start


def test_one_object_in_all_roles_is_scored_once(tmp_path: Path) -> None:
    model = make_model(seed=1)
    options = {"teacher_model": model, "base_model": model, "ref_model": model, **vouched()}
    passes, step = counted_passes(make_trainer(tmp_path), GRPOProcess(), signal=GOPD(), kl_every=1, **options)
    assert len(passes) == 2  # the policy, and it
    for role in ("teacher", "base", "ref"):
        assert_scored_by(step, f"{role}_logprobs", make_model(seed=1))


class Source:
    """Log-probs from elsewhere: minus the character's code over 100, and the length of the prompt behind a dot."""

    temperature = 1.0

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def logprobs(self, rollouts: Any) -> list[list[float]]:
        self.asked.append(rollouts)
        pairs = zip(rollouts.prompt_ids, rollouts.token_ids, strict=True)
        return [[-float(token) / 100 - len(prompt) for token in ids] for prompt, ids in pairs]


def test_a_source_is_asked_once_for_all_its_roles(tmp_path: Path) -> None:
    source = Source()
    trainer = make_trainer(tmp_path)
    steps = watched(trainer, GRPOProcess(), signal=GOPD(), teacher_model=source, base_model=source)
    generate(trainer)
    rollouts, batch = steps[0].rollouts, steps[0].batch
    assert len(source.asked) == 1
    assert source.asked[0].offsets is not None
    assert [len(ids) for ids in rollouts.prompt_ids] == [3] * 8
    old = [row[: len(ids)] for row, ids in zip(batch.old_logprobs.tolist(), rollouts.token_ids, strict=True)]
    assert source.asked[0].old_logprobs == old
    for i, ids in enumerate(rollouts.token_ids):
        expected = torch.tensor([-token / 100 - 3 for token in ids])
        assert torch.allclose(batch.teacher_logprobs[i, : len(ids)], expected)
    assert torch.equal(batch.teacher_logprobs, batch.base_logprobs)


def test_steps_are_sums_of_a_distillation_signals_tokens_where_asked(tmp_path: Path) -> None:
    seen = []
    for steps in (None, "lines"):
        trainer = make_trainer(tmp_path)
        seen.append(watched(trainer, GRPOProcess(), signal=OPD(), teacher_model=Source(), steps=steps))
        generate(trainer)
    tokens, lines = (steps[0].batch for steps in seen)
    assert tokens.step_ids is None
    for i, text in enumerate(seen[0][0].rollouts.completions):
        signal = tokens.process_rewards[i].tolist()
        begin = 0
        for line in text.splitlines(keepends=True):  # a character is a token, and the end of sequence one more
            n = len(line) + (begin + len(line) == len(text) < int(tokens.response_mask[i].sum()))
            whole = lines.process_rewards[i, begin : begin + n].tolist()
            assert whole == pytest.approx([sum(signal[begin : begin + n])] * n, abs=1e-4)
            begin += n


def test_old_log_probs_are_trls_where_it_has_them(tmp_path: Path) -> None:
    """With batches that are used again TRL keeps the policy's log-probs of the start; no second forward is made."""
    reused = {"num_iterations": 2, "steps_per_generation": 2, "per_device_train_batch_size": 4}
    trainer = make_trainer(tmp_path, **reused)
    steps = watched(trainer, SPRO(), ref_model=make_model(seed=1))
    output = generate(trainer)
    assert torch.equal(steps[0].batch.old_logprobs, output["old_per_token_logps"])
    assert_scored_by(steps[0], "old_logprobs", make_model())
    assert "old_per_token_logps" not in generate(attach(make_trainer(tmp_path), SPRO()))
