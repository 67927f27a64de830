"""Parts of a narrowed network that are neither shapes nor codes: what is done as it runs, by the module that knows it.

Such a module has ``describe(model)``, JSON or None, and ``apply(model, data, find)``. It is named here, not imported,
for it may stand above this package; it is loaded when a network is saved, or opened that has such a part.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

PARTS = {
    "tokens": "isthmus.bottlenecks.tokens.saving",
    "attention": "isthmus.bottlenecks.bits.rounded_attention",
    "cache": "isthmus.bottlenecks.cache.saving",
}


def described_parts(model: nn.Module) -> dict[str, Any]:
    """Return the parts that a model has, as JSON by their names."""
    found = {name: importlib.import_module(module).describe(model) for name, module in PARTS.items()}
    return {name: data for name, data in found.items() if data is not None}


def apply_part(model: nn.Module, name: str, data: Mapping[str, Any], find: Callable[[str], str | None]) -> None:
    """Give a model a part that was saved, in place.

    Parameters
    ----------
    find : callable
        From the path of a saved module to that in this model; None where it has none.

    Raises
    ------
    BadArtifact
        If the data do not fit the model.
    """
    importlib.import_module(PARTS[name]).apply(model, data, find)
