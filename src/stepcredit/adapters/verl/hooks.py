"""Work that waits until a module of verl's is imported, so that the plug-in itself imports none of them."""

import importlib.util
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Action = Callable[[ModuleType], None]


def when_imported(name: str, action: Action) -> None:
    """Runs ``action(module)`` right after the module's first import; at once if it is imported already.

    An error in the action is the import's: whoever imports the module sees it.

    Example:
        >>> when_imported("json", lambda module: print(module.__name__))
        json
    """
    if name in sys.modules and name not in _FINDER.actions:
        action(sys.modules[name])
        return
    _FINDER.actions.setdefault(name, []).append(action)
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)


class _Finder(MetaPathFinder):
    """Finds a module as Python would, and adds the actions to the end of its execution."""

    def __init__(self) -> None:
        self.actions: dict[str, list[Action]] = {}
        self._finding: set[str] = set()

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        if name not in self.actions or name in self._finding:
            return None
        self._finding.add(name)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._finding.discard(name)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def executed(module: ModuleType) -> None:
            execute(module)
            for action in self.actions[name]:
                action(module)
            del self.actions[name]  # only now: after an error the next import is an error too

        spec.loader.exec_module = executed  # type: ignore[method-assign]
        return spec


_FINDER = _Finder()
