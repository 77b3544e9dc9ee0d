"""What would lose token credit is refused with setting and cure; a refusal, and the probe, change nothing."""

import copy
import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from adapters.independent import HighDigits
from stepcredit import GRPO, OPD, PASS, SPRO, GRPOProcess, InputError
from stepcredit.adapters.trl import CreditGRPOTrainer, attach
from stepcredit.adapters.trl import trainer as adapter
from trl_trainer import generate, has_line_end, make_model, make_tokenizer, make_trainer, share_of_even


def state(trainer: Any) -> dict[str, Any]:
    """All that a training run starts from, copied."""
    model = trainer.model
    return {
        "class": type(trainer),
        "attributes": {name: id(x) for name, x in vars(trainer).items() if name != "_credit"},
        "metrics": copy.deepcopy(trainer._metrics),
        "logs": copy.deepcopy({name: x for name, x in trainer._logs.items() if name not in ("rewards", "extra")}),
        "entropy": [copy.deepcopy(vars(trainer).get(name)) for name in ("entropy_coef", "_last_world_entropy")],
        "window": vars(trainer).get("_entropy_window_stats"),
        "weights": {name: x.clone().tolist() for name, x in model.state_dict().items()},
        "gradients": {name: None if p.grad is None else p.grad.tolist() for name, p in model.named_parameters()},
        "trained": {name: p.requires_grad for name, p in model.named_parameters()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "random": (torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())),
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    for name, value in before.items():
        assert after[name] == value, name


class _Loss(GRPOTrainer):
    """A subclass whose loss does something else with token-level advantages."""

    change: Callable[[torch.Tensor], torch.Tensor]

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        return super()._compute_loss(model, {**inputs, "advantages": type(self).change(inputs["advantages"])})


LOSSES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "averages them": lambda a: a.mean(1),
    "ignores them": lambda a: torch.ones_like(a),
    "reads the first": lambda a: a[:, 0],
    "turns them around": lambda a: -a,
    "is off by a token": lambda a: a.roll(1, dims=1),
    "clips them": lambda a: a.clamp(-1, 1),
    "drops the negative": lambda a: a.clamp(min=0),
    "drops them all": lambda a: a * 0,
    "swaps rollouts": lambda a: a.flip(0),
    "adds a baseline": lambda a: a + 0.1,
    "is right on the first rollout alone": lambda a: torch.cat([a[:1], a[1:].mean(1, keepdim=True).expand_as(a[1:])]),
}


@pytest.mark.parametrize("change", LOSSES.values(), ids=LOSSES.keys())
def test_the_probe_refuses_a_loss_that(change: Callable[[torch.Tensor], torch.Tensor], tmp_path: Path) -> None:
    kind = type("Theirs", (_Loss,), {"change": staticmethod(change)})
    trainer = make_trainer(tmp_path, trainer=kind)
    before = state(trainer)
    with pytest.raises(InputError, match=r"`trainer` must have a loss that follows token-level advantages.*dapo.*Use"):
        attach(trainer, SPRO())
    assert_same(before, state(trainer))
    assert not hasattr(trainer, "_credit")


def test_the_probe_refuses_a_loss_that_takes_scalars_only(tmp_path: Path) -> None:
    class Theirs(GRPOTrainer):
        def _compute_loss(self, model: Any, inputs: Any) -> Any:
            if inputs["advantages"].ndim != 1:
                raise ValueError("one advantage a sequence, please")
            return super()._compute_loss(model, inputs)

    trainer = make_trainer(tmp_path, trainer=Theirs)
    with pytest.raises(
        InputError, match=r"takes advantages of shape \[batch, time\]; CreditTheirs .* failed on them: one"
    ):
        attach(trainer, GRPO())
    assert type(trainer) is Theirs


def test_a_subclass_that_keeps_the_loss_is_welcome(tmp_path: Path) -> None:
    class Theirs(GRPOTrainer):
        def _compute_loss(self, model: Any, inputs: Any) -> Any:
            self.losses = [*getattr(self, "losses", []), super()._compute_loss(model, inputs)]
            return self.losses[-1] * 2

    trainer = attach(make_trainer(tmp_path, trainer=Theirs), GRPO())
    assert isinstance(trainer, Theirs)
    assert type(trainer).__name__ == "CreditTheirs"


def refused(trainer: Any, match: str, estimator: Any = None, **options: Any) -> None:
    before = state(trainer)
    with pytest.raises(InputError, match=match):
        attach(trainer, GRPO() if estimator is None else estimator, **options)
    assert_same(before, state(trainer))
    assert not hasattr(trainer, "_credit")


def test_rloo_is_refused(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, trainer=RLOOTrainer, config=RLOOConfig, beta=0.0)
    with pytest.raises(InputError, match=r"`trainer` must be a GRPOTrainer .* got RLOOTrainer, whose loss has one"):
        attach(trainer, GRPO())
    assert type(trainer) is RLOOTrainer


def test_gmpo_is_refused(tmp_path: Path) -> None:
    gmpo = pytest.importorskip("trl.experimental.gmpo")
    trainer = make_trainer(tmp_path, trainer=gmpo.GMPOTrainer, config=gmpo.GMPOConfig)
    refused(trainer, "`trainer` must be a GRPOTrainer .* got GMPOTrainer, whose loss has one ratio a sequence")


def test_something_else_is_refused() -> None:
    with pytest.raises(InputError, match=r"`trainer` must be a GRPOTrainer .* got Random"):
        attach(random.Random(), GRPO())


@pytest.mark.parametrize("attribute", ["use_liger_kernel", "use_liger_loss"])
def test_ligers_fused_loss_is_refused_where_trl_has_it(
    attribute: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path)
    monkeypatch.setattr(trainer.args, attribute, True, raising=False)
    monkeypatch.setattr(adapter, "version", lambda _: "1.13.0")
    refused(trainer, "`use_liger_kernel` must be False with TRL 1.13.0: .* one advantage a sequence")
    monkeypatch.setattr(adapter, "version", lambda _: "1.14.0")
    attach(trainer, GRPO())


@pytest.mark.parametrize("loss_type", ["grpo", "sapo"])
def test_sequence_level_ratios_are_refused(loss_type: str, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, loss_type=loss_type, importance_sampling_level="sequence")
    match = f"`importance_sampling_level` must be 'token' with loss_type '{loss_type}'; got 'sequence'.*gspo_token=True"
    refused(trainer, match)
    assert isinstance(attach(trainer, GRPO(), gspo_token=True), GRPOTrainer)


def test_gspo_token_at_token_level_is_refused(tmp_path: Path) -> None:
    match = "`gspo_token` must be False with importance_sampling_level 'token'; got True. Set the level"
    refused(make_trainer(tmp_path), match, gspo_token=True)


REFUSED: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "an unknown outcome": ("`outcome` must name .*share_of_even, has.* got 'even'", GRPO(), {"outcome": ["even"]}),
    "an unknown format": ("`format` must name reward .* got 'has', .* no function", GRPO(), {"format": ["has"]}),
    "no outcome": ("`outcome` must name at least one", GRPO(), {"outcome": []}),
    "both roles": (
        "`format` must not name an outcome function; got 'has_line_end'",
        GRPO(),
        {"outcome": ["share_of_even", "has_line_end"], "format": ["has_line_end"]},
    ),
    "no signal": ("`signal` must be given for PASS, which reads one; got None", PASS(), {}),
    "no teacher": ("`teacher_model` must be given: teacher_logprobs are read; got None", PASS(), {"signal": OPD()}),
    "no estimator": ("`estimator` must be a stepcredit.Estimator; got ABCMeta", GRPO, {}),
    "unknown steps": ("`steps` must be lines, .* got 'words'", PASS(), {"signal": HighDigits(), "steps": "words"}),
    "steps by a marker": ("`steps` must be .* got 'marker'", PASS(), {"signal": HighDigits(), "steps": "marker"}),
}  # fmt: skip


@pytest.mark.parametrize(("match", "estimator", "options"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_by_name(match: str, estimator: Any, options: dict[str, Any], tmp_path: Path) -> None:
    refused(make_trainer(tmp_path), match, estimator, **options)


def other_words(*, swapped: bool) -> Any:
    tokenizer = make_tokenizer()
    if not swapped:  # fewer words
        return PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "0": 2}, unk_token="<pad>"))
        )
    words = {word: {"0": 3, "1": 2}.get(word, i) for word, i in tokenizer.get_vocab().items()}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<pad>")))


def test_a_teachers_vocabulary_is_checked_before_it_is_touched(tmp_path: Path) -> None:
    teacher = make_model(seed=1)
    options: dict[str, Any] = {"signal": OPD(), "teacher_model": teacher}
    refused(make_trainer(tmp_path), "`teacher_tokenizer` must be given: no tokenizer is at hand", PASS(), **options)
    match = "`teacher_model` must read the policy's tokens; got id 2 for '1', which the policy has for '0'"
    refused(make_trainer(tmp_path), match, PASS(), **options, teacher_tokenizer=other_words(swapped=True))
    match = "got id 3 for None, which the policy has for '1'"
    refused(make_trainer(tmp_path), match, PASS(), **options, teacher_tokenizer=other_words(swapped=False))
    assert all(p.requires_grad for p in teacher.parameters())
    assert teacher.training


def test_a_teachers_tokenizer_is_found_where_it_came_from(tmp_path: Path) -> None:
    make_model(seed=1).save_pretrained(tmp_path / "teacher")
    make_tokenizer().save_pretrained(tmp_path / "teacher")
    attach(make_trainer(tmp_path), PASS(), signal=OPD(), teacher_model=load(tmp_path / "teacher"))
    other_words(swapped=True).save_pretrained(tmp_path / "teacher")
    teacher = load(tmp_path / "teacher")
    refused(make_trainer(tmp_path), "got id 2 for '1'", PASS(), signal=OPD(), teacher_model=teacher)


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder)


class Elsewhere:
    temperature = 0.5

    def logprobs(self, rollouts: Any) -> list[list[float]]:
        return [[-1.0] * len(ids) for ids in rollouts.token_ids]


def test_a_source_has_to_score_at_the_trainers_temperature(tmp_path: Path) -> None:
    match = "`teacher_model` must score at the trainer's temperature 1.0; got 0.5"
    refused(make_trainer(tmp_path), match, PASS(), signal=OPD(), teacher_model=Elsewhere())
    attach(make_trainer(tmp_path, temperature=0.5), PASS(), signal=OPD(), teacher_model=Elsewhere())
    match = "must be a model or have `logprobs`; got str"
    refused(make_trainer(tmp_path), match, PASS(), signal=OPD(), teacher_model="x")


def test_two_functions_of_one_name_are_refused(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, reward_funcs=[share_of_even, has_line_end, share_of_even])
    refused(trainer, "got 'share_of_even', which is the name of more than one function")


def test_credit_is_attached_once(tmp_path: Path) -> None:
    trainer = attach(make_trainer(tmp_path), GRPO())
    with pytest.raises(InputError, match=r"`trainer` must not have credit already; got a CreditGRPOTrainer that has"):
        attach(trainer, SPRO())
    assert trainer._credit.estimator == GRPO()


def test_the_class_form_refuses_in_its_constructor(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"`signal` must be given for PASS"):
        make_trainer(tmp_path, trainer=CreditGRPOTrainer, extra={"estimator": PASS()})


def taught() -> dict[str, Any]:
    return {"signal": OPD(), "teacher_model": make_model(seed=1), "teacher_tokenizer": make_tokenizer()}


ATTACHED: dict[str, tuple[Any, Callable[[], dict[str, Any]]]] = {
    "grpo": (GRPO(), dict),
    "grpo, watching the kl": (GRPO(), lambda: {"kl_every": 1}),
    "spro, its own reference": (SPRO(), dict),
    "spro, a reference": (SPRO(), lambda: {"ref_model": make_model(seed=1)}),
    "pass": (PASS(), lambda: {"signal": HighDigits(), "format": ["has_line_end"]}),
    "grpo-process, a teacher": (GRPOProcess(), taught),
}


def _known(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that the installed TRL has."""
    known = {field.name for field in dataclasses.fields(GRPOConfig)}
    return {name: x for name, x in settings.items() if name in known}


@pytest.mark.parametrize(("estimator", "options"), ATTACHED.values(), ids=ATTACHED.keys())
def test_attaching_touches_nothing(estimator: Any, options: Callable[[], dict[str, Any]], tmp_path: Path) -> None:
    settings = _known({"use_adaptive_entropy": True, "entropy_coef": 0.01, "off_policy_mask_threshold": 0.5})
    trainer = make_trainer(tmp_path, dataloader_num_workers=0, **settings)
    generate(trainer)  # metrics and logs that are not empty
    trainer.model.lm_head.eval()  # in training mode but for a part: the entropy controller moves in training alone
    given = options()
    before = state(trainer)
    attach(trainer, estimator, **given)
    after = state(trainer)
    assert after.pop("class").__mro__[2] is before.pop("class")
    assert_same(before, after)
