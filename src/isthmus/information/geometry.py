"""Geometry: how representations bend from token to token, and how many dimensions they fill."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from isthmus.information.checking import representations

LEFT_OUT = 0.1
"""Of the ratios of distances, the largest: they bend the line that the dimension is read off."""


def curvature(values: npt.ArrayLike) -> float | None:
    """Return the mean angle between one step and the next along a text, in radians.

    Hosseini and Fedorenko 2023 (arXiv 2311.04930), as used on layers by Skean et al. 2025: the mean over tokens of the
    angle between ``z[t + 1] - z[t]`` and ``z[t + 2] - z[t + 1]``. 0 along a straight line, about 2 pi / 3 where tokens
    are placed independently.

    Parameters
    ----------
    values : array_like, shape ``(tokens, width)``

    Returns
    -------
    float or None
        None where there are fewer than two steps of some length in a row.

    Raises
    ------
    BadInput
        If they are no finite matrix.
    """
    steps = np.diff(representations(values, least=1, what="tokens"), axis=0)
    lengths = np.linalg.norm(steps, axis=1)
    moving = (lengths[:-1] > 0) & (lengths[1:] > 0)
    if not moving.any():
        return None
    products = (steps[:-1] * steps[1:]).sum(1)[moving] / (lengths[:-1] * lengths[1:])[moving]
    return float(np.arccos(products.clip(-1, 1)).mean())


def intrinsic_dimension(values: npt.ArrayLike) -> float | None:
    """Return the dimension that samples fill near each of them, from the distances to their two nearest neighbours.

    TwoNN (Facco et al. 2017, equation 3): the ratio ``r`` of the second distance to the first has ``P(r > x) =
    x ** -d``. The dimension is the slope, through the origin, of ``-log(1 - F(r))`` over ``log r``, without the largest
    tenth of ratios. Samples that occur twice count once.

    Parameters
    ----------
    values : array_like, shape ``(samples, width)``

    Returns
    -------
    float or None
        None where fewer than ten samples differ, or all ratios are one.

    Raises
    ------
    BadInput
        If they are no finite matrix.
    """
    matrix = np.unique(representations(values), axis=0)
    if len(matrix) < 10:
        return None
    distances, _ = cKDTree(matrix).query(matrix, k=3)
    first, second = distances[:, 1], distances[:, 2]
    ratios = np.sort(np.log(second[first > 0] / first[first > 0]))
    count = len(ratios)
    kept = int(np.floor(count * (1 - LEFT_OUT)))
    below = np.arange(kept) / count
    steps = ratios[:kept]
    square = float(steps @ steps)
    if square == 0:
        return None
    return float(steps @ -np.log1p(-below) / square)
