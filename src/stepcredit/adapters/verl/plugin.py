"""What verl's entry point loads, in every process that imports verl: what is registered, and when.

verl swallows whatever a plug-in raises while it is loaded. So nothing here can fail but the work itself, which waits
for verl's own modules: an error there is the import's, and stops the run.
"""

from types import ModuleType
from typing import Any

from stepcredit.adapters.verl.hooks import when_imported

MODES = ("sync", "colocate_async", "separate_async")
"""The trainers of verl's that get a sibling with credit: ``trainer.v1.trainer_mode=stepcredit_<mode>``."""
PREFIX = "stepcredit"
"""Of every name that is registered; alone it is the estimator that ``algorithm.stepcredit.type`` names."""

REGISTERED: dict[str, list[str]] = {}
"""What is registered in this process: registry -> names."""


def _estimators(module: ModuleType) -> None:
    from stepcredit.adapters.verl.crediting import advantages
    from stepcredit.estimators import ESTIMATORS

    names = [PREFIX, *(f"{PREFIX}_{name}" for name in ESTIMATORS)]
    for name in names:
        module.register_adv_est(name)(advantages)
    REGISTERED["estimators"] = names


def _dispatcher(module: ModuleType) -> None:
    """The dispatcher of verl gives an estimator four columns; with this it may look at all that the trainer has."""
    from stepcredit.adapters.verl.arriving import seen

    module.compute_advantage = seen(module.compute_advantage)  # type: ignore[attr-defined]
    REGISTERED["dispatcher"] = [*REGISTERED.get("dispatcher", []), "compute_advantage"]


def _columns(module: ModuleType) -> None:
    """The v1 trainers go through here; with this their estimators get what their trainers leave behind."""
    from stepcredit.adapters.verl.bringing import with_columns

    module.compute_advantage_for_multi_trajectories = with_columns(  # type: ignore[attr-defined]
        module.compute_advantage_for_multi_trajectories
    )
    REGISTERED["dispatcher"] = [*REGISTERED.get("dispatcher", []), "compute_advantage_for_multi_trajectories"]


def _trainers(module: ModuleType) -> None:
    from stepcredit.adapters.verl.trainer import credit_trainer

    for mode in MODES:
        name = f"{PREFIX}_{mode}"
        module.register_trainer(name)(credit_trainer(name, module.get_trainer_cls(mode)))
    REGISTERED["trainers"] = [f"{PREFIX}_{mode}" for mode in MODES]


def _reward_manager(module: ModuleType) -> None:
    from stepcredit.adapters.verl.rewards import reward_manager

    manager: Any = reward_manager(module.get_reward_manager_cls("naive"))
    module.register(PREFIX)(manager)
    REGISTERED["reward managers"] = [PREFIX]


when_imported("verl.trainer.ppo.core_algos", _estimators)
when_imported("verl.trainer.ppo.ray_trainer", _dispatcher)
when_imported("verl.trainer.ppo.v1.utils", _columns)
when_imported("verl.trainer.ppo.v1", _trainers)
when_imported("verl.experimental.reward_loop.reward_manager", _reward_manager)
