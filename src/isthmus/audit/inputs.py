"""Inputs: what lossy compression of images costs a network, and which distance between images tells it.

After "Machine Perceptual Quality" (Jacobellis et al. 2024): accuracy against the bytes of what is sent, and the rank
correlation of what is lost with a distance of deep features, beside that with the squared error of pixels (PSNR).
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from isthmus.audit.checks import Array
from isthmus.audit.resampling import Estimate, example_draws, mean_share, percentile
from isthmus.errors import BadInput, unknown
from isthmus.examples import Pixels
from isthmus.tasks.metrics import Ordering, weighted_spearman

CODECS: Mapping[str, Mapping[str, Any]] = {
    "jpeg": {"format": "JPEG", "optimize": True},
    "webp": {"format": "WEBP", "method": 4},
}
"""How each is written."""
RESAMPLES = 400


@dataclass(frozen=True)
class Sent:
    """Images at one setting of a codec, and what a network makes of them; arrays have one entry an image.

    Parameters
    ----------
    right : array of 0 or 1
        Whether the class is right.
    losses : array
        Cross-entropy of the true class, nats.
    bytes : array
        Of the whole file.
    squared : array
        Mean squared error of pixels, 0 ... 255².
    deep : array
        Distance of deep features.
    """

    right: Array
    losses: Array
    bytes: Array
    squared: Array
    deep: Array


@dataclass(frozen=True)
class SentRow:
    """One setting: mean bytes of an image, accuracy and its drop, increase of the loss in nats, both distances."""

    codec: str
    quality: int
    bytes: float
    accuracy: Estimate
    drop: Estimate
    nats: Estimate
    psnr: float
    deep: float


@dataclass(frozen=True)
class Told:
    """How well a distance tells what is lost: rank correlations, 1 for the same order.

    Parameters
    ----------
    distance : {"deep features", "squared error", "the first less the second"}
    settings : Estimate
        Over settings: of the mean distance and the drop of accuracy.
    images : Estimate
        Over images, the mean over settings: of an image's distance and the increase of its loss.
    """

    distance: str
    settings: Estimate
    images: Estimate


@dataclass(frozen=True)
class InputCurve:
    """A network on compressed images.

    Parameters
    ----------
    name : str
    accuracy : Estimate
        On the images as they are.
    raw_bytes : float
        Mean of an image's pixels.
    rows : tuple of SentRow
    told : tuple of Told
    """

    name: str
    accuracy: Estimate
    raw_bytes: float
    rows: tuple[SentRow, ...]
    told: tuple[Told, ...]

    def least_bytes(self, codec: str, keep: float) -> SentRow | None:
        """Return the smallest setting of a codec from which on upwards a share of the accuracy is kept."""
        own = sorted((row for row in self.rows if row.codec == codec), key=lambda row: -row.bytes)
        found = None
        for row in own:
            if row.accuracy.value < keep * self.accuracy.value:
                break
            found = row
        return found


def compress_image(pixels: Pixels, codec: str, quality: int) -> tuple[Pixels, int]:
    """Return what is left of an image that a codec has written and read, and the bytes of the file.

    Parameters
    ----------
    pixels : array (height, width) or (height, width, 3) of uint8
    codec : {"jpeg", "webp"}
    quality : int
        1 to 100, as Pillow takes it.

    Raises
    ------
    BadInput
        If the codec is unknown, the quality out of range, or Pillow is not installed.
    """
    if codec not in CODECS:
        raise unknown("codec", codec, CODECS)
    if not 1 <= quality <= 100:
        raise BadInput(f"quality {quality}: give 1 to 100")
    try:
        from PIL import Image
    except ImportError:
        raise BadInput("images: compressing them takes Pillow; run pip install 'isthmus[images]'") from None
    file = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.save(file, quality=quality, **CODECS[codec])
    with Image.open(file) as read:
        return np.array(read.convert(image.mode), dtype=np.uint8), len(file.getvalue())


def measure_inputs(
    right: npt.ArrayLike,
    losses: npt.ArrayLike,
    sent: Mapping[tuple[str, int], Sent],
    *,
    raw_bytes: float,
    name: str = "",
    seed: int = 0,
) -> InputCurve:
    """Measure what each setting costs, and how well each distance tells it.

    Parameters
    ----------
    right, losses : array (images,)
        On the images as they are.
    sent : mapping of (codec, quality) to Sent
    raw_bytes : float

    Raises
    ------
    BadInput
        If there are fewer than three settings or ten images.
    """
    clean, before = np.asarray(right, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    if len(sent) < 3 or len(clean) < 10:
        raise BadInput(f"inputs: {len(sent)} settings and {len(clean)} images; correlations take 3 and 10, give more")
    draws = np.concatenate(list(example_draws(len(clean), seed, RESAMPLES))) / len(clean)
    rows = []
    for (codec, quality), one in sent.items():
        drop, rise = clean - one.right, one.losses - before
        rows.append(
            SentRow(
                codec, quality, float(one.bytes.mean()), mean_share(one.right, seed),
                percentile(float(drop.mean()), draws @ drop, len(clean)),
                percentile(float(rise.mean()), draws @ rise, len(clean)),
                psnr(float(one.squared.mean())), float(one.deep.mean()),
            )
        )  # fmt: skip
    told = _told(clean, before, list(sent.values()), draws)
    return InputCurve(name, mean_share(clean, seed), raw_bytes, tuple(rows), told)


def psnr(squared: float) -> float:
    """Return the peak signal-to-noise ratio in dB of a mean squared error of 8-bit pixels; infinite for none."""
    return float(10 * np.log10(255**2 / squared)) if squared > 0 else float("inf")


def _told(clean: Array, before: Array, sent: list[Sent], draws: Array) -> tuple[Told, ...]:
    count = len(clean)
    every = np.concatenate([np.full((1, count), 1 / count), draws])
    drops = np.stack([clean - one.right for one in sent])
    rises = [Ordering.of(one.losses - before) for one in sent]
    found = {}
    sides = {"deep features": [one.deep for one in sent], "squared error": [one.squared for one in sent]}
    for name, values in sides.items():
        settings = rank_correlation(every @ np.stack(values).T, every @ drops.T)
        weights = np.rint(every * count)
        each = [weighted_spearman(Ordering.of(value), rise, weights) for value, rise in zip(values, rises, strict=True)]
        found[name] = (settings, _mean_of_defined(np.stack(each)))
    first, second = found.values()
    found["the first less the second"] = (first[0] - second[0], first[1] - second[1])
    return tuple(
        Told(name, *(percentile(float(one[0]), one[1:], count) for one in both)) for name, both in found.items()
    )


def _mean_of_defined(values: Array) -> Array:
    """Return the mean over rows of what is a number in each column; not a number where nothing is."""
    defined = np.isfinite(values)
    sums = np.where(defined, values, 0.0).sum(axis=0)
    return np.asarray(np.divide(sums, defined.sum(axis=0), out=np.full(len(sums), np.nan), where=defined.any(axis=0)))


def rank_correlation(x: Array, y: Array) -> Array:
    """Return Spearman's correlation of each row of two arrays (rows, values); not a number where one is constant."""
    from scipy import stats

    ours, theirs = (stats.rankdata(side, axis=1) - (side.shape[1] + 1) / 2 for side in (x, y))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((ours * theirs).sum(1) / np.sqrt((ours**2).sum(1) * (theirs**2).sum(1)))
