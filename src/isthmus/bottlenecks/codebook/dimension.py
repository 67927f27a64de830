"""What a codebook loses, from the spectrum of its vectors: how many of their dimensions are worth a table's bytes.

The rule is this library's own: LR2VQ (Zhu et al. 2022) calls the clustering dimensionality a trade of low-rank error
for clustering error. Both are put in one unit here, at equal bytes, by textbook results on Gaussian sources.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from isthmus.bottlenecks.codebook.vectors import MOST_BITS

Doubles = npt.NDArray[np.float64]


def predicted_error(spectrum: Doubles, dimensions: int, entries: int) -> float:
    r"""Return the predicted mean squared error of a vector.

    The sum of what lies outside the leading dimensions, :math:`\sum_{i > d} \lambda_i`, and of what ``entries`` leave
    inside: the Gaussian rate-distortion function by reverse water-filling (Cover and Thomas 2006, theorem 10.3.3),
    times how far the best table of so few dimensions stays above it where rates are high (Zador 1982, with the moment
    of inertia of a ball).

    Parameters
    ----------
    spectrum : ndarray of float64, shape ``(size,)``
        Eigenvalues of the vectors' second moments, falling.
    dimensions : int
        The ``d``.
    entries : int
    """
    inside, outside = np.maximum(spectrum[:dimensions], 0), float(np.maximum(spectrum[dimensions:], 0).sum())
    inside = inside[inside > 0]
    level = 0.0
    for held in range(len(inside), 0, -1):
        level = float(np.exp(np.log(inside[:held]).mean())) * entries ** (-2 / held)
        if level <= inside[held - 1]:
            return outside + float(np.minimum(inside, _above(held) * level).sum())
    return outside + float(inside.sum())


def _above(dimensions: int) -> float:
    """Return how far the best table stays above the rate-distortion function of a Gaussian, at high rates."""
    half = dimensions / 2
    ball = math.gamma(half + 1) ** (1 / half) / ((dimensions + 2) * math.pi)
    return float(2 * math.pi * ball * (1 + 1 / half) ** (half + 1))


def table_bytes(shape: tuple[int, int], size: int, dimensions: int, entries: int) -> float:
    """Return what a table takes beside its indices, in bytes, in whichever form is smaller.

    Either ``entries`` vectors of ``size``, or ``entries`` of ``dimensions`` and the projection: its rows once, and an
    index for each block of columns.
    """
    rows, columns = shape
    whole = 2.0 * entries * size
    blocks = columns // size
    if dimensions == size or blocks * dimensions > min(rows, columns):
        return whole
    places = blocks * dimensions * (math.log2(blocks) + math.log2(dimensions) + 1 / math.log(2)) / 8
    return min(whole, 2.0 * entries * dimensions + 2.0 * (dimensions + 1) * size + places)


def affordable_entries(shape: tuple[int, int], size: int, dimensions: int, entries: int) -> int:
    """Return how many entries of lower dimension take the bytes of ``entries`` whole ones, indices included."""
    count = shape[0] * (shape[1] // size)

    def total(held: int, own: int) -> float:
        return count * math.log2(held) / 8 + table_bytes(shape, size, own, held)

    budget = total(entries, size)
    low, high = entries, max(min(2**MOST_BITS, count), entries)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if total(middle, dimensions) <= budget else (low, middle - 1)
    return low


def predicted_dimensions(shape: tuple[int, int], spectrum: Doubles, entries: int) -> int:
    """Return the number of dimensions with the least predicted error at the bytes of ``entries`` whole vectors.

    Parameters
    ----------
    shape : tuple of int
        Rows and columns of the matrix.
    spectrum : ndarray of float64, shape ``(size,)``
        Falling.
    entries : int
        Of a table of whole vectors.
    """
    size = len(spectrum)
    errors = [
        predicted_error(spectrum, own, affordable_entries(shape, size, own, entries)) for own in range(1, size + 1)
    ]
    return 1 + int(np.argmin(errors))
