"""What the coders by codebook share: which settings pay, and a matrix cut into vectors along its rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from isthmus.bottlenecks.checks import check_matrix
from isthmus.bottlenecks.coder import Setting
from isthmus.errors import BadInput
from isthmus.storage.coded import FINENESS, Codebook, exponents_of, scale_of

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]

MOST_BITS = 10
"""Bits of an index: longer alphabets cost more than they hold, for the frequencies of all entries are stored."""
TABLE_SHARE = 0.25
"""A table may take so much of what its indices take."""
_RATES = (6.0, 5.0, 4.0, 3.0, 2.5, 2.0, 1.5, 1.25, 1.0, 0.75, 0.5)
_LARGEST = 40 * FINENESS


def offered(
    shape: tuple[int, int], lengths: tuple[int, ...] = (8, 4, 2, 1), share: float = TABLE_SHARE
) -> tuple[Setting, ...]:
    """Return the settings for a matrix, finest first: at each rate the longest vectors whose table still pays.

    A table pays while it takes no more than ``share`` of the bytes of its indices. Only lengths that divide the columns
    are offered, for a row holds whole vectors.
    """
    rows, columns = shape
    found = []
    for rate in _RATES:
        for length in lengths:
            bits = rate * length
            fits = columns % length == 0 and bits == int(bits) and 1 <= bits <= MOST_BITS
            if fits and 2 * 2**bits * length <= share * rows * (columns // length) * bits / 8:
                found.append(Setting(rate, length))
                break
    return tuple(found)


def entries_of(setting: Setting) -> int:
    """Return how many entries a table has: ``2 ** (bits * group)``.

    Raises
    ------
    BadInput
        If vectors have no length, or there would be fewer than 2 or more than ``2 ** MOST_BITS`` entries.
    """
    entries = round(2 ** min(setting.bits * setting.group, 64.0))
    if setting.group < 1 or not 2 <= entries <= 2**MOST_BITS:
        raise BadInput(
            f"a codebook of {setting.bits:g} bits a weight for vectors of {setting.group} has {entries} entries; "
            f"choose bits and group so that it has 2 to {2**MOST_BITS}"
        )
    return entries


def cut(weight: Floats, size: int, *, by_row: bool = False) -> tuple[Floats, Integers]:
    """Return a matrix as vectors along its rows, scaled to a mean square of 1, with the exponents of the scales.

    Parameters
    ----------
    weight : ndarray of float32, shape ``(rows, columns)``
    size : int
        The length of a vector.
    by_row : bool
        A scale for each row; else one for all.

    Returns
    -------
    tuple of ndarray
        Vectors of shape ``(rows * columns / size, size)``; exponents of shape ``(rows, 1)`` or ``(1, 1)``.

    Raises
    ------
    BadInput
        If a weight is not a finite number, or the columns are no multiple of ``size``.
    """
    check_matrix(weight)
    columns = weight.shape[1]
    if columns % size:
        raise BadInput(f"vectors of {size} do not fill {columns} columns; take a group that divides them")
    squares = weight.astype(np.float64) ** 2
    powers = squares.mean(1, keepdims=True) if by_row else squares.mean(keepdims=True)
    exponents = exponents_of(np.sqrt(np.where(powers > 0, powers, 1.0))).clip(-_LARGEST, _LARGEST)
    scaled = np.ascontiguousarray(weight / scale_of(exponents), np.float32)
    return scaled.reshape(-1, size), exponents


def codebook(table: Floats, labels: Integers, exponents: Integers, rows: int) -> Codebook:
    """Return a table of shape ``(entries, size)`` and labels of shape ``(vectors,)`` as the code of a matrix."""
    return Codebook(table[None, None].astype(np.float16), labels.reshape(rows, -1), (exponents,))
