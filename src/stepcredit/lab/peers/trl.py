"""TRL's own advantages, read off its trainers: their code cannot be called apart from them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from stepcredit.batch import RolloutBatch
from stepcredit.lab.peers.trl_host import Host
from stepcredit.lab.peers.trl_lines import group_advantages
from stepcredit.lab.peers.unsupported import UnsupportedError

_WHITENED = "whitens over the batch, as it is asked to"
_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "grpo": {},
    "grpo_batch": {"scale_rewards": "batch"},
    "grpo_none": {"scale_rewards": "none"},
    "gdpo": {"multi_objective_aggregation": "normalize_then_sum"},
    "gdpo_none": {"multi_objective_aggregation": "normalize_then_sum", "scale_rewards": "none"},
    "rloo": {"normalize_advantages": False},
    "rloo_normalized": {"normalize_advantages": True},
}


@dataclass(frozen=True)
class TRLEstimator:
    """The advantages of `GRPOTrainer` or `RLOOTrainer` under some settings, on every token that its loss trains.

    GDPO reads the format and the further rewards beside the outcome, the others the outcome alone.

    Attributes:
        name: In `PEERS`.
        host: The trainer.
    """

    name: str
    host: Host = field(repr=False, compare=False)
    requires = frozenset({"rewards"})

    @property
    def exempt(self) -> Mapping[str, str]:
        """The laws that its settings break by definition."""
        whitened = self.name in ("grpo_batch", "gdpo", "gdpo_none", "rloo_normalized")
        return {"alone": _WHITENED, "leak": _WHITENED} if whitened else {}

    def __call__(self, batch: RolloutBatch) -> Tensor:
        """Advantages [batch, time], float32.

        Raises:
            UnsupportedError: Groups of several sizes, or what else TRL's trainers never see.
        """
        named = {"outcome": batch.rewards}
        if self.name.startswith("gdpo"):
            named |= {"form": batch.format_rewards, **(batch.extra_rewards or {})}
        return self.host.advantages(batch, {name: x for name, x in named.items() if x is not None})

    def ready(self, batch: RolloutBatch) -> Callable[[], Tensor]:
        """The lines of its trainer that make advantages, to be timed: a call of the trainer does much else.

        Raises:
            UnsupportedError: See `group_advantages`; or the scheme reads more than the outcome, or is RLOO's.
        """
        if not self.name.startswith("grpo"):
            raise UnsupportedError(f"the lines of TRL's {self.name} are not cut out")
        return group_advantages(batch, _SETTINGS[self.name])


def estimator(name: str) -> TRLEstimator:
    """One by its name in `PEERS`.

    Raises:
        MissingExtraError: TRL is not installed.
    """
    return TRLEstimator(name, Host("RLOOTrainer" if name.startswith("rloo") else "GRPOTrainer", _SETTINGS[name]))
