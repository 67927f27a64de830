"""Attention on few bits: queries, keys, values and attention weights rounded to levels that were set beforehand.

A registered attention function does it, so that no ``forward`` is touched; the levels lie on the module of attention as
plain data. It computes what integers would, in floating point, and without the fused kernel: the weights must be seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isthmus.bottlenecks.attention import register_attention
from isthmus.errors import misfit
from isthmus.storage.rounding import Even, Through, even_of

NAME = "isthmus_rounded"
HELD = "isthmus_levels"
"""The name under which a module of attention holds its levels."""
_FIELDS = ("query", "key", "value", "weights")
_MOST_LEVELS = 256


@dataclass(frozen=True)
class Table:
    """Levels of any spacing.

    Parameters
    ----------
    values : tuple of float
        The levels, rising.
    bounds : tuple of float
        Rising, one fewer: from each on, the next level is taken.
    """

    values: tuple[float, ...]
    bounds: tuple[float, ...]

    def __call__(self, entries: Tensor) -> Tensor:
        """Return the level of each entry, in the shape of ``entries``."""
        if not torch.compiler.is_exporting():
            values, bounds = (torch.tensor(one, dtype=entries.dtype) for one in (self.values, self.bounds))
            return values[torch.bucketize(entries.detach().contiguous(), bounds, right=True)]
        # A sum of steps, which every engine has.
        found = torch.full_like(entries, self.values[0])
        for low, high, bound in zip(self.values, self.values[1:], self.bounds, strict=False):
            found = found + (high - low) * (entries >= bound).to(entries.dtype)
        return found

    def data(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {"values": list(self.values), "bounds": list(self.bounds)}


Levels = Even | Table


@dataclass(frozen=True)
class AttentionLevels:
    """What a layer's attention is rounded to."""

    query: Levels
    key: Levels
    value: Levels
    weights: Levels


def register() -> None:
    """Make the attention function known to transformers; a second time changes nothing."""
    register_attention(NAME, rounded_attention)


def to_levels(levels: Levels, entries: Tensor) -> Tensor:
    """Round, with a gradient as if nothing had been rounded."""
    with torch.no_grad():
        rounded = levels(entries)
    if not (torch.is_grad_enabled() and entries.requires_grad):
        return rounded
    through: Tensor = Through.apply(entries, rounded)  # type: ignore[no-untyped-call]
    return through


def rounded_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend on rounded queries, keys and values, by rounded weights.

    Parameters
    ----------
    module : nn.Module
        The layer's attention; without levels it attends as ever.
    query, key, value : Tensor, shape ``(B, H, n, d)``
    attention_mask : Tensor or None
        Of bool (True where there is something) or to be added.

    Returns
    -------
    tuple of Tensor, shape ``(B, n, H, d)``, and None
    """
    levels: AttentionLevels | None = getattr(module, HELD, None)
    if levels is not None:
        query, key = to_levels(levels.query, query), to_levels(levels.key, key)
        value = to_levels(levels.value, value)
    weights = attention_weights(query, key, attention_mask, scaling)
    if levels is not None:
        weights = to_levels(levels.weights, weights)
    return (weights @ value).transpose(1, 2).contiguous(), None


def attention_weights(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """Return the softmax of the scores, shape ``(B, H, n, n)``."""
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1)


def set_levels(model: Any, levels: Mapping[str, AttentionLevels]) -> None:
    """Let attention round, in place.

    Parameters
    ----------
    levels : mapping of str to AttentionLevels
        By path of the module of attention.
    """
    register()
    model.set_attn_implementation(NAME)
    for path, own in levels.items():
        setattr(model.get_submodule(path), HELD, own)


def levels_of(model: nn.Module) -> dict[str, AttentionLevels]:
    """Return the levels of each module of attention that has some, by path."""
    return {path: own for path, module in model.named_modules() if (own := vars(module).get(HELD)) is not None}


def describe(model: nn.Module) -> dict[str, Any] | None:
    """Return the levels of a model's attention as JSON; None where none is rounded."""
    found = levels_of(model)
    return {path: {name: getattr(own, name).data() for name in _FIELDS} for path, own in sorted(found.items())} or None


def apply(model: nn.Module, data: Mapping[str, Any], find: Callable[[str], str | None]) -> None:
    """Give a model's attention the levels that were saved, in place; nothing in ``data`` is believed unchecked.

    Parameters
    ----------
    find : callable
        From the path of a saved module to that in this model; None where it has none.

    Raises
    ------
    BadArtifact
        If the data do not fit the model.
    """
    made: dict[str, AttentionLevels] = {}
    for path, fields in data.items():
        found = find(path) if isinstance(path, str) else None
        if found is None:
            raise misfit(f"{path!r} is no module")
        if not isinstance(fields, dict) or set(fields) != set(_FIELDS):
            raise misfit(f"attention of {path} has not the levels of {', '.join(_FIELDS)}")
        made[found] = AttentionLevels(**{name: _levels(fields[name], f"{name} of {path}") for name in _FIELDS})
    set_levels(model, made)


def _levels(data: Any, what: str) -> Levels:
    if (even := even_of(data)) is not None:
        return even
    if not isinstance(data, dict) or set(data) != {"values", "bounds"}:
        raise misfit(f"{what}: no levels")
    values, bounds = data["values"], data["bounds"]
    for numbers in (values, bounds):
        if not isinstance(numbers, list) or not all(isinstance(one, float) and math.isfinite(one) for one in numbers):
            raise misfit(f"{what}: levels are no numbers")
        if numbers != sorted(numbers):
            raise misfit(f"{what}: levels do not rise")
    if not 2 <= len(values) <= _MOST_LEVELS or len(bounds) != len(values) - 1:
        raise misfit(f"{what}: {len(values)} levels with {len(bounds)} bounds")
    return Table(tuple(values), tuple(bounds))
