"""What the advantage stage's benchmark times: our schemes, what each reads, and the peers that compute the same."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from stepcredit.errors import InputError, StepCreditWarning
from stepcredit.estimators import (
    GDPO,
    GRPO,
    PAPO,
    PASS,
    PRIME,
    RLOO,
    SPRO,
    DrGRPO,
    Estimator,
    GRPOProcess,
    REINFORCEpp,
)
from stepcredit.lab.bench.cases import Shape


@dataclass(frozen=True)
class Scheme:
    """One of ours.

    Attributes:
        estimator: With its defaults.
        reads: Fields beside those that every batch has; see `Shape.fields`.
    """

    estimator: Estimator
    reads: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rival:
    """A peer.

    Attributes:
        scheme: Our scheme that computes the same.
        settings: It, with the peer's settings.
    """

    scheme: str
    settings: Estimator


SCHEMES: dict[str, Scheme] = {
    "grpo": Scheme(GRPO()),
    "grpo-process": Scheme(GRPOProcess(), ("step_rewards",)),
    "spro": Scheme(SPRO(), ("old_logprobs", "ref_logprobs")),
    "pass-steps": Scheme(PASS(), ("step_rewards",)),
    "pass-tokens": Scheme(PASS(), ("process_rewards",)),
    "prime": Scheme(PRIME(), ("process_rewards",)),
    "reinforce-pp": Scheme(REINFORCEpp(), ("step_rewards",)),
    "rloo": Scheme(RLOO()),
    "dr-grpo": Scheme(DrGRPO()),
    "gdpo": Scheme(GDPO()),
    "papo": Scheme(PAPO(), ("step_rewards",)),
}
RIVALS: dict[str, Rival] = {
    "verl:grpo": Rival("grpo", GRPO(singletons="raw")),
    "verl:grpo_vectorized": Rival("grpo", GRPO(singletons="raw")),
    "trl:grpo": Rival("grpo", GRPO(std_eps=1e-4)),
    "verl:rloo": Rival("rloo", RLOO(singletons="raw")),
    "verl:rloo_vectorized": Rival("rloo", RLOO()),
    "prime:rloo": Rival("prime", PRIME()),
    "verl:reinforce_plus_plus:dense": Rival("reinforce-pp", REINFORCEpp()),
    "verl:gae:dense": Rival("reinforce-pp", REINFORCEpp()),
}
"""verl's GAE without a critic is REINFORCE++."""


def scheme_of(name: str) -> Scheme:
    """One by its name.

    Raises:
        InputError: There is none.
    """
    if name not in SCHEMES:
        raise InputError(f"`schemes` must be of {', '.join(SCHEMES)}; got {name!r}.")
    return SCHEMES[name]


def fields_of(name: str, shape: Shape, layout: str = "padded") -> dict[str, Tensor]:
    """What a scheme's batch is made of."""
    return shape.fields(*scheme_of(name).reads, layout=layout)


def minimal_bytes(fields: dict[str, Tensor], output: Tensor, tokens: int) -> tuple[int, int]:
    """The bytes of all inputs and the output; and those without what inputs hold off the response tokens.

    Masks are read whole either way: they say what need not be read. Outputs are written whole: they are 0 there.

    Args:
        fields: Of a batch.
        output: Advantages.
        tokens: Response tokens.

    Returns:
        Two numbers of bytes, the second at most the first.
    """
    whole = fixed = output.numel() * output.element_size()
    for name, x in fields.items():
        size = x.numel() * x.element_size()
        skipped = x.shape == output.shape and name != "response_mask"
        whole += size
        fixed += tokens * x.element_size() if skipped else size
    return whole, fixed


def quiet(run: Callable[[], Any]) -> Callable[[], Any]:
    """Random numbers look like no signal: what a scheme warns of is not the matter here."""

    def quietly() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", StepCreditWarning)
            return run()

    return quietly
