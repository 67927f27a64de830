"""Examples: what a network reads, a text or an image."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from isthmus.errors import BadInput

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Image:
    """An image, compared by its content.

    Parameters
    ----------
    name : str
        Where it is from, for messages and reports.
    source : array (height, width) or (height, width, channels) of uint8, bytes or Path
        Pixels, or an image file's contents or path, which is decoded whenever pixels are asked for: many images take
        far less memory so.
    shape : tuple of int
        ``(height, width, channels)``.
    digest : bytes
        SHA-256 of the shape and pixels, or of the file.
    """

    name: str
    source: Pixels | bytes | Path
    shape: tuple[int, int, int]
    digest: bytes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Image) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        pixels = self.source if isinstance(self.source, np.ndarray) else decode(self.source, self.name)
        return np.array(pixels, dtype=dtype, copy=copy)


Example = str | Image
"""A text or an image."""


def image_of_array(pixels: Pixels, name: str) -> Image:
    """Return an array (height, width) or (height, width, channels) of uint8 as an image."""
    height, width, channels = (*pixels.shape, 1)[:3]
    digest = hashlib.sha256(f"{height},{width},{channels};".encode())
    digest.update(pixels.tobytes())
    return Image(name, pixels, (height, width, channels), digest.digest())


def image_of_file(source: bytes | Path, name: str) -> Image:
    """Return an image file, by its contents or its path, as an image; it is decoded once to see that it is whole.

    Raises
    ------
    BadInput
        If it cannot be read or decoded.
    """
    data = source if isinstance(source, bytes) else _contents(source)
    pixels = decode(data, name)
    height, width, channels = (*pixels.shape, 1)[:3]
    return Image(name, source, (height, width, channels), hashlib.sha256(data).digest())


def decode(source: bytes | Path, name: str) -> Pixels:
    """Return the pixels of an image file, (height, width) of grey or (height, width, 3) of colour, upright.

    Raises
    ------
    BadInput
        If it cannot be read or decoded, or Pillow is not installed.
    """
    try:
        from PIL import Image as Decoder
        from PIL import ImageOps
    except ImportError:
        raise BadInput(f"{name}: reading image files takes Pillow; run pip install 'isthmus[images]'") from None

    data = source if isinstance(source, bytes) else _contents(source)
    try:
        with Decoder.open(io.BytesIO(data)) as opened:
            upright = ImageOps.exif_transpose(opened)
            if upright.mode.startswith("I;16"):
                return np.asarray(np.asarray(upright) >> 8, dtype=np.uint8)
            return np.array(upright.convert("L" if upright.mode in ("1", "L", "LA") else "RGB"), dtype=np.uint8)
    except Exception as error:  # the decoders raise a dozen kinds, each of which means: not a whole image
        reason = str(error).replace(repr(error), "").strip().splitlines() or [type(error).__name__]
        what = "not an image" if type(error).__name__ == "UnidentifiedImageError" else reason[0][:100]
        raise BadInput(f"{name}: cannot be decoded ({what}); restore the file, or take it away") from None


def size_of(example: Example) -> int:
    """Return by what examples are put in batches of like size: a text's characters; to a network images are alike."""
    return len(example) if isinstance(example, str) else 0


def shown(example: Example) -> str:
    """Return an example as a page or a message shows it: a text as it is, an image by its name."""
    return example if isinstance(example, str) else example.name


def texts_of(examples: Sequence[Example], what: str) -> tuple[str, ...]:
    """Return examples that must be texts.

    Parameters
    ----------
    what : str
        Who asks, for the message.

    Raises
    ------
    BadInput
        If one is an image.
    """
    texts = tuple(example for example in examples if isinstance(example, str))
    if len(texts) < len(examples):
        raise BadInput(f"{what}: reads texts, not images; give a task of kind text, sts or classify")
    return texts


def _contents(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror or error}); check the file") from None
