"""SqueezeLLM: levels where weights are dense and sensitive, outliers and the most sensitive weights kept apart.

Kim et al. 2023, arXiv 2306.07629. The levels of a row are the centres of its weights, by k-means in one dimension
weighted with the diagonal of the Fisher information. That diagonal is a factor of rows times one of columns here, so
within a row only the columns' weighs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from isthmus.bottlenecks.bits.grid import covering, no_group
from isthmus.bottlenecks.bits.kmeans import assigned, kmeans, spread_centres
from isthmus.bottlenecks.checks import check_matrix
from isthmus.bottlenecks.coder import Floats, MatrixStatistics, Setting
from isthmus.errors import BadInput
from isthmus.storage.coded import FINENESS, Codebook, Integers, Outliers, block_size, scale_of

_FLOOR = 1e-4
"""Factors count as no less than this share of their mean: what never mattered here may matter elsewhere."""
_CHUNK = 1 << 20  # weights whose levels are sought at once, which bounds the memory that takes
_LARGEST_HALF = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class SqueezeLlm:
    """Tables of levels by sensitivity-weighted k-means, and a sparse matrix in float16 beside them.

    A table takes ``2 * 2 ** bits`` bytes. For a narrow matrix one a row would weigh much beside the indices, so rows
    share tables; each row then has a scale, its root mean square to the nearest 16th of an octave.

    Parameters
    ----------
    outliers : float
        Share of the weights that is kept apart for being largest in magnitude.
    sensitive : float
        Share that is kept apart for the largest Fisher information.
    rows : int
        Rows that share a table; 0: as many as it takes for tables to take about ``tables`` of the indices' bytes.
    tables : float
        See ``rows``.
    iterations : int
        Of k-means, at most.
    """

    name: ClassVar[str] = "squeezellm"
    slug: ClassVar[str | None] = "squeezellm"
    family: ClassVar[str] = "bits"
    needs: ClassVar[frozenset[str]] = frozenset({"sensitivity"})

    outliers: float = 0.004
    sensitive: float = 0.0005
    rows: int = 0
    tables: float = 0.05
    iterations: int = 30

    def settings(self, shape: tuple[int, int]) -> tuple[Setting, ...]:
        """Return 5 to 2 bits."""
        return tuple(Setting(bits) for bits in (5, 4, 3, 2))

    def rows_of(self, columns: int, bits: float) -> int:
        """Return how many rows share a table."""
        return self.rows or max(1, int(np.ceil(16 * 2**bits / (self.tables * columns * bits))))

    def code(self, weight: Floats, statistics: MatrixStatistics, setting: Setting, *, seed: int = 0) -> Codebook:
        """Return the code of a matrix of shape ``(rows, columns)``.

        Raises
        ------
        BadInput
            If a weight is not a finite number, one kept apart is too large for float16, the bits are not 1 to 8, or
            groups are asked for.
        """
        check_matrix(weight)
        no_group(setting, self.name)
        if not 1 <= setting.bits <= 8:
            raise BadInput(f"setting: {setting.bits:g} bits a weight; tables of levels take 1 to 8")
        entries = round(2**setting.bits)
        entries, (rows, columns) = round(2**setting.bits), weight.shape
        each = block_size(rows, -(-rows // min(self.rows_of(columns, setting.bits), rows)))
        across, down = _shares(statistics.sensitivity.columns), _shares(statistics.sensitivity.rows)
        apart = kept_apart(weight, down[:, None] * across, self.outliers, self.sensitive)
        inside, counted = weight.copy(), np.broadcast_to(across, weight.shape).copy()
        inside.flat[apart] = counted.flat[apart] = 0
        exponents = row_exponents(inside, shared=each > 1)
        inside /= scale_of(exponents)
        if each > 1:  # an error counts as its row does, in the row's own units
            counted *= down[:, None] * scale_of(exponents) ** 2
        tables = np.empty((-(-rows // each), 1, entries, 1), dtype=np.float16)
        indices = np.empty(weight.shape, dtype=np.int32)
        step = max(1, _CHUNK // (each * columns))
        for first in range(0, len(tables), step):
            part = slice(first * each, (first + step) * each)
            centres = self._levels(inside[part], counted[part], each, entries)
            tables[first : first + step, 0, :, 0] = centres
            owners = np.repeat(centres, each, axis=0)[: len(inside[part])]
            indices[part] = assigned(inside[part], owners.astype(np.float32))
        return Codebook(tables, indices, (exponents,), sparse(weight, apart))

    def _levels(self, values: Floats, counted: Floats, each: int, entries: int) -> npt.NDArray[np.float16]:
        """Return the levels of blocks of ``each`` rows, shape ``(blocks, entries)``; the last block may have fewer."""
        short = -len(values) % each
        blocks = (len(values) + short) // each
        values = np.pad(values, ((0, short), (0, 0)), mode="edge").reshape(blocks, -1)
        counted = np.pad(counted, ((0, short), (0, 0))).reshape(blocks, -1)
        centres = spread_centres(values, counted, entries)
        return kmeans(values, counted, centres, self.iterations).astype(np.float16)


def _shares(factor: npt.NDArray[np.float64]) -> Floats:
    """Return a factor of the sensitivity over its mean, kept from vanishing."""
    return np.asarray(np.maximum(factor / (factor.mean() or 1.0), _FLOOR), dtype=np.float32)


def kept_apart(weight: Floats, information: Floats, outliers: float, sensitive: float) -> npt.NDArray[np.int64]:
    """Return the places, rising, of the largest weights and of those with the largest Fisher information.

    Parameters
    ----------
    weight, information : ndarray of float32, shape ``(rows, columns)``
    outliers, sensitive : float
        Shares of the weights, rounded down.
    """
    found = [
        np.argpartition(magnitude.ravel(), weight.size - count)[weight.size - count :]
        for magnitude, count in (
            (np.abs(weight), int(outliers * weight.size)),
            (information, int(sensitive * weight.size)),
        )
        if count
    ]
    return np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *found]))


def row_exponents(weight: Floats, *, shared: bool) -> Integers:
    """Return exponents of the scale of each row where tables are shared, else of one for the matrix, a power of 2.

    Either keeps the tables well within what float16 can say.
    """
    if shared:
        return covering(np.sqrt(np.square(weight).mean(1, keepdims=True)), 1.0)
    exponent = covering(np.abs(weight).max(keepdims=True), 1.0)
    return -(-exponent // FINENESS) * FINENESS


def sparse(weight: Floats, places: npt.NDArray[np.int64]) -> Outliers | None:
    """Return weights kept apart, None if there are none.

    Raises
    ------
    BadInput
        If one is too large for float16.
    """
    values = weight.flat[places]
    if not len(places):
        return None
    if np.abs(values).max() > _LARGEST_HALF:
        raise BadInput(f"a weight of {float(np.abs(values).max()):.3g} does not fit float16; divide the matrix before")
    return Outliers(places, values.astype(np.float16))
