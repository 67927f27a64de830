"""Coded matrices: weights as integers with what turns them back into numbers, one object for every kind of code.

=============  ========================================================================
code           a weight is
=============  ========================================================================
`Uniform`      an integer (plus its group's zero point) times its scales
`Codebook`     a row of a table of vectors, the table being that of its block
`Product`      a product of two coded matrices of lower rank
`Sum`          a sum of coded matrices, each coding what those before it leave
=============  ========================================================================

Each may have `Outliers` beside it: single weights that are kept apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float32]
Halves: TypeAlias = npt.NDArray[np.float16]
Integers: TypeAlias = npt.NDArray[np.int32]

FINENESS = 16
"""A scale is 2 to the power of a whole number of 16ths: an integer like any other, to be coded as one."""
MOST = 1 << 24
"""Integers beyond this are no longer exact in float32."""
MOST_PARTS = 4
"""Codes that a `Sum` may add."""
_POWERS = np.exp2(np.arange(FINENESS) / FINENESS).astype(np.float32)


@dataclass(frozen=True)
class Outliers:
    """Weights kept apart: ``places`` (rising, in the flattened matrix) and their ``values``, ``(count,)`` each."""

    places: npt.NDArray[np.int64]
    values: Halves


@dataclass(frozen=True)
class Uniform:
    """Integers times scales.

    Parameters
    ----------
    integers : ndarray of int32, shape ``(rows, columns)``
    scales : tuple of ndarray of int32, shape ``(rows or fewer, columns or fewer)``
        Grids of exponents, see `FINENESS`; each is stretched over the matrix in blocks of equal size (the last may be
        smaller), and all are multiplied.
    zeros : ndarray of int32 or None
        Added to the integers; a grid like the first of ``scales``.
    """

    integers: Integers
    scales: tuple[Integers, ...]
    zeros: Integers | None = None
    outliers: Outliers | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.integers.shape
        return rows, columns


@dataclass(frozen=True)
class Codebook:
    """Vectors looked up in tables.

    Parameters
    ----------
    tables : ndarray of float16, shape ``(row blocks, column blocks, entries, size)``
    indices : ndarray of int32, shape ``(rows, columns / size)``
    scales : tuple of ndarray of int32
        As in `Uniform`.
    """

    tables: Halves
    indices: Integers
    scales: tuple[Integers, ...] = ()
    outliers: Outliers | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.indices.shape
        return rows, columns * self.tables.shape[3]


@dataclass(frozen=True)
class Product:
    """``left @ right``, of shapes ``(rows, rank)`` and ``(rank, columns)``."""

    left: Uniform | Codebook
    right: Uniform | Codebook
    outliers: Outliers | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.left.shape[0], self.right.shape[1]


@dataclass(frozen=True)
class Sum:
    """The sum of its parts, all of one shape, times scales.

    Parameters
    ----------
    parts : tuple of Uniform or Codebook
        Two to `MOST_PARTS`, with no more than two integers a weight among them: so much and no more is read back from
        a file.
    scales : tuple of ndarray of int32
        Of the sum, as in `Uniform`.
    """

    parts: tuple[Uniform | Codebook, ...]
    scales: tuple[Integers, ...] = ()
    outliers: Outliers | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.parts[0].shape


Coded: TypeAlias = Uniform | Codebook | Product | Sum


def decode(coded: Coded) -> Floats:
    """Return the matrix that a code stands for, shape ``(rows, columns)``, float32."""
    if isinstance(coded, Product):
        matrix: Floats = decode(coded.left) @ decode(coded.right)
    elif isinstance(coded, Sum):
        matrix = decode(coded.parts[0])
        for part in coded.parts[1:]:
            matrix += decode(part)
        matrix = _scaled(matrix, coded.scales)
    elif isinstance(coded, Uniform):
        integers = coded.integers
        if coded.zeros is not None:
            integers = integers + stretch(coded.zeros, coded.shape)
        matrix = _scaled(integers.astype(np.float32), coded.scales)
    else:
        matrix = _scaled(_looked_up(coded), coded.scales)
    if coded.outliers is not None:
        matrix.flat[coded.outliers.places] = coded.outliers.values.astype(np.float32)
    return matrix


def scale_of(exponents: Integers) -> Floats:
    """Return the scales that exponents stand for; the same to the last bit on every machine."""
    return np.ldexp(_POWERS[exponents % FINENESS], exponents // FINENESS)


def exponents_of(scales: npt.ArrayLike) -> Integers:
    """Return the nearest exponents of scales above zero."""
    found: Integers = np.rint(FINENESS * np.log2(np.asarray(scales, dtype=np.float64))).astype(np.int32)
    return found


def _looked_up(coded: Codebook) -> Floats:
    down, across, entries, size = coded.tables.shape
    rows, columns = coded.indices.shape
    block = np.arange(down * across, dtype=np.int64).reshape(down, across) * entries
    places = stretch(block, (rows, columns)) + coded.indices
    table = coded.tables.reshape(-1, size).astype(np.float32)
    return table[places].reshape(rows, columns * size)


def _scaled(matrix: Floats, scales: tuple[Integers, ...]) -> Floats:
    for grid in scales:
        matrix *= stretch(scale_of(grid), (matrix.shape[0], matrix.shape[1]))
    return matrix


def stretch(grid: npt.NDArray[Any], shape: tuple[int, int]) -> npt.NDArray[Any]:
    """Stretch a grid over a matrix in blocks of equal size; what has one row or column is left to broadcasting."""
    for axis, wanted in enumerate(shape):
        held = grid.shape[axis]
        if held not in (1, wanted):
            grid = np.repeat(grid, block_size(wanted, held), axis=axis).take(range(wanted), axis=axis)
    return grid


def block_size(entries: int, blocks: int) -> int:
    """Return how many entries a block has where ``entries`` are cut into ``blocks``; the last may have fewer."""
    return -(-entries // blocks)
