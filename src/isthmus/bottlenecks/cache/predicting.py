"""Predicting: the bytes that a layer's cache will take, from shapes alone."""

from __future__ import annotations

from isthmus.bottlenecks.cache.setting import CacheSetting
from isthmus.errors import BadInput

_COUNT = 4  # a count is an int32
_STAT = 4  # what a selector keeps is float32


def full_bytes(rows: int, heads: int, key_dim: int, value_dim: int, item: int, length: int) -> int:
    """Return the bytes of a layer's full cache of so many tokens."""
    return rows * heads * length * (key_dim + value_dim) * item


def predicted_bytes(
    setting: CacheSetting,
    *,
    rows: int,
    heads: int,
    key_dim: int,
    value_dim: int,
    item: int,
    length: int,
    tiers: tuple[int, ...] | None = None,
) -> int:
    """Return the bytes of all tensors that a layer holds after a prompt of so many tokens, without padding.

    Parameters
    ----------
    item : int
        Bytes of a number as the network computes.
    length : int
        Tokens.
    tiers : tuple of int or None
        Entries of all rows and heads in each code, where the data decide that: of ``zipvl`` how many are important, of
        ``ems-kv`` nothing, for its heads share a sum. Groups of tokens are counted as whole as they can be then.

    Raises
    ------
    BadInput
        If the setting has several codes and it is not said what they hold.
    """
    segments = rows * heads
    sinks = min(setting.sinks, length)
    spare = max(0, length - sinks - setting.recent)
    moved = spare // setting.block * setting.block
    young = length - sinks - moved
    kept = moved if setting.allowed is None else min(moved, setting.allowed)
    if tiers is None:
        if len(setting.codes) > 1:
            raise BadInput(f"cache: how {setting.selector.name} divides entries is up to the data; give tiers")
        tiers = (segments * kept,)
    plain = (key_dim + value_dim) * item
    stats = _STAT * setting.selector.channels
    total = segments * sinks * plain + segments * _COUNT  # the sinks and their counts
    for code, count in zip(setting.codes, tiers, strict=True):
        entry, group = code.sizes(key_dim, value_dim, item)
        total += count * (entry + stats) + segments * _COUNT
        if code.group:
            groups = segments * -(-(count // segments) // code.group)
            total += groups * (group + _COUNT) + segments * _COUNT
    if setting.reader is not None:
        total += sum(tiers) * setting.reader.entry_bytes
        total += segments * key_dim * 4 if setting.reader.centred and moved else 0  # mean keys
    total += segments * young * (plain + stats) + rows * young  # and a byte of state for each slot
    return total + 2 * 8 * rows  # tokens seen, and of the prompt
