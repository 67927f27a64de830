"""A planned cache as data in ``config.json``: what a network's is, and giving it to one that is being loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from isthmus.bottlenecks.cache.cache import NarrowCache, layers_of
from isthmus.bottlenecks.cache.registry import from_data, to_data
from isthmus.bottlenecks.cache.setting import CacheSetting
from isthmus.errors import BadInput, misfit

_HELD = "_isthmus_cache_settings"
_VERSION = 1


def keep_settings(model: Any, settings: Sequence[CacheSetting]) -> None:
    """Let a model know how its cache is narrowed, a setting a layer; they are saved with it.

    Raises
    ------
    BadInput
        If there are not as many settings as layers, or one cannot be written.
    """
    if len(settings) != len(layers_of(model)):
        raise BadInput(
            f"cache: {len(settings)} settings for a network of {len(layers_of(model))} layers; give one a layer"
        )
    settings_data(settings)
    object.__setattr__(model, _HELD, tuple(settings))


def kept_settings(model: Any) -> tuple[CacheSetting, ...] | None:
    """Return how the cache of a model is narrowed; None where nothing is planned."""
    found: tuple[CacheSetting, ...] | None = getattr(model, _HELD, None)
    return found


def new_cache(model: Any) -> NarrowCache:
    """Return an empty cache for a model, narrowed as it was planned, for ``model.generate(past_key_values=...)``.

    Raises
    ------
    BadInput
        If nothing is planned for its cache.
    """
    settings = kept_settings(model)
    if settings is None:
        raise BadInput("cache: nothing is planned for this network's; narrow it with --to cache=25%")
    return NarrowCache(model, settings)


def settings_data(settings: Sequence[CacheSetting]) -> dict[str, Any]:
    """Return settings, one a layer, as JSON."""
    return {"version": _VERSION, "settings": [to_data(one) for one in settings]}


def read_settings(data: Mapping[str, Any]) -> list[CacheSetting]:
    """Return the settings that `settings_data` wrote.

    Raises
    ------
    BadInput
        If it is of another version, or not such a plan.
    """
    if not isinstance(data, Mapping) or data.get("version") != _VERSION or not isinstance(data.get("settings"), list):
        raise BadInput(f"cache plan: not one of version {_VERSION}; plan the cache again")
    return [from_data(one) for one in data["settings"]]


def describe(model: Any) -> dict[str, Any] | None:
    """Return how the cache of a model is narrowed, as JSON; None where nothing is planned."""
    settings = kept_settings(model)
    return None if settings is None else settings_data(settings)


def apply(model: Any, data: Mapping[str, Any], find: Callable[[str], str | None]) -> None:
    """Give a model the plan of its cache, in place; nothing in ``data`` is believed before it is checked.

    Raises
    ------
    BadArtifact
        If the data do not fit the model.
    """
    try:
        keep_settings(model, read_settings(data))
    except BadInput as error:
        raise misfit(str(error)) from None
