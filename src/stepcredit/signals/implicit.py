"""PRIME's implicit process reward model: a language model whose log-ratio learns, online, to tell right from wrong."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from stepcredit.batch import Rollouts
from stepcredit.errors import InputError, MissingExtraError
from stepcredit.options import Options, option
from stepcredit.signals.causal import sequence_logprobs
from stepcredit.signals.implicit_fit import Fit, Lesson, trained
from stepcredit.signals.prm.loading import Checkpoint, torch_dtype, whole_models
from stepcredit.signals.vocabulary import vocabulary_difference


@dataclass
class _State:
    """What a signal keeps between calls."""

    model: Any = None
    reference: Any = None
    policy_tokenizer: Any = None
    optimizer: torch.optim.AdamW | None = None
    updates: int = 0


@dataclass(frozen=True)
class ImplicitPRM(Options):
    r"""Rewards each token by ``beta (log pi_phi - log pi_ref)``, and trains pi_phi on the outcomes.

    The sum of a response's rewards is the logit of its outcome:

        loss = mean over rollouts of BCE( sigmoid(beta sum_t (log pi_phi - log pi_ref)[t]), outcome )

    with t over the response's tokens. pi_phi and pi_ref begin as the same model, so that the first scores are 0. Both
    read the policy's own token ids. Dropout is off and nothing is drawn at random: the same updates from the same
    state give the same weights.

    Attributes:
        name: What this signal is called in configurations and records.
        unit: What its scores mean.
        requires: The fields of `Rollouts` that it reads beside prompts and completions.
        model: Where pi_phi begins, a local folder or a hub name; None: as `bind` gives it, the policy's own start.
        reference: pi_ref, which is never trained; None: what pi_phi begins as.
        beta: Scale of the log-ratio.
        learning_rate: Of AdamW, without weight decay.
        epochs: How often an update goes over its rollouts.
        mini_batch_size: The rollouts of one optimizer step, in their order.
        max_grad_norm: What the gradient's norm is clipped to, in each step.
        when: Whether a batch's update comes "before" its scores, as in the paper, or "after".
        batch_tokens: The most tokens, padding included, of one pass of a model; a longer rollout goes alone.
        dtype: Of both models' weights, by torch's name. Steps of 1e-6 are lost in half precision.
        device: Where the models run; None: where they are bound, or the CUDA device if there is one, else the CPU.
        trust_remote_code: Run the modeling code that the checkpoints ship.

    Raises:
        InputError: A number out of its range, or an unknown dtype.

    Example:
        >>> ImplicitPRM().beta  # nothing is loaded yet
        0.05

    Reference:
        Cui et al., PRIME, arXiv 2502.01456, and its recipe for verl, whose settings are the defaults; one mini-batch
        there is as large as the policy's.
    """

    name: ClassVar[str] = "implicit_prm"
    unit: ClassVar[str] = "beta times nats"
    requires: ClassVar[frozenset[str]] = frozenset({"token_ids", "prompt_ids"})
    model: str | None = None
    reference: str | None = None
    beta: float = option(0.05, above=0)
    learning_rate: float = option(1e-6, above=0)
    epochs: int = option(1, at_least=1)
    mini_batch_size: int = option(64, at_least=1)
    max_grad_norm: float = option(1.0, above=0)
    when: Literal["before", "after"] = "before"
    batch_tokens: int = option(8192, at_least=1)
    dtype: str = "float32"
    device: str | None = None
    trust_remote_code: bool = False
    _state: _State = field(init=False, repr=False, compare=False, default_factory=_State)

    def __post_init__(self) -> None:
        """Checks every option; touches neither network nor disk."""
        super().__post_init__()
        for name in ("model", "reference"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value.strip()):
                raise InputError(f"`{name}` must be a local folder or a hub name for ImplicitPRM; got {value!r}.")
        torch_dtype(self.dtype)

    def bind(self, *, model: Any = None, reference: Any = None, tokenizer: Any = None) -> None:
        """Gives what only a run knows, before anything is scored.

        Args:
            model: Where pi_phi begins, if the option does not say. It is trained in place: it must be a copy of its
                own, not the policy that a trainer trains.
            reference: pi_ref, frozen from here on; None: the option's, or a copy of ``model``.
            tokenizer: The policy's, whose vocabulary a loaded model must have. Without one, the token ids of rollouts
                are taken for the loaded model's own.

        Raises:
            InputError: A model that the options name as well, or one is bound already.
        """
        state = self._state
        for name, value in (("model", model), ("reference", reference)):
            if value is not None and getattr(self, name) is not None:
                raise InputError(f"`{name}` must be named or bound, not both; got {getattr(self, name)!r} as well.")
        if model is not None and (state.model is not None or model is reference):
            raise InputError("`model` must be bound once, and not as its own reference.")
        state.policy_tokenizer = tokenizer if tokenizer is not None else state.policy_tokenizer
        state.model = model if model is not None else state.model
        state.reference = reference if reference is not None else state.reference

    def score(self, rollouts: Rollouts) -> list[list[float]]:
        """The implicit reward of each completion token.

        Args:
            rollouts: Must have ``token_ids`` and ``prompt_ids``.

        Returns:
            For each rollout one number a token, masked ones included: what the models say of them.

        Raises:
            InputError: A field is missing, there is no model or it cannot be loaded, it has another vocabulary than
                the policy, or what `sequence_logprobs` refuses; a reward is not finite.
            MissingExtraError: Transformers is not installed.
        """
        prompts, completions = self._ids(rollouts)
        model, reference, _ = self._ready()
        with torch.inference_mode():
            mine = self._logprobs(model, prompts, completions)
            theirs = self._logprobs(reference, prompts, completions)
        rows = [(self.beta * (a.double() - b.double())).tolist() for a, b in zip(mine, theirs, strict=True)]
        for row, values in enumerate(rows):
            if not all(map(isfinite, values)):
                raise InputError(f"`model` must give finite rewards; got nan or infinity in row {row}.")
        return rows

    def update(self, rollouts: Rollouts, outcomes: Sequence[float]) -> dict[str, float]:
        """Trains pi_phi on the rollouts, in their order.

        Args:
            rollouts: As for `score`; tokens outside ``response_mask`` are read but not summed.
            outcomes: How likely each rollout is right, in [0, 1]; mostly 0 or 1. Shape: [batch].

        Returns:
            ``loss``, ``accuracy`` (the sum is on the outcome's side of 0) and ``margin`` (the mean sum of right
            rollouts less that of wrong ones; left out unless there are both), each as a rollout's first step found it;
            ``grad_norm``, the mean before clipping; ``skipped``, the rollouts without a response token.

        Raises:
            InputError: As for `score`; outcomes that are not one number in [0, 1] a rollout; a gradient that is not
                finite, which is not applied.

        Degenerate cases:
            No response token in any rollout: only ``skipped``; nothing is learned.
        """
        prompts, completions = self._ids(rollouts)
        if len(outcomes) != len(rollouts):
            raise InputError(f"`outcomes` must have one entry a rollout; got {len(outcomes)} for {len(rollouts)}.")
        for row, outcome in enumerate(outcomes):
            if not 0 <= outcome <= 1:
                raise InputError(f"`outcomes` must be in [0, 1] for ImplicitPRM; got {outcome} in row {row}.")
        masks = rollouts.response_mask or [[True] * len(ids) for ids in completions]
        rows = [row for row, mask in enumerate(masks) if any(mask)]
        skipped = {"skipped": float(len(rollouts) - len(rows))}
        if not rows:
            return skipped
        model, reference, optimizer = self._ready()
        fit = Fit(self.beta, self.epochs, self.mini_batch_size, self.max_grad_norm, self.batch_tokens)
        lessons: list[Lesson] = []
        with torch.inference_mode(False):  # a trainer may call from inside one
            with torch.no_grad():
                known = self._logprobs(reference, [prompts[i] for i in rows], [completions[i] for i in rows])
            for i, base in zip(rows, known, strict=True):
                mask = torch.tensor([bool(on) for on in masks[i]], device=base.device)
                lessons.append(Lesson(prompts[i], completions[i], mask, base, float(outcomes[i])))
            numbers = fit(model, optimizer, lessons)
        self._state.updates += 1
        return {**numbers, **skipped}

    def state_dict(self) -> dict[str, Any]:
        """A copy of pi_phi's weights, of the optimizer's state, and the number of updates."""
        model, _, optimizer = self._ready()
        weights = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
        return {"model": weights, "optimizer": copy.deepcopy(optimizer.state_dict()), "updates": self._state.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state_dict`; pi_ref is as the options, or `bind`, say.

        Raises:
            InputError: The state is not one of this signal, or of another model.
        """
        model, _, optimizer = self._ready()
        try:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
            self._state.updates = int(state["updates"])
        except (KeyError, RuntimeError, ValueError) as error:
            fact = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError(f"`state` must be of an ImplicitPRM with the same model; got {fact:.200}") from error

    def _logprobs(self, model: Any, prompts: Sequence[Any], completions: Sequence[Any]) -> list[Tensor]:
        with torch.autocast(model.device.type, enabled=False):
            return sequence_logprobs(model, prompts, completions, batch_tokens=self.batch_tokens)

    def _ids(self, rollouts: Rollouts) -> tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]]:
        for name in sorted(self.requires):
            if getattr(rollouts, name) is None:
                raise InputError(f"`{name}` must be in the rollouts for ImplicitPRM; got None.")
        return rollouts.prompt_ids or [], rollouts.token_ids or []

    def _ready(self) -> tuple[Any, Any, torch.optim.AdamW]:
        """The models on their device, and the optimizer; made by the first call."""
        state = self._state
        if state.optimizer is None:
            if state.model is None and self.model is None:
                raise InputError("`model` must be named or bound for ImplicitPRM; got None.")
            with torch.inference_mode(False):  # weights that are moved or cast inside one can never be trained
                model = state.model if self.model is None else self._load("model", self.model)
                model = model.to(device=self.device, dtype=torch_dtype(self.dtype)).eval()
                reference = state.reference if self.reference is None else self._load("reference", self.reference)
                reference = copy.deepcopy(model) if reference is None else reference
                reference = reference.to(device=model.device, dtype=model.dtype).eval()
            if not trained(model):
                model.requires_grad_(True)
            state.model, state.reference = model, reference.requires_grad_(False)
            state.optimizer = torch.optim.AdamW(trained(model), lr=self.learning_rate, weight_decay=0.0)
        return state.model, state.reference, state.optimizer

    def _load(self, option: str, name: str) -> Any:
        """A causal language model with all its weights and the policy's vocabulary."""
        try:
            import transformers
        except ImportError:
            raise MissingExtraError("transformers", "data", "load an implicit process reward model") from None
        place = Checkpoint(name, self.dtype, self.device, self.trust_remote_code, option)
        source, local = place.place()
        options = {"local_files_only": local, "trust_remote_code": self.trust_remote_code}
        with place.told(), whole_models():
            auto = transformers.AutoModelForCausalLM
            model, info = auto.from_pretrained(
                source, dtype=torch_dtype(self.dtype), output_loading_info=True, **options
            )
            if info["missing_keys"]:  # Transformers would go on with random numbers in their place
                missing = sorted(info["missing_keys"])[0]
                raise InputError(f"`{option}` must have all weights of its architecture; {name!r} lacks {missing}.")
            if self._state.policy_tokenizer is not None:
                tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
                difference = vocabulary_difference(self._state.policy_tokenizer, tokenizer)
                if difference is not None:
                    raise InputError(f"`{option}` must have the policy's vocabulary; {name!r} has {difference}.")
        return model.to(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))
