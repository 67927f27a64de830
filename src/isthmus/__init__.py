"""Isthmus: make trained networks physically smaller to a stated budget, and measure what was saved and what was lost.

The public names are imported when they are first used, so that ``import isthmus`` stays light.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from isthmus import _loader

if TYPE_CHECKING:
    from isthmus.flow import audit, compare, inspect, load, narrow, open, plan, task

__version__ = "0.1.0"

__all__ = ["__version__", "audit", "compare", "inspect", "load", "narrow", "open", "plan", "task"]

_PUBLIC = frozenset(__all__) - {"__version__"}


class _Package(ModuleType):
    """This package: ``isthmus.plan`` stays the function when the submodule of that name is imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        # The import system binds a submodule's name on its package, over the public name that is looked up lazily.
        if not (name in _PUBLIC and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module("isthmus.flow"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_loader.install()
