"""Narrowed tokens as data in ``config.json``: what a model's are, and narrowing those of one that is being loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from isthmus.bottlenecks.tokens.engine import attach, attached
from isthmus.bottlenecks.tokens.registry import from_data, to_data
from isthmus.errors import BadInput, misfit

_FIELDS = {"layers", "policy", "prefix", "restore"}


def describe(model: nn.Module) -> dict[str, Any] | None:
    """Return what narrows the tokens of a model, as JSON; None where nothing does."""
    parts = attached(model)
    if not parts:
        return None
    path, part = next(iter(parts.items()))
    return {
        "layers": path.rpartition(".")[0],
        "policy": to_data(part.policy),
        "prefix": part.prefix,
        "restore": part.restore,
    }


def apply(model: nn.Module, data: Mapping[str, Any], find: Callable[[str], str | None]) -> None:
    """Narrow the tokens of a model, in place; nothing in ``data`` is believed before it is checked.

    Parameters
    ----------
    find : callable
        From the path of a saved module to that in this model; None where it has none.

    Raises
    ------
    BadArtifact
        If the data do not fit the model.
    """
    if set(data) != _FIELDS:
        raise misfit(f"tokens have {sorted(data)}, not {sorted(_FIELDS)}")
    path, prefix, restore = data["layers"], data["prefix"], data["restore"]
    found = find(path) if isinstance(path, str) else None
    if found is None or not isinstance(model.get_submodule(found), nn.ModuleList | nn.Sequential):
        raise misfit(f"{path!r} is not a list of layers")
    if type(prefix) is not int or prefix < 0 or type(restore) is not bool:
        raise misfit(f"tokens with prefix {prefix!r} and restore {restore!r}")
    try:
        attach(model, found, from_data(data["policy"]), prefix=prefix, restore=restore)
    except BadInput as error:
        raise misfit(str(error)) from None
