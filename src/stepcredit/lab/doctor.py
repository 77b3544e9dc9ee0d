"""Says of verl's plug-in what is registered, where, and which columns arrive; and of a machine, what is installed."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version
from typing import Any

from stepcredit.errors import InputError, StepCreditError
from stepcredit.ops import kernels

_PACKAGES = ("stepcredit", "torch", "numpy", "transformers", "trl", "verl", "ray", "numba", "triton", "vllm")
_PROBE = "import json; from stepcredit.adapters.verl.probing import registered; print('\\n' + json.dumps(registered()))"


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        name: What.
        ok: Whether it is as it should be; None where nothing is wrong or right.
        fact: What was found, and what to do.
    """

    name: str
    ok: bool | None
    fact: str


def examine_machine() -> list[Finding]:
    """The versions of what matters, and the devices."""
    import torch

    found = [Finding(name, None, _version(name)) for name in _PACKAGES]
    found.append(Finding("kernels", None, "; ".join(_kernels(kind) for kind in ("cpu", "cuda"))))
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return [*found, Finding("devices", None, ", ".join(gpus) or f"no GPU; {torch.get_num_threads()} CPU threads")]


def examine_verl(overrides: Sequence[str] = (), *, workers: bool = True) -> list[Finding]:
    """Looks at the plug-in as verl's driver, a fresh Ray worker and a config see it.

    Args:
        overrides: Of verl's config, as its command line takes them; the columns are said for these.
        workers: Also start Ray and ask a worker of it.
    """
    installed = _version("verl")
    found = [Finding("verl", installed.startswith("0.9."), f"{installed}; made for 0.9")]
    if installed == "not installed":
        return [Finding("verl", False, "not installed: pip install 'stepcredit[verl]'")]
    points = [point.value for point in entry_points(group="verl.plugins") if point.name == "stepcredit"]
    found.append(Finding("entry point", bool(points), ", ".join(points) or "none: install stepcredit on this node"))
    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto")
    admitted = policy.strip().lower() == "auto" or "stepcredit" in [name.strip().lower() for name in policy.split(",")]
    found.append(Finding("admitted", admitted, f"VERL_USE_EXTERNAL_PLUGINS is {policy}"))
    found.append(_registered("driver", _in_driver()))
    if workers:
        found.append(_registered("ray worker", _in_worker()))
    return found + _columns(overrides)


def plain(findings: Sequence[Finding]) -> dict[str, Any]:
    """The findings as plain values, with the verdict."""
    return {"ok": all(one.ok is not False for one in findings), "findings": [asdict(one) for one in findings]}


def _kernels(kind: str) -> str:
    """Whether a kind of device, if there is one, runs kernels, or why not."""
    import torch

    try:
        why = kernels.refusal(kernels.LEAST_TOKENS, torch.device(kind))
    except StepCreditError as error:
        why = str(error)
    return f"{kind}: " + (f"run from {kernels.LEAST_TOKENS} token places on" if why is None else why)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _in_driver() -> dict[str, Any]:
    """A process of its own, since what is imported here already proves nothing."""
    done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        return {"error": " ".join(done.stderr.split())[-300:]}
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def _in_worker() -> dict[str, Any]:
    import ray

    from stepcredit.adapters.verl.probing import registered

    owned = not ray.is_initialized()
    if owned:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        answer: dict[str, Any] = ray.get(ray.remote(registered).remote(), timeout=300)
        return answer
    except ray.exceptions.RayError as error:
        return {"error": " ".join(str(error).split())[:300]}
    finally:
        if owned:
            ray.shutdown()


def _registered(where: str, answer: dict[str, Any]) -> Finding:
    if answer.get("error"):
        return Finding(where, False, answer["error"])
    if not answer["loaded"]:
        return Finding(where, False, "verl did not load the plug-in; VERL_LOGGING_LEVEL=DEBUG may say why")
    parts = [f"{registry}: {', '.join(names)}" for registry, names in answer["registered"].items()]
    whole = {"estimators", "dispatcher", "trainers", "reward managers"} <= answer["registered"].keys()
    return Finding(where, whole, f"process {answer['pid']} on {answer['host']} has {'; '.join(parts) or 'nothing'}")


def _columns(overrides: Sequence[str]) -> list[Finding]:
    """What the scheme of a config reads, and whether the config brings it."""
    from stepcredit.adapters.verl.requirements import columns
    from stepcredit.adapters.verl.settings import is_ours, read_settings
    from stepcredit.runs.verl.composing import composed

    try:
        config = composed(overrides)
        name = str(config.algorithm.adv_estimator)
        if not is_ours(name):
            return [Finding("config", None, f"adv_estimator={name} is not ours; try stepcredit_pass")]
        settings = read_settings(config.algorithm)
        found = [Finding("config", True, repr(settings.estimator))]
        for column in columns(config, settings):
            fact = "arrives" if column.arrives else f"does not arrive; set {column.lines}"
            found.append(Finding(column.name, column.arrives, fact))
        return found
    except (InputError, StepCreditError) as error:
        return [Finding("config", False, str(error))]
