"""Memory that was freed goes back to the machine."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache

EVERY = 10
"""Steps of training after which freed memory is given back: some milliseconds, where a step takes a hundred."""


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim


def give_back() -> None:
    """Return freed pages to the machine, where the C library can.

    Batches of many lengths leave the heap of glibc in pieces that it keeps: recovering all-MiniLM-L6-v2 at half its
    parameters grew by 8 MB a second, from 1.1 to 2.3 GB.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)
