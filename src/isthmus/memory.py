"""Memory that was freed goes back to the machine."""

from __future__ import annotations

import ctypes
import os
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


def keep_few_kernels() -> None:
    """Let PyTorch keep few of the kernels that it compiles, one for each shape; read when it first multiplies.

    By default it keeps a thousand of them, for shapes that seldom come back: 100 MB in a hundred steps, at no gain.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, "32")


def give_back() -> None:
    """Return freed pages to the machine, where the C library can.

    Batches of many lengths leave the heap of glibc in pieces that it keeps: recovering all-MiniLM-L6-v2 at half its
    parameters grew by 8 MB a second, from 1.1 to 2.3 GB.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)
