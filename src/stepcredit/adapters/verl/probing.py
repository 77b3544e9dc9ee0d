"""What verl made of the plug-in in this process; for a doctor, who asks in other processes too."""

import os
import platform
import sys
from importlib import import_module
from typing import Any

_MODULES = (
    "verl.trainer.ppo.core_algos",
    "verl.trainer.ppo.ray_trainer",
    "verl.trainer.ppo.v1",
    "verl.experimental.reward_loop.reward_manager",
)


def registered() -> dict[str, Any]:
    """Imports verl as its trainers do and says what is registered.

    Returns:
        Plain values: ``host``, ``pid``, ``loaded`` (whether verl loaded the plug-in), ``registered`` (registry ->
        names), ``error`` (what importing one of verl's modules raised, or None).
    """
    found: dict[str, Any] = {"host": platform.node(), "pid": os.getpid(), "loaded": False, "registered": {}}
    plugin = "stepcredit.adapters.verl.plugin"
    try:
        import_module("verl")
        found["loaded"] = plugin in sys.modules
        for name in _MODULES:
            import_module(name)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
        return {**found, "error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    if found["loaded"]:
        found["registered"] = dict(sys.modules[plugin].REGISTERED)
    return {**found, "error": None}
