"""What is put to the laws: anything that turns a `RolloutBatch` into one number a token."""

import importlib
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stepcredit.batch import Credit, RolloutBatch
from stepcredit.config import build_estimator
from stepcredit.config.build import hint
from stepcredit.errors import InputError, StepCreditError
from stepcredit.estimators import ESTIMATORS, Estimator
from stepcredit.lab.peers import PEERS, peer


class MalformedError(StepCreditError):
    """A target returned something that is no credit: of another type, shape or dtype."""


@dataclass(frozen=True, eq=False)
class Target:
    """A credit function, and what it says of itself.

    Attributes:
        name: What it is called.
        call: Batch, and perhaps ``process_group`` -> `Credit` or a tensor [batch, time].
        requires: Fields that a batch must have; its attribute of that name.
        exempt: Law -> why it need not keep it; its attribute of that name.
        estimator: The estimator itself, whose options can be changed; None for a plain callable.
        takes_ranks: Whether it takes a ``process_group``.
    """

    name: str
    call: Callable[..., Any]
    requires: frozenset[str] = frozenset()
    exempt: Mapping[str, str] = field(default_factory=dict)
    estimator: Estimator | None = None
    takes_ranks: bool = False

    @classmethod
    def of(cls, thing: Any, name: str | None = None) -> "Target":
        """An estimator class or instance, or a callable.

        Raises:
            InputError: It is none of them, or cannot be made without arguments.
        """
        name = name or getattr(thing, "__name__", None) or type(thing).__name__
        if isinstance(thing, Target):
            return thing
        if isinstance(thing, type) and issubclass(thing, Estimator):
            try:
                thing = thing()
            except TypeError as error:
                raise InputError(f"`target` {name} must have defaults, or be an instance; got {error}.") from None
        if isinstance(thing, type) or not callable(thing):
            raise InputError(f"`target` must be an estimator, or RolloutBatch -> [batch, time]; got {name}: {thing!r}.")
        estimator = thing if isinstance(thing, Estimator) else None
        takes = inspect.signature(thing).parameters
        return cls(
            name, thing, frozenset(getattr(thing, "requires", ())), dict(getattr(thing, "exempt", {})), estimator,
            "process_group" in takes,
        )  # fmt: skip

    def __call__(self, batch: RolloutBatch, **more: Any) -> Tensor:
        """The credit as a tensor like the batch's mask.

        Raises:
            MalformedError: It returned something else.
            Exception: Whatever it raises.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            got = self.call(batch, **more)
        credit = got.advantages if isinstance(got, Credit) else got
        if not isinstance(credit, Tensor) or not credit.is_floating_point():
            said = str(credit.dtype) if isinstance(credit, Tensor) else type(credit).__name__
            raise MalformedError(f"`{self.name}` must return a Credit or a tensor of floats; got {said}.")
        if credit.shape != batch.response_mask.shape:
            want, shape = list(batch.response_mask.shape), list(credit.shape)
            raise MalformedError(f"`{self.name}` must return credit of the mask's shape {want}; got {shape}.")
        return credit

    def but(self, **options: Any) -> "Target":
        """The same scheme with other options."""
        assert self.estimator is not None
        settings = {f.name: getattr(self.estimator, f.name) for f in fields(self.estimator)}
        return Target.of(type(self.estimator)(**(settings | options)), self.name)


def find_target(name: str, options: Mapping[str, Any]) -> Target:
    """A target by what a user would call it.

    Args:
        name: A built-in scheme's type ("pass"), "verl:grpo" or "trl:grpo" for an engine's own, ``package.module:name``
            or ``path/to/file.py:name``.
        options: Of the scheme, or of one's own `Estimator` class.

    Raises:
        InputError: There is nothing of that name, or options are given to what has none.
    """
    module, colon, attribute = name.rpartition(":")
    if name in ESTIMATORS or not colon:
        return Target.of(build_estimator(name, options), name)
    if module.split(":")[0] in PEERS:
        _no_options(name, options)
        return Target.of(peer(name), name)
    try:
        thing = getattr(_module(module), attribute)
    except Exception as error:  # importing runs a user's code
        known = [*ESTIMATORS, *(f"{engine}:{one}" for engine, names in PEERS.items() for one in names)]
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise InputError(f"`target` {name!r} could not be imported: {said}{hint(name, known)}.") from error
    if isinstance(thing, type) and issubclass(thing, Estimator) and options:
        return Target.of(thing(**options), name)
    _no_options(name, options)
    return Target.of(thing, name)


def every_target(name: str) -> list[str] | None:
    """The names that "all" (the built-in schemes), "verl:all" or "trl:all" stands for; None for any other name."""
    engine, _, what = name.rpartition(":")
    if what != "all" or (engine and engine not in PEERS):
        return None
    return [f"{engine}:{one}" for one in PEERS[engine]] if engine else list(ESTIMATORS)


def _no_options(name: str, options: Mapping[str, Any]) -> None:
    if options:
        raise InputError(f"`--set` must name options of a built-in scheme or an Estimator class; got {name!r}.")


def _module(name: str) -> Any:
    """A module by its dotted name, seen from here too, or by its file."""
    if not name.endswith(".py"):
        sys.path.insert(0, "")
        try:
            return importlib.import_module(name)
        finally:
            sys.path.remove("")
    spec = importlib.util.spec_from_file_location(Path(name).stem, name)
    if spec is None or spec.loader is None or not Path(name).is_file():
        raise FileNotFoundError(name)
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(spec.name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def tolerance(credit: Tensor) -> float:
    """How far apart equal credit may be: of the largest, by the precision of what was returned."""
    relative = 1e-9 if credit.dtype == torch.float64 else 1e-4
    largest = float(credit.abs().max()) if credit.numel() else 0.0
    return relative * max(largest if largest < float("inf") else 1.0, 1.0)
