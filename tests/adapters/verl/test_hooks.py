"""Work that waits for an import: once, in order, loud, and without importing anything itself."""

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stepcredit.adapters.verl.hooks import when_imported


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package of its own name for each test, with a module ``inner`` that imports it."""
    name = f"waited_{tmp_path.name.replace('-', '_')}"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text("value = 1\n")
    (folder / "inner.py").write_text(f"from {name} import value\nseen = value\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_an_action_waits_for_the_import_and_runs_once(package: str) -> None:
    seen: list[Any] = []
    when_imported(package, lambda module: seen.append(module.value))
    when_imported(package, lambda module: seen.append(-module.value))
    assert seen == []
    assert package not in sys.modules
    module = importlib.import_module(package)
    assert seen == [1, -1]
    importlib.reload(module)
    assert seen == [1, -1]


def test_an_action_can_change_what_others_import_from_the_module(package: str) -> None:
    when_imported(package, lambda module: setattr(module, "value", 2))
    assert importlib.import_module(f"{package}.inner").seen == 2


def test_an_action_for_a_module_that_is_there_runs_at_once(package: str) -> None:
    importlib.import_module(package)
    seen: list[int] = []
    when_imported(package, lambda module: seen.append(module.value))
    assert seen == [1]


def test_an_error_in_an_action_is_the_imports(package: str) -> None:
    def broken(_: Any) -> None:
        raise RuntimeError("no such registry")

    when_imported(package, broken)
    for _ in range(2):  # verl imports some modules under `try`: a later import must not pass for a good one
        with pytest.raises(RuntimeError, match="no such registry"):
            importlib.import_module(package)


def test_a_module_that_does_not_exist_is_still_not_found() -> None:
    when_imported("no_such_module_anywhere", lambda _: None)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("no_such_module_anywhere")


def test_the_plug_in_imports_nothing_of_verls_and_registers_nothing_before_verl_does() -> None:
    code = """
import sys
import stepcredit
before = set(sys.modules)
from stepcredit.adapters.verl import plugin
import stepcredit.adapters.verl_cpu
new = sorted(name for name in set(sys.modules) - before if not name.startswith("stepcredit"))
print(plugin.REGISTERED, [name for name in new if name.partition(".")[0] in ("verl", "ray", "transformers", "trl")])
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "{} []"
