"""Corruptions of images: noise, blur, light and JPEG at five severities, as in ImageNet-C and CIFAR-10-C."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from isthmus.errors import BadInput, unknown
from isthmus.examples import Image, Pixels, decode, image_of_array

SEVERITIES = 5
SMALL = 64
"""Pixels: an image whose shorter side is below takes the strengths of CIFAR-10-C, any other those of ImageNet-C."""
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ImageCorruption:
    """What is done to an image.

    Parameters
    ----------
    change : callable
        Takes an image (height, width, channels) of 0 to 1, a strength and a generator; returns one like it.
    large, small : tuple of float
        The strength by severity, of images as of ImageNet and as of CIFAR.
    drawn : bool
        Whether chance is involved.
    """

    change: Callable[[Floats, float, np.random.Generator], Floats]
    large: tuple[float, ...]
    small: tuple[float, ...]
    drawn: bool = False


def corrupt_image(image: Image, kind: str, severity: int, seed: int) -> Image:
    """Return a corrupted image (Hendrycks and Dietterich 2019, *Benchmarking Neural Network Robustness*).

    Parameters
    ----------
    image : Image
    kind : {"noise", "impulses", "blur", "brightness", "contrast", "jpeg"}
        ``noise``: a normal deviate is added to every value. ``impulses``: values become black or white by chance.
        ``blur``: by a Gaussian. ``brightness``: the largest channel grows by the strength, the hue stays.
        ``contrast``: each channel's distance from its mean shrinks to the strength's share. ``jpeg``: the image is
        written and read at that quality.
    severity : int
        1 to 5; the strengths are those of the paper's code.
    seed : int
        The same image under the same seed is corrupted in the same way.

    Raises
    ------
    BadInput
        If the kind is unknown, the severity not from 1 to 5, or Pillow is not installed (``jpeg``).
    """
    if kind not in IMAGE_CORRUPTIONS:
        raise unknown("corruption", kind, IMAGE_CORRUPTIONS)
    if severity not in range(1, SEVERITIES + 1):
        raise BadInput(f"corruption {kind}: severity {severity}; give a whole number from 1 to {SEVERITIES}")
    corruption, pixels = IMAGE_CORRUPTIONS[kind], np.asarray(image)
    whole = (pixels[..., None] if pixels.ndim == 2 else pixels) / 255.0
    strengths = corruption.small if min(whole.shape[:2]) < SMALL else corruption.large
    rng = np.random.default_rng([zlib.crc32(kind.encode() + image.digest), seed])
    changed = np.clip(corruption.change(whole, strengths[severity - 1], rng), 0, 1)
    return image_of_array(np.rint(changed * 255).astype(np.uint8).reshape(pixels.shape), image.name)


def _noise(image: Floats, deviation: float, rng: np.random.Generator) -> Floats:
    return image + rng.normal(0, deviation, image.shape)


def _impulses(image: Floats, share: float, rng: np.random.Generator) -> Floats:
    hit, white = rng.random(image.shape) < share, rng.random(image.shape) < 0.5
    return np.asarray(np.where(hit, white, image), dtype=np.float64)


def _blur(image: Floats, deviation: float, rng: np.random.Generator) -> Floats:
    from scipy.ndimage import gaussian_filter

    blurred: Floats = gaussian_filter(image, (deviation, deviation, 0), mode="nearest")
    return blurred


def _brightness(image: Floats, added: float, rng: np.random.Generator) -> Floats:
    value = image.max(axis=2, keepdims=True)
    brighter = np.minimum(value + added, 1)
    # Black has no hue to keep.
    scaled = image * brighter / np.where(value > 0, value, 1)
    return np.asarray(np.where(value > 0, scaled, brighter), dtype=np.float64)


def _contrast(image: Floats, share: float, rng: np.random.Generator) -> Floats:
    mean = image.mean(axis=(0, 1), keepdims=True)
    return np.asarray((image - mean) * share + mean)


def _jpeg(image: Floats, quality: float, rng: np.random.Generator) -> Floats:
    try:
        from PIL import Image as Encoder
    except ImportError:
        raise BadInput("corruption jpeg: takes Pillow; run pip install 'isthmus[images]'") from None

    pixels: Pixels = np.rint(image * 255).astype(np.uint8)
    written = io.BytesIO()
    Encoder.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(written, "JPEG", quality=int(quality))
    return decode(written.getvalue(), "jpeg").reshape(image.shape) / 255.0


IMAGE_CORRUPTIONS: Mapping[str, ImageCorruption] = {
    "noise": ImageCorruption(_noise, (0.08, 0.12, 0.18, 0.26, 0.38), (0.04, 0.06, 0.08, 0.09, 0.10), drawn=True),
    "impulses": ImageCorruption(_impulses, (0.03, 0.06, 0.09, 0.17, 0.27), (0.01, 0.02, 0.03, 0.05, 0.07), drawn=True),
    "blur": ImageCorruption(_blur, (1, 2, 3, 4, 6), (0.4, 0.6, 0.7, 0.8, 1)),
    "brightness": ImageCorruption(_brightness, (0.1, 0.2, 0.3, 0.4, 0.5), (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": ImageCorruption(_contrast, (0.4, 0.3, 0.2, 0.1, 0.05), (0.75, 0.5, 0.4, 0.3, 0.15)),
    "jpeg": ImageCorruption(_jpeg, (25, 18, 15, 10, 7), (80, 65, 58, 50, 40)),
}
