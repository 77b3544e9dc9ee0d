"""What a verl config says of credit: ``algorithm.adv_estimator`` and the options under ``algorithm.stepcredit``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stepcredit.adapters.verl.plugin import PREFIX
from stepcredit.config.build import build_estimator, build_signal
from stepcredit.errors import InputError
from stepcredit.estimators import Estimator
from stepcredit.options import check_option
from stepcredit.signals import Guard, LearningSignal, Signal, TensorSignal
from stepcredit.tasks.segmentation import SCHEMES

_OWN = {"signal", "guard", "steps", "format_threshold", "record"}


@dataclass(frozen=True)
class Settings:
    """The scheme and what feeds it, checked.

    Attributes:
        estimator: The scheme; every key of ``algorithm.stepcredit`` that is not named below is one of its options.
        signal: ``signal.type`` and the signal's options; None: the reward function scores steps, or nothing does.
        guard: Options of `Guard`: what changes the scores before they become credit.
        steps: How completions are cut for a text signal: a scheme of `stepcredit.tasks.segmentation`.
        format_threshold: A rollout keeps the format where its format reward is at least this much; needed where they
            are other than 0 and 1.
        record: A folder to which every step's columns and credit are saved, for `torch.load`; None: nowhere.
    """

    estimator: Estimator
    signal: Signal | None = None
    guard: Guard | None = None
    steps: str = "lines"
    format_threshold: float | None = None
    record: str | None = None

    @property
    def text_signal(self) -> Signal | None:
        """The signal that scores text, in the reward workers."""
        return None if isinstance(self.signal, TensorSignal) else self.signal

    @property
    def reads(self) -> frozenset[str]:
        """The batch fields that the scheme and a signal of log-probabilities need, the signal's output left out."""
        if not isinstance(self.signal, TensorSignal):
            return self.estimator.requires
        return (self.estimator.requires - {"process_rewards"}) | self.signal.requires


def is_ours(name: Any) -> bool:
    """Whether ``algorithm.adv_estimator`` names one of these estimators."""
    return isinstance(name, str) and (name == PREFIX or name.startswith(f"{PREFIX}_"))


def read_settings(algorithm: Mapping[str, Any]) -> Settings:
    """The settings in the ``algorithm`` section of a verl config.

    Raises:
        InputError: An unknown scheme, option or value, each with its nearest known name; a signal that learns; or a
            KL penalty among the rewards, which would be standardized with the outcome.
    """
    name = str(algorithm["adv_estimator"])
    options = _plain(algorithm.get("stepcredit"))
    if name == PREFIX:
        scheme = options.pop("type", None)
        if scheme is None:
            raise InputError(
                "`algorithm.stepcredit.type` must name the scheme when adv_estimator=stepcredit; got none."
            )
    else:
        scheme = name.removeprefix(f"{PREFIX}_")
        if options.get("type", scheme) != scheme:
            raise InputError(
                f"`algorithm.stepcredit.type` must agree with adv_estimator={name}; got {options['type']!r}."
            )
        options.pop("type", None)
    if algorithm.get("use_kl_in_reward"):
        raise InputError(
            "`algorithm.use_kl_in_reward` must be False: the penalty would be standardized with the outcome; got True. "
            "Set actor_rollout_ref.actor.use_kl_loss=True for a KL in the loss."
        )
    for key, default in (("norm_adv_by_std_in_grpo", True), ("gamma", 1.0), ("lam", 1.0)):
        if algorithm.get(key, default) != default:
            raise InputError(
                f"`algorithm.{key}` must be {default}, verl's default, which {name} does not read; got "
                f"{algorithm[key]}. The scheme's own options are under algorithm.stepcredit."
            )
    own = {key: options.pop(key) for key in sorted(_OWN & options.keys()) if options[key] is not None}
    steps = own.get("steps", "lines")
    if steps not in SCHEMES or steps == "marker":
        raise InputError(f"`algorithm.stepcredit.steps` must be lines, paragraphs or sentences; got {steps!r}.")
    check_option("algorithm.stepcredit", "format_threshold", own.get("format_threshold"), float | None, {})
    record = own.get("record")
    return Settings(
        build_estimator(str(scheme), options),
        signal=_signal(own["signal"]) if "signal" in own else None,
        guard=_guard(own["guard"]) if "guard" in own else None,
        steps=steps,
        format_threshold=own.get("format_threshold"),
        record=None if record is None else str(record),
    )


def _signal(table: Any) -> Signal:
    table = _plain(table, "signal")
    name = table.pop("type", None)
    if name is None:
        raise InputError("`algorithm.stepcredit.signal.type` must name a signal; got none.")
    made = build_signal(str(name), table)
    if isinstance(made, LearningSignal):
        raise InputError(
            f"`algorithm.stepcredit.signal.type` must be a signal that does not learn: reward workers would each learn "
            f"their own; got {name!r}. Serve it, and name the server's."
        )
    return made


def _guard(table: Any) -> Guard:
    options = _plain(table, "guard")
    known = list(Guard.__dataclass_fields__)
    for key in options:
        if key not in known:
            raise InputError(f"`algorithm.stepcredit.guard.{key}` must be one of {', '.join(known)}.")
    return Guard(**options)


def _plain(table: Any, name: str = "") -> dict[str, Any]:
    """A config section as plain values."""
    if table is None:
        return {}
    if not isinstance(table, dict):
        from omegaconf import DictConfig, OmegaConf

        if not isinstance(table, DictConfig):
            at = f"algorithm.stepcredit.{name}".rstrip(".")
            raise InputError(f"`{at}` must be a section of options; got {table!r}.")
        table = OmegaConf.to_container(table, resolve=True)
    return dict(table)
