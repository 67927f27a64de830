"""Pictures: small images in a page, as PNG within it."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import numpy as np

from isthmus.pixels import small_pixels

SIDE = 48  # pixels a side at most


def picture(image: Any) -> str:
    """Return an image as a data URI of a PNG of at most 48 pixels a side.

    Parameters
    ----------
    image : Image, or array (height, width) or (height, width, channels) of uint8
    """
    return "data:image/png;base64," + base64.b64encode(png(small_pixels(image, SIDE))).decode("ascii")


def png(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """Return an array (height, width, 1 or 3) of uint8 as a PNG file; written here, so that a page takes no library."""
    height, width, channels = pixels.shape
    # Every row begins with its filter: 2, its difference from the row above.
    above = np.concatenate([np.zeros_like(pixels[:1]), pixels[:-1]])
    rows = np.full((height, 1 + width * channels), 2, dtype=np.uint8)
    rows[:, 1:] = (pixels - above).reshape(height, -1)
    head = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
