"""VPTQ: codebooks that see which errors a layer's inputs amplify, and columns that make up for those before them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from scipy.linalg import solve_triangular

from isthmus.bottlenecks.codebook.kmeans import kmeans, nearest
from isthmus.bottlenecks.codebook.vectors import codebook, cut, entries_of, offered
from isthmus.bottlenecks.coder import MatrixStatistics, Setting
from isthmus.bottlenecks.feedback import damped as add_damping
from isthmus.bottlenecks.feedback import feedback_factor
from isthmus.errors import BadInput
from isthmus.storage.coded import Codebook, scale_of

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int32]

TOGETHER = 128
"""Columns whose errors are passed on beyond them at once (Frantar et al. 2023): one product for many thin ones."""


@dataclass(frozen=True)
class Vptq:
    r"""A codebook by weighted k-means, looked up with second-order error feedback.

    Least is :math:`tr((W - \hat W) H (W - \hat W)^T)` with ``H`` the moments of the inputs (Liu et al. 2024). The table
    comes from k-means weighted by the diagonal of ``H``. Vectors are then looked up from the first columns to the
    last, and what a lookup gets wrong is taken over by the columns to the right.

    The paper's vectors run down a column, so that its feedback goes column by column. A `Codebook` is looked up along
    rows: here a vector spans ``group`` columns of one row, and feedback goes block by block, as for groups of weights
    that are pruned at once (Kurtic et al. 2022). The lookup then takes the full ``group x group`` part of the metric,
    where the paper's layout needs one number. Rows are scaled to the same mean square first. The paper's residual
    codebook is `isthmus.bottlenecks.codebook.residual`; its outlier codebook is not here.

    An embedding has no moments: its table is then that of k-means without ``H``.

    Parameters
    ----------
    damping : float
        Share of the mean of the diagonal that is added to it.
    rounds : int
        Of Lloyd's algorithm.
    """

    name: ClassVar[str] = "vptq"
    slug: ClassVar[str | None] = "vptq"
    family: ClassVar[str] = "vector-quantization"
    needs: ClassVar[frozenset[str]] = frozenset({"moments"})

    damping: float = 0.01
    rounds: int = 20

    def settings(self, shape: tuple[int, int]) -> tuple[Setting, ...]:
        """Return the settings whose tables pay for themselves, finest first; none for a very small matrix."""
        return offered(shape)

    def code(self, weight: Floats, statistics: MatrixStatistics, setting: Setting, *, seed: int = 0) -> Codebook:
        """Return the code of a matrix of shape ``(rows, columns)``.

        Raises
        ------
        BadInput
            If a weight or moment is not a finite number, or the setting's vectors do not fill the columns.
        """
        entries, size = entries_of(setting), setting.group
        vectors, exponents = cut(weight, size, by_row=True)
        rows, columns = weight.shape
        hessian = damped(statistics.moments, columns, self.damping)
        weights = vector_weights(hessian, exponents, size).astype(np.float32)
        table, labels = kmeans(vectors, entries, weights=weights, rounds=self.rounds, seed=seed)
        table = table.astype(np.float16).astype(np.float32)
        if statistics.moments is not None:
            labels = look_up(vectors.reshape(rows, columns), table, feedback_factor(hessian))[0].ravel()
        return codebook(table, labels, exponents, rows)


def damped(moments: Floats | None, columns: int, damping: float) -> Doubles:
    """Return moments with a share of the mean of their diagonal added to it; without moments, the identity.

    Raises
    ------
    BadInput
        If they are not of shape ``(columns, columns)`` or not finite.
    """
    if moments is None:
        return np.eye(columns)
    if moments.shape != (columns, columns) or not np.isfinite(moments).all():
        raise BadInput(f"moments of shape {list(moments.shape)} for {columns} columns; measure them on finite inputs")
    return add_damping((moments.astype(np.float64) + moments.T) / 2, damping)


def vector_weights(hessian: Doubles, exponents: Integers, size: int) -> Doubles:
    """Return what errors of each vector's entries count by the diagonal of ``H``, shape ``(vectors, size)``.

    Parameters
    ----------
    hessian : ndarray of float64, shape ``(columns, columns)``
    exponents : ndarray of int32, shape ``(rows, 1)``
        Of the rows' scales.
    size : int
        Columns that a vector spans.
    """
    across = np.tile(np.diag(hessian).reshape(-1, size), (len(exponents), 1))
    return np.asarray(across * np.repeat(scale_of(exponents) ** 2, len(hessian) // size, axis=0))


def in_turn(
    weight: Floats, size: int, factor: Doubles, choose: Callable[[int, Doubles, Doubles], Doubles | Floats]
) -> float:
    """Code vectors block by block, what each gets wrong passed on to the columns on its right; return what is lost.

    Parameters
    ----------
    weight : ndarray of float32, shape ``(rows, columns)``
    size : int
        Columns of a block.
    factor : ndarray of float64, shape ``(columns, columns)``
        From `feedback_factor`.
    choose : callable
        From a block's number, its vectors as they are by then, ``(rows, size)``, and a matrix, ``(size, size)``, after
        which the distance that counts is Euclidean, to what the vectors are coded as.
    """
    left, lost = weight.astype(np.float64), 0.0
    columns = weight.shape[1]
    wide = max(TOGETHER // size, 1) * size
    for start in range(0, columns, wide):
        stop = min(start + wide, columns)
        errors = np.empty((len(left), stop - start))
        for block in range(start // size, stop // size):
            own = slice(block * size, (block + 1) * size)
            # In these coordinates the distance is Euclidean, with all columns to the right already at their best.
            whiten = solve_triangular(factor[own, own], np.eye(size))
            chosen = choose(block, left[:, own], whiten / np.sqrt((whiten**2).mean()))
            error = (left[:, own] - chosen) @ whiten
            lost += float((error**2).sum())
            errors[:, own.start - start : own.stop - start] = error
            left[:, own.stop : stop] -= error @ factor[own, own.stop : stop]
        left[:, stop:] -= errors @ factor[start:stop, stop:]
    return lost


def look_up(weight: Floats, table: Floats, factor: Doubles) -> tuple[Integers, float]:
    """Return the entry for each vector, each chosen and its error passed on before the next.

    Parameters
    ----------
    weight : ndarray of float32, shape ``(rows, columns)``
    table : ndarray of float32, shape ``(entries, size)``
    factor : ndarray of float64, shape ``(columns, columns)``
        From `feedback_factor`.

    Returns
    -------
    tuple of (ndarray of int32, float)
        Indices of shape ``(rows, columns / size)``, and what is lost: the trace in `Vptq`.
    """
    rows, columns = weight.shape
    size = table.shape[1]
    indices = np.empty((rows, columns // size), np.int32)

    def choose(block: int, vectors: Doubles, metric: Doubles) -> Floats:
        """Return the nearest entries."""
        indices[:, block] = nearest((vectors @ metric).astype(np.float32), (table @ metric).astype(np.float32))[0]
        return table[indices[:, block]]

    return indices, in_turn(weight, size, factor, choose)
