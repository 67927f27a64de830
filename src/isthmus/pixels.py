"""Pixels: images as they are, made into what a network wants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from isthmus.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor

    from isthmus.network import ImageInput

Pixels = npt.NDArray[np.uint8]

LUMA = (0.299, 0.587, 0.114)
"""What red, green and blue weigh in grey (ITU-R BT.601, as in JPEG)."""
PADDING = 8
"""An image is shifted by up to a part of so many of its sides, as CIFAR's are by 4 of 32 pixels."""
_MOST = 255.0


def pixel_values(wanted: ImageInput, images: Sequence[Any] | Pixels) -> Tensor:
    """Return images as a network wants them: its channels, its size, its scale.

    Grey becomes colour by repetition, colour grey by its luma; a fourth channel (how opaque a pixel is) is left out.
    Resizing weighs all pixels that a new one covers, and rounds to whole values, as image libraries do.

    Parameters
    ----------
    wanted : ImageInput
    images : array (images, height, width) or (images, height, width, channels), or sequence of arrays without the first
        dimension, which may then differ in size; uint8, with 1, 2 (grey), 3 or 4 channels.

    Returns
    -------
    Tensor, shape ``(images, channels, height, width)``, float32

    Raises
    ------
    BadInput
        If there are no images, or one is no array of uint8 of such a shape.
    """
    import torch

    if len(images) == 0:
        raise BadInput("no images; give at least one")
    planes = [as_planes(np.asarray(image), wanted.channels) for image in images]
    shapes = list(dict.fromkeys(plane.shape for plane in planes))
    resized = torch.empty(len(planes), wanted.channels, wanted.height, wanted.width)
    for shape in shapes:
        places = [place for place, plane in enumerate(planes) if plane.shape == shape]
        resized[places] = _fitted(torch.from_numpy(np.stack([planes[place] for place in places])), wanted)
    mean, std = (torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1) for values in (wanted.mean, wanted.std))
    return (resized / _MOST - mean) / std


def scaled_pixels(wanted: ImageInput, image: Any) -> Pixels:
    """Return an image in the channels and at the scale that a network sees it, before the middle is cut out of it.

    `pixel_values` makes of it what it makes of the image itself, for a network of square images.

    Parameters
    ----------
    wanted : ImageInput
    image : Image, or array (height, width) or (height, width, channels) of uint8

    Returns
    -------
    array (height, width, channels) of uint8
    """
    import torch

    planes = torch.from_numpy(as_planes(np.asarray(image), wanted.channels))[None]
    # Scaled again to so short an edge it would not stay as it is: then only the middle does.
    cut = wanted.shortest_edge is not None and wanted.shortest_edge <= min(wanted.height, wanted.width)
    planes = _fitted(planes, wanted) if cut else _scaled(planes, wanted)
    return planes[0].permute(1, 2, 0).numpy().astype(np.uint8)


def small_pixels(image: Any, most: int) -> Pixels:
    """Return an image of at most so many pixels a side, as it is if it is no larger.

    Parameters
    ----------
    image : Image, or array (height, width) or (height, width, channels) of uint8

    Returns
    -------
    array (height, width, 1 or 3) of uint8
    """
    import torch

    pixels = np.asarray(image)
    planes = torch.from_numpy(as_planes(pixels, 1 if pixels.ndim == 2 or pixels.shape[2] < 3 else 3))[None]
    height, width = planes.shape[2:]
    if max(height, width) > most:
        scale = most / max(height, width)
        planes = _resized(planes, (max(round(height * scale), 1), max(round(width * scale), 1)), "bilinear")
    return planes[0].permute(1, 2, 0).numpy().astype(np.uint8)


def random_moves(wanted: ImageInput, count: int, seed: Sequence[int]) -> Tensor:
    """Return how each image is moved: down, to the right (pixels, negative ones up and left), mirrored; ``(count, 3)``.

    The numbers follow from the seed alone.
    """
    import torch

    rng = np.random.default_rng(list(seed))
    down, right = (side // PADDING for side in (wanted.height, wanted.width))
    columns = [rng.integers(-down, down + 1, count), rng.integers(-right, right + 1, count), rng.integers(0, 2, count)]
    return torch.from_numpy(np.stack(columns, axis=1))


def moved(pixels: Tensor, moves: Tensor, wanted: ImageInput) -> Tensor:
    """Return images ``(batch, channels, height, width)`` shifted and mirrored; what comes in at the edges is black."""
    import torch

    mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in (wanted.mean, wanted.std))
    result = (-mean / std).expand_as(pixels).clone()
    height, width = pixels.shape[2:]
    for image, out, (down, right, mirrored) in zip(pixels, result, moves.tolist(), strict=True):
        turned = image.flip(-1) if mirrored else image
        out[:, max(down, 0) : height + down, max(right, 0) : width + right] = turned[
            :, max(-down, 0) : height - down, max(-right, 0) : width - right
        ]
    return result


def as_planes(image: npt.NDArray[Any], channels: int) -> npt.NDArray[np.float32]:
    """Return an image (height, width) or (height, width, channels), uint8, as planes (``channels``, height, width).

    Raises
    ------
    BadInput
        If it is no array of uint8 of such a shape.
    """
    whole = image[..., None] if image.ndim == 2 else image
    if image.dtype != np.uint8 or whole.ndim != 3 or not 1 <= whole.shape[2] <= 4 or 0 in whole.shape:
        raise BadInput(
            f"image of shape {image.shape} and type {image.dtype}: give uint8 arrays of shape (height, width) or "
            "(height, width, channels) with 1, 3 or 4 channels"
        )
    colour = whole[..., : (whole.shape[2] - 1) // 2 * 2 + 1].astype(np.float32)  # without what says how opaque it is
    if colour.shape[2] == 3 and channels == 1:
        colour = np.rint(colour @ np.asarray(LUMA, dtype=np.float32))[..., None]
    elif colour.shape[2] == 1 and channels > 1:
        colour = np.repeat(colour, channels, axis=2)
    if colour.shape[2] != channels:
        raise BadInput(f"image of {colour.shape[2]} channels for a network of {channels}; give one of 1 or 3 channels")
    return np.ascontiguousarray(colour.transpose(2, 0, 1))


def _fitted(planes: Tensor, wanted: ImageInput) -> Tensor:
    """Resize planes (images, channels, height, width), and cut out the middle where the network wants that."""
    planes = _scaled(planes, wanted)
    top, left = (planes.shape[2] - wanted.height) // 2, (planes.shape[3] - wanted.width) // 2
    return planes[:, :, top : top + wanted.height, left : left + wanted.width]


def _scaled(planes: Tensor, wanted: ImageInput) -> Tensor:
    height, width = planes.shape[2:]
    target = (wanted.height, wanted.width)
    if wanted.shortest_edge is not None:
        scale = wanted.shortest_edge / min(height, width)
        # A side is cut to whole pixels, but never below what is cut out of it.
        target = max(int(height * scale), wanted.height), max(int(width * scale), wanted.width)
    return planes if (height, width) == target else _resized(planes, target, wanted.resample)


def _resized(planes: Tensor, size: tuple[int, int], resample: str) -> Tensor:
    from torch.nn import functional as F

    if resample == "nearest":
        return F.interpolate(planes, size=size, mode="nearest-exact")
    return F.interpolate(planes, size=size, mode=resample, antialias=True).round().clamp(0, _MOST)
