"""A verl config from overrides, composed and validated as verl does it at its start."""

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from stepcredit.adapters.verl.requirements import columns, refuse_missing
from stepcredit.adapters.verl.settings import read_settings
from stepcredit.config import hint
from stepcredit.errors import InputError, MissingExtraError

_OPEN = ("stepcredit", "override_config", "engine_kwargs", "ray_init", "reward_kwargs", "teacher_models")
"""Sections of verl's config that take names of one's own."""


def composed(words: Sequence[str]) -> Any:
    """verl's ``ppo_trainer`` config under overrides as its command line takes them, a ``DictConfig``.

    Raises:
        InputError: An override that names nothing in verl's config, or that cannot be read.
        MissingExtraError: verl is not installed.
    """  # noqa: D403
    try:
        import verl
    except ImportError:
        raise MissingExtraError("verl", "verl", "train on verl") from None
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    with initialize_config_dir(str(Path(verl.__file__).parent / "trainer" / "config"), version_base=None):
        try:
            return compose("ppo_trainer", list(words))
        except (HydraException, OmegaConfBaseException) as error:
            raise InputError(f"`verl` must hold settings of verl's config; {_line(error)}") from error


def refuse_unknown(names: Sequence[str]) -> None:
    """Refuses dotted names that verl's config does not have: on its command line they would be added, and never read.

    Raises:
        InputError: Names the first one, and its nearest neighbors there.
    """
    from omegaconf import DictConfig

    base = composed(())
    for name in names:
        at: Any = base
        for part in name.split("."):
            if part in _OPEN or not isinstance(at, DictConfig) or at._is_none():
                break
            known = [str(key) for key in at]  # `in` leaves out those whose value must still be given
            if part not in known:
                raise InputError(f"`verl.{name}` must be a setting of verl's config{hint(part, known)}")
            at = at._get_node(part)


def validate(config: Any) -> None:
    """Refuses what would stop the run: a column that does not come, or what verl's own validation refuses.

    Raises:
        InputError: Says which.
    """
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    settings = read_settings(config.algorithm)
    refuse_missing(columns(config, settings), type(settings.estimator).__name__)
    try:
        with redirect_stdout(sys.stderr):  # it prints; what a verb prints is its own
            validate_config(config, need_reference_policy(config), need_critic(config))
    except (AssertionError, ValueError) as error:
        raise InputError(f"`verl` must pass verl's own validation; {_line(error)}") from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
