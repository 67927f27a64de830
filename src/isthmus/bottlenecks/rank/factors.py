"""Low rank: the product of two thin factors that is nearest in what the layer puts out; the baseline of its family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from isthmus.bottlenecks.checks import check_matrix
from isthmus.bottlenecks.coder import MatrixStatistics, Setting
from isthmus.bottlenecks.rank.products import product, ranks
from isthmus.errors import BadInput
from isthmus.storage.coded import Product

Doubles = npt.NDArray[np.float64]

_FLOOR = 1e-4
"""Weights of rows count as no less than this share of their mean."""


@dataclass(frozen=True)
class LowRank:
    r"""Truncated singular value decomposition, weighted by outputs and inputs.

    Least is :math:`\sum_i r_i \, e_i M e_i^T` over errors ``e`` of rank-limited matrices, with ``r`` the rows' factor
    of the sensitivity and ``M`` the moments of the inputs: with ``A`` the square root of ``M``, the truncated SVD of
    :math:`diag(r)^{1/2} W A` (Eckart and Young 1936), as in weighted and activation-aware SVDs of layers (Hsu et al.
    2022; Yuan et al. 2023). For an embedding ``M`` is the diagonal of the columns' factor and ``r`` how often a text
    holds a token.

    Parameters
    ----------
    bits : int
        Of the numbers in the factors, before entropy coding.
    damping : float
        Share of the mean of the diagonal of ``M`` that is added to it.
    """

    name: ClassVar[str] = "low-rank"
    slug: ClassVar[str | None] = None
    family: ClassVar[str] = "low-rank"
    needs: ClassVar[frozenset[str]] = frozenset({"moments", "sensitivity"})

    bits: int = 8
    damping: float = 0.01

    def settings(self, shape: tuple[int, int]) -> tuple[Setting, ...]:
        """Return the ranks at which two factors hold fewer numbers than the matrix, largest first; maybe none."""
        rows, columns = shape
        return tuple(Setting(self.bits, rank=rank) for rank in ranks((rows * columns - 1) // (rows + columns)))

    def code(
        self, weight: npt.NDArray[np.float32], statistics: MatrixStatistics, setting: Setting, *, seed: int = 0
    ) -> Product:
        """Return the code of a matrix of shape ``(rows, columns)``.

        Raises
        ------
        BadInput
            If a weight or moment is not a finite number, or the rank is not between 1 and rows and columns.
        """
        check_matrix(weight)
        if not 1 <= setting.rank <= min(weight.shape):
            raise BadInput(f"rank {setting.rank} of a matrix of shape {list(weight.shape)}; take 1 to the smaller side")
        own = statistics.sensitivity
        moments = np.diag(own.columns) if statistics.moments is None else statistics.moments.astype(np.float64)
        if moments.shape != (weight.shape[1],) * 2 or not np.isfinite(moments).all():
            raise BadInput(f"moments of shape {list(moments.shape)} for {weight.shape[1]} columns; measure them anew")
        left, right = factors(weight, own.rows, moments, setting.rank, damping=self.damping)
        return product(left, right, setting.bits)


def factors(
    weight: npt.NDArray[np.float32], rows: Doubles, moments: Doubles, rank: int, *, damping: float = 0.0
) -> tuple[Doubles, Doubles]:
    """Return the two factors, of shapes ``(rows, rank)`` and ``(rank, columns)``, by falling weight.

    Parameters
    ----------
    weight : ndarray of float32, shape ``(rows, columns)``
    rows : ndarray of float64, shape ``(rows,)``
        What a squared error in an output costs.
    moments : ndarray of float64, shape ``(columns, columns)``
        Of the inputs.
    rank : int
    damping : float
        As in `LowRank`.
    """
    mean = float(rows.mean()) or 1.0
    down = np.sqrt(np.maximum(rows / mean, _FLOOR))
    values, directions = np.linalg.eigh((moments + moments.T) / 2)
    values = np.maximum(values, 0) + damping * float(np.trace(moments)) / len(moments)
    # A direction that no input has still gets a weight, or its inverse would be infinite.
    values = np.maximum(values, 1e-9 * float(values.max()) or 1.0)
    root = directions * np.sqrt(values)
    outer, spectrum, inner = np.linalg.svd(down[:, None] * (weight.astype(np.float64) @ root), full_matrices=False)
    share = np.sqrt(spectrum[:rank])
    left = outer[:, :rank] * share / down[:, None]
    right = (share[:, None] * inner[:rank] / np.sqrt(values)) @ directions.T
    return left, right
