"""Registers the loader of narrowed networks and the zoo's models with transformers, without importing it for that.

Importing isthmus must stay fast, and after it plain ``AutoModel.from_pretrained`` must open what isthmus saved. So
where transformers is not imported yet, a finder waits for the modules that hold the registries.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType


def _register_loader() -> None:
    from isthmus.storage.loader import register

    register()


def _register_configs() -> None:
    from isthmus.zoo.registering import register_configs

    register_configs()


def _register_models() -> None:
    from isthmus.zoo.registering import register_models

    register_models()


_REGISTRIES: dict[str, Callable[[], None]] = {
    "transformers.quantizers.auto": _register_loader,
    "transformers.models.auto.configuration_auto": _register_configs,
    "transformers.models.auto.modeling_auto": _register_models,
}


class _ThenRegister(importlib.abc.Loader):
    """Runs the real loader of a registry's module, then registers."""

    def __init__(self, loader: importlib.abc.Loader, register: Callable[[], None]) -> None:
        self._loader, self._register = loader, register

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._register()


class _Finder(importlib.abc.MetaPathFinder):
    """Stands in front of the other finders until the registries' modules are imported."""

    def __init__(self, waiting: dict[str, Callable[[], None]]) -> None:
        self.waiting = waiting

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        register = self.waiting.pop(fullname, None)
        if register is None:
            return None
        if not self.waiting:
            sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenRegister(spec.loader, register)
        return spec


def install() -> None:
    """Register now where transformers is ready for it, else as soon as it is."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    ready = [register for name, register in _REGISTRIES.items() if name in sys.modules]
    waiting = {name: register for name, register in _REGISTRIES.items() if name not in sys.modules}
    if waiting:
        sys.meta_path.insert(0, _Finder(waiting))
    for register in ready:  # last, for to register one may import the module of another
        register()
