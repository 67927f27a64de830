"""Rate-distortion-optimal rounding: steps as fine as a weight is sensitive, integers chosen for error and bits at once.

DeepCABAC (Wiedemann et al. 2020) minimises ``importance * error**2 + lambda * bits`` weight by weight. Here the step of
a weight is ``step / sqrt(rows[i] * columns[j])``, which is optimal where rates are high: every weight then loses the
same ``step**2 / 24`` nats, and one number sets the rate of a whole network.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from isthmus.relevance.sensitivity import Sensitivity
from isthmus.storage.coded import Uniform, exponents_of, scale_of

Floats = npt.NDArray[np.float32]

PASSES = 2
SLOPE = 2 * np.log(2) / 12
"""Where rates are high, a bit saves this many squared steps of error: the price of a bit in such units."""
_FLOOR = 1e-4
"""Factors count as no less than this share of their mean: a row that never mattered here may matter elsewhere."""


def quantize(
    weight: Floats, sensitivity: Sensitivity, step: float, *, slope: float = SLOPE, tempering: float = 1.0
) -> Uniform:
    """Return a matrix as integers times scales.

    Parameters
    ----------
    weight : ndarray of float32, shape ``(rows, columns)``
    sensitivity : Sensitivity
    step : float
        The square root of nats; twice the step is about one bit a weight less.
    slope : float
        What a bit is worth, in squared steps; 0 rounds to nearest.
    tempering : float
        Power of the sensitivity that steps follow; 1 trusts it, 0 gives every weight the same step.
    """
    down = exponents_of(step / np.sqrt(tempered(sensitivity.rows, tempering)))[:, None]
    across = exponents_of(1 / np.sqrt(tempered(sensitivity.columns, tempering)))[None, :]
    exact = weight / scale_of(down) / scale_of(across)
    integers = np.rint(exact).astype(np.int32)
    for _ in range(PASSES if slope > 0 else 0):
        integers = cheaper(exact, integers, slope)
    return Uniform(integers, (down, across))


def tempered(factor: npt.NDArray[np.float64], power: float) -> npt.NDArray[np.float64]:
    """Return a factor of sensitivity, kept from vanishing and raised to a power, its mean unchanged."""
    mean = float(factor.mean()) or 1.0
    return np.asarray(mean * np.maximum(factor / mean, _FLOOR) ** power)


def cheaper(exact: Floats, integers: npt.NDArray[np.int32], slope: float) -> npt.NDArray[np.int32]:
    """Return for each weight the nearest integer or the next one towards zero, whichever costs less with its bits."""
    low = int(integers.min())
    counts = np.bincount((integers - low).ravel(), minlength=2) + 0.5
    bits = (np.log2(counts.sum()) - np.log2(counts)).astype(np.float32)
    nearest = np.rint(exact).astype(np.int32)
    closer = nearest - np.sign(nearest)
    price = slope * bits
    top = len(bits) - 1
    first = (exact - nearest) ** 2 + price[np.clip(nearest - low, 0, top)]
    second = (exact - closer) ** 2 + price[np.clip(closer - low, 0, top)]
    return np.where(second < first, closer, nearest).astype(np.int32)
