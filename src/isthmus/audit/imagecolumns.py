"""What can be said of an image in plain words: light, contrast, colour, detail, and what it looks like, as columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from isthmus.audit.checks import LEAST, Array
from isthmus.audit.slices import Column
from isthmus.examples import Image
from isthmus.pixels import LUMA, small_pixels

SIDE = 64  # pixels a side at most: detail means the same of large images and of small ones
CLUSTERS = 20
_HUES = ("red", "yellow", "green", "cyan", "blue", "magenta")
_GREY = 0.1  # of colourfulness: below it a hue means nothing
_ROWS, _SIDES = ("top", "middle", "bottom"), ("left", "centre", "right")


def image_columns(images: Sequence[Image]) -> tuple[Column, ...]:
    """Return columns that describe images.

    Numbers are of luma from 0 to 1: its mean (brightness), its standard deviation (contrast) and the mean difference
    of neighbouring pixels (detail); colourfulness is the mean distance of the largest from the smallest channel,
    and symmetry the correlation of an image with its mirror image.
    """
    pixels = [small_pixels(image, SIDE) / 255.0 for image in images]
    luma = [one[..., 0] if one.shape[2] == 1 else one @ np.array(LUMA) for one in pixels]
    colour = [float((one.max(axis=2) - one.min(axis=2)).mean()) for one in pixels]
    columns = [
        Column("brightness", tuple(float(one.mean()) for one in luma)),
        Column("contrast", tuple(float(one.std()) for one in luma)),
        Column("detail", tuple(_detail(one) for one in luma)),
        Column("symmetry", tuple(_symmetry(one) for one in luma)),
        Column("middle brighter than edge", tuple(_middle_brighter(one) for one in luma)),
    ]
    # Of what is the same for all nothing need be said.
    if any(colour):
        hues = tuple(_hue(one) if strength >= _GREY else "none" for one, strength in zip(pixels, colour, strict=True))
        columns += [Column("colourfulness", tuple(colour)), Column("hue", hues)]
    if len({image.shape for image in images}) > 1:
        columns += [
            Column("pixels", tuple(image.shape[0] * image.shape[1] for image in images)),
            Column("width over height", tuple(image.shape[1] / image.shape[0] for image in images)),
            Column("is grey", tuple(image.shape[2] < 3 for image in images)),
        ]
    return tuple(columns)


def place_columns(images: Sequence[Image]) -> tuple[Column, ...]:
    """Return columns of where in an image the brightest and the darkest ninth is, to be searched."""
    cells = [_ninths(small_pixels(image, SIDE).mean(axis=2)) for image in images]
    return (
        Column("brightest", tuple(_place(int(one.argmax())) for one in cells)),
        Column("darkest", tuple(_place(int(one.argmin())) for one in cells)),
    )


def likeness_columns(features: Array, names: Sequence[str], *, seed: int = 0) -> tuple[Column, ...]:
    """Return a column of which example each is like, to be searched: k-means of features, scaled to unit length.

    A cluster is called by the example nearest to its centre.

    Parameters
    ----------
    features : array (examples, width)
        Of the original: what is alike is alike to it.
    names : sequence of str
        One an example.
    seed : int
    """
    from scipy.cluster.vq import kmeans2

    count = min(CLUSTERS, len(features) // (2 * LEAST))
    if count < 2:
        return ()
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    centres, own = kmeans2(unit, count, minit="++", seed=np.random.default_rng([seed, 8]), missing="warn")
    nearest = ((centres**2).sum(axis=1) - 2 * unit @ centres.T).argmin(axis=0)
    return (Column("like", tuple(names[nearest[cluster]] for cluster in own.tolist())),)


def _detail(luma: Array) -> float:
    steps = [np.abs(np.diff(luma, axis=axis)).ravel() for axis in (0, 1)]
    joined = np.concatenate(steps)
    return float(joined.mean()) if len(joined) else 0.0


def _symmetry(luma: Array) -> float:
    centred = luma - luma.mean()
    total = float((centred**2).sum())
    return float((centred * centred[:, ::-1]).sum()) / total if total > 1e-9 else 1.0


def _middle_brighter(luma: Array) -> bool:
    height, width = luma.shape
    middle = luma[height // 4 : height - height // 4, width // 4 : width - width // 4]
    return bool(middle.mean() > luma.mean())


def _hue(pixels: Array) -> str:
    """Return the hue of the mean colour, by the sixth of the circle that it is in."""
    red, green, blue = pixels.reshape(-1, 3).mean(axis=0)
    angle = np.degrees(np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue))
    return _HUES[round(angle / 60) % 6]


def _ninths(luma: Array) -> Array:
    bands = [np.array_split(band, 3, axis=1) for band in np.array_split(luma, 3, axis=0)]
    return np.array([cell.mean() if cell.size else luma.mean() for band in bands for cell in band])


def _place(cell: int) -> str:
    return f"{_ROWS[cell // 3]} {_SIDES[cell % 3]}"
