"""Grids of levels: scales as exponents, one for each row and group of columns, and rounding to the nearest level."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from isthmus.bottlenecks.coder import Floats, MatrixStatistics, Setting
from isthmus.errors import BadInput
from isthmus.storage.coded import FINENESS, Integers, block_size, exponents_of, scale_of, stretch

LEAST, MOST = -48 * FINENESS, 60 * FINENESS
"""Exponents of the smallest scale, which stands for nothing, and of the largest; files hold 2 ** -60 to 2 ** 60."""
_MOST_BITS = 12
_CHUNK = 1 << 16  # weights looked at in one go, so that they stay in the processor's cache
_OFFSETS = range(0, -33, -2)


def top_of(setting: Setting) -> int:
    """Return the largest integer of a symmetric grid of that many bits: 1 at 1.58 or 2 bits, 7 at 4, 127 at 8.

    Raises
    ------
    BadInput
        If the bits are not 1.58 to 12.
    """
    if not 1.5 <= setting.bits <= _MOST_BITS:
        raise BadInput(f"setting: {setting.bits:g} bits a weight; a symmetric grid takes 1.58 to {_MOST_BITS}")
    return max(1, int((2**setting.bits - 1) / 2))


def no_group(setting: Setting, name: str) -> None:
    """Refuse a group where a method has none.

    Raises
    ------
    BadInput
        If the setting has one.
    """
    if setting.group:
        raise BadInput(f"setting: groups of {setting.group} columns, which {name} does not have; set group to 0")


def checked_moments(statistics: MatrixStatistics, columns: int) -> npt.NDArray[np.float64] | None:
    """Return the moments of a matrix's inputs, shape ``(columns, columns)``; None for an embedding.

    Raises
    ------
    BadInput
        If they are of another shape or not finite.
    """
    if statistics.moments is None:
        return None
    moments = np.asarray(statistics.moments, dtype=np.float64)
    if moments.shape != (columns, columns):
        raise BadInput(f"moments of shape {list(moments.shape)} for {columns} columns; collect them for this matrix")
    if not np.isfinite(moments).all():
        raise BadInput("moments: not all are finite numbers; collect them again from inputs that are")
    return moments


def groups(columns: int, group: int) -> int:
    """Return into how many groups columns are cut; 0 for the group's size is one group.

    Sizes are evened out, as `isthmus.storage.coded.stretch` does: 9 columns in groups of at most 4 are 3, 3 and 3.
    """
    return 1 if group <= 0 else -(-columns // group)


def starts(entries: int, blocks: int) -> npt.NDArray[np.int64]:
    """Return where each of ``blocks`` blocks of ``entries`` begins."""
    return np.arange(0, entries, block_size(entries, blocks))


def peaks(weight: Floats, blocks: int) -> Floats:
    """Return the largest magnitude of each row and group of columns, shape ``(rows, blocks)``."""
    found: Floats = np.maximum.reduceat(np.abs(weight), starts(weight.shape[1], blocks), axis=1)
    return found


def covering(magnitudes: Floats, top: float, slack: float = 0.5) -> Integers:
    """Return the nearest exponents at which ``top`` scales reach the magnitudes and rounding clips none of them.

    Parameters
    ----------
    top : float
        The largest level.
    slack : float
        How far beyond it, in scales, a weight may lie and still be rounded to it.

    Raises
    ------
    BadInput
        If a magnitude is beyond what a scale can say.
    """
    found = exponents_of(np.maximum(magnitudes, 2.0**-90) / top)
    found += magnitudes > (top + slack) * scale_of(found).astype(np.float64)
    if found.max() > MOST:
        raise BadInput(f"a weight of {float(magnitudes.max()):.3g} is too large for a scale; divide the matrix before")
    return np.maximum(found, LEAST)


def spread(exponents: Integers, shape: tuple[int, int]) -> Floats:
    """Return the scales that exponents stand for, stretched over a matrix as far as broadcasting needs."""
    scales: Floats = stretch(scale_of(exponents), shape)
    return scales


def rounded(weight: Floats, exponents: Integers, top: int) -> Integers:
    """Return the integers from ``-top`` to ``top`` that are nearest to the weights; what is beyond is clipped.

    Parameters
    ----------
    weight : ndarray of float32, shape ``(rows, columns)``
    exponents : ndarray of int32, shape ``(rows or 1, groups)``
    top : int
    """
    levels = weight / spread(exponents, (weight.shape[0], weight.shape[1]))
    np.rint(levels, out=levels)
    return np.clip(levels, -top, top, out=levels).astype(np.int32)


def clipping(top: int) -> Callable[[Floats], Floats]:
    """Return the function from weights over their scale to levels of a symmetric grid."""
    return lambda scaled: np.clip(np.rint(scaled), -top, top)


def fitted(
    weight: Floats,
    exponents: Integers,
    levels: Callable[[Floats], Floats],
    importance: Floats | None = None,
    offsets: Sequence[int] = _OFFSETS,
) -> Integers:
    """Return the exponents, out of those given and smaller ones, with the least squared error of rounding.

    Parameters
    ----------
    weight : ndarray of float32, shape ``(rows, columns)``
    exponents : ndarray of int32, shape ``(rows, groups)``
    levels : callable
        From weights over their scale to their levels.
    importance : ndarray of float32 or None, shape ``(columns,)``
        Weighs the squares.
    offsets : sequence of int
        What is added to the exponents, each tried; the first wins a tie.
    """
    rows, columns = weight.shape
    first = starts(columns, exponents.shape[1])
    chosen = exponents.copy()
    height = max(1, _CHUNK // columns)
    for top in range(0, rows, height):
        part, held = weight[top : top + height], exponents[top : top + height]
        least = np.full(held.shape, np.inf)
        for offset in offsets:
            tried = np.maximum(held + offset, LEAST).astype(np.int32)
            scales = spread(tried, (len(part), columns))
            error = part / scales
            error = (error - levels(error)) * scales
            error *= error
            if importance is not None:
                error *= importance
            cost = np.add.reduceat(error, first, axis=1)
            better = cost < least
            least[better] = cost[better]
            chosen[top : top + height][better] = tried[better]
    return chosen
