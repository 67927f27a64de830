"""The methods of the cache by name. Adding one: a file in the folder of its role, and a line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from isthmus.bottlenecks.cache.codes.coupled import Coupled
from isthmus.bottlenecks.cache.codes.plain import Plain
from isthmus.bottlenecks.cache.codes.uniform import Uniform
from isthmus.bottlenecks.cache.reading.magicpig import MagicPig
from isthmus.bottlenecks.cache.reading.reader import Reader
from isthmus.bottlenecks.cache.reading.recycled import Recycled
from isthmus.bottlenecks.cache.roles import Code, Selector
from isthmus.bottlenecks.cache.selection.ems import EvictThenMerge
from isthmus.bottlenecks.cache.selection.h2o import AccumulatedAttention
from isthmus.bottlenecks.cache.selection.key_norm import KeyNorm
from isthmus.bottlenecks.cache.selection.keyformer import Keyformer
from isthmus.bottlenecks.cache.selection.none import Everything
from isthmus.bottlenecks.cache.selection.scissorhands import Scissorhands
from isthmus.bottlenecks.cache.selection.snapkv import SnapKv
from isthmus.bottlenecks.cache.selection.window import Window
from isthmus.bottlenecks.cache.selection.zipvl import ZipVl
from isthmus.bottlenecks.cache.setting import CacheSetting
from isthmus.bottlenecks.named import made, named
from isthmus.errors import BadInput

SELECTORS: dict[str, Callable[..., Selector]] = {
    one.name: one
    for one in (
        Everything,
        Window,
        KeyNorm,
        AccumulatedAttention,
        SnapKv,
        Keyformer,
        Scissorhands,
        ZipVl,
        EvictThenMerge,
    )
}
CODES: dict[str, Callable[..., Code]] = {one.name: one for one in (Plain, Uniform, Coupled)}
READERS: dict[str, Callable[..., Reader]] = {one.name: one for one in (Recycled, MagicPig)}


def selector(name: str, **options: Any) -> Selector:
    """Return a selector by name, with its options; `BadInput` if there is none of that name."""
    found: Selector = made("selector of a cache", name, SELECTORS, options)
    return found


def code(name: str, **options: Any) -> Code:
    """Return a code by name, with its options; `BadInput` if there is none of that name."""
    found: Code = made("code of a cache", name, CODES, options)
    return found


def reader(name: str, **options: Any) -> Reader:
    """Return a reader by name, with its options; `BadInput` if there is none of that name."""
    found: Reader = made("reader of a cache", name, READERS, options)
    return found


def to_data(setting: CacheSetting) -> dict[str, Any]:
    """Return a setting as JSON.

    Raises
    ------
    BadInput
        If a code has tables: these are tensors, to be learnt again or kept beside.
    """
    if any(isinstance(one, Coupled) for one in setting.codes):
        raise BadInput("cache: a setting with learnt tables cannot be written as JSON; learn them again after loading")
    return {
        "selector": {"name": setting.selector.name, **asdict(setting.selector)},  # type: ignore[call-overload]
        "codes": [{"name": one.name, **asdict(one)} for one in setting.codes],  # type: ignore[call-overload]
        "reader": None if setting.reader is None else {"name": setting.reader.name, **asdict(setting.reader)},  # type: ignore[call-overload]
        "entries": setting.entries,
        "sinks": setting.sinks,
        "recent": setting.recent,
        "block": setting.block,
    }


def from_data(data: dict[str, Any]) -> CacheSetting:
    """Return the setting that `to_data` wrote.

    Raises
    ------
    BadInput
        If something in it is not known.
    """
    known = {"selector", "codes", "reader", "entries", "sinks", "recent", "block"}
    if not isinstance(data, dict) or set(data) != known:
        raise BadInput(f"cache setting: its keys are to be {', '.join(sorted(known))}; write it with to_data")
    return CacheSetting(
        selector=selector(**named(data["selector"], "cache setting")),
        codes=tuple(code(**named(one, "cache setting")) for one in data["codes"]),
        reader=None if data["reader"] is None else reader(**named(data["reader"], "cache setting")),
        entries=data["entries"],
        sinks=data["sinks"],
        recent=data["recent"],
        block=data["block"],
    )
