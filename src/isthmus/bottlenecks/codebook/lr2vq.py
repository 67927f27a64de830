"""Codebooks of low dimension: vectors are clustered in the few directions that matter and projected back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from isthmus.bottlenecks.codebook.dimension import affordable_entries, predicted_dimensions
from isthmus.bottlenecks.codebook.kmeans import centroids, kmeans, nearest
from isthmus.bottlenecks.codebook.vectors import codebook, cut, entries_of, offered
from isthmus.bottlenecks.coder import MatrixStatistics, Setting
from isthmus.errors import BadInput
from isthmus.storage.blobs import pack
from isthmus.storage.coded import Codebook, Product

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]

TABLE_SHARE = 0.5
"""Larger tables pay here, for they are smaller in bytes."""


@dataclass(frozen=True)
class LowDimensionalCodebook:
    r"""Vectors of ``group`` weights as entries of ``d`` numbers times one projection (Zhu et al. 2022).

    Least is :math:`\sum_n q_n ||x_n - c_{l(n)} P||^2`, with ``P`` of shape ``(d, group)`` and ``q`` the sensitivity of
    a vector's weights. The paper trains both on the task. Here they start from the leading directions of the vectors
    and take turns: nearest entries, then the best means of rank ``d`` by one SVD; no step raises the sum.

    A vector's own bits stay, so a lower ``d`` makes only the table smaller. What it saves is spent on entries: a
    setting states the bytes of a table of whole vectors, and ``Setting.rank`` the ``d``; 0 leaves it to
    `predicted_dimensions`, this library's own rule.

    Two forms of code stand for the same matrix, and the smaller is returned. One is a `Codebook` of projected entries,
    of ``2 * entries * group`` bytes. The other is a `Product` of a codebook of vectors of ``d`` and of the projection
    repeated along the diagonal. That right factor is a codebook too: its entries are the rows of ``P`` and a zero, so
    a block of zeros takes one cheap index. It needs ``columns * d / group`` to be no more than rows and columns.

    Parameters
    ----------
    rounds : int
        Of Lloyd's algorithm, and again of the turns.
    """

    name: ClassVar[str] = "lr2vq"
    slug: ClassVar[str | None] = "lr2vq"
    family: ClassVar[str] = "vector-quantization"
    needs: ClassVar[frozenset[str]] = frozenset({"sensitivity"})

    rounds: int = 10

    def settings(self, shape: tuple[int, int]) -> tuple[Setting, ...]:
        """Return the settings whose tables pay for themselves, finest first; none for a very small matrix."""
        return offered(shape, (16, 8, 4, 2, 1), TABLE_SHARE)

    def code(
        self, weight: Floats, statistics: MatrixStatistics, setting: Setting, *, seed: int = 0
    ) -> Codebook | Product:
        """Return the code of a matrix of shape ``(rows, columns)``.

        Raises
        ------
        BadInput
            If a weight is not a finite number, the setting's vectors do not fill the columns, or its rank exceeds
            its group.
        """
        entries, size = entries_of(setting), setting.group
        if not 0 <= setting.rank <= size:
            raise BadInput(f"rank {setting.rank} for vectors of {size}; take 0 (predicted) to {size}")
        vectors, exponents = cut(weight, size)
        rows, columns = weight.shape
        own = statistics.sensitivity
        across = own.columns.reshape(-1, size).mean(1)
        weights = np.maximum(np.outer(own.rows / (own.rows.mean() or 1), across / (across.mean() or 1)), 1e-4)
        weights = weights.reshape(-1).astype(np.float32)
        values, directions = spectrum(vectors, weights)
        dimensions = setting.rank or predicted_dimensions((rows, columns), values, entries)
        entries = affordable_entries((rows, columns), size, dimensions, entries)
        table, projection, labels = fit(
            vectors, weights, directions[:, :dimensions], entries, rounds=self.rounds, seed=seed
        )
        whole = codebook(table @ projection, labels, exponents, rows)
        if dimensions == size or columns // size * dimensions > min(rows, columns):
            return whole
        product = Product(codebook(table, labels, exponents, rows), repeated(projection, columns // size))
        return product if len(pack(product)) < len(pack(whole)) else whole


def spectrum(vectors: Floats, weights: Floats) -> tuple[npt.NDArray[np.float64], Floats]:
    """Return eigenvalues (falling) and directions (columns) of the second moments of vectors ``(count, size)``."""
    moments = (vectors * weights[:, None]).T.astype(np.float64) @ vectors / float(weights.sum())
    values, directions = np.linalg.eigh(moments)
    return values[::-1], np.ascontiguousarray(directions[:, ::-1], np.float32)


def fit(
    vectors: Floats, weights: Floats, directions: Floats, entries: int, *, rounds: int, seed: int
) -> tuple[Floats, Floats, Integers]:
    """Return a table ``(entries, d)``, a projection ``(d, size)`` with orthonormal rows, and labels ``(count,)``.

    Parameters
    ----------
    vectors : ndarray of float32, shape ``(count, size)``
    weights : ndarray of float32, shape ``(count,)``
    directions : ndarray of float32, shape ``(size, d)``
        Orthonormal, where to start.
    """
    dimensions = directions.shape[1]
    projection = directions.T
    table, labels = kmeans(vectors @ projection.T, entries, weights=weights, rounds=rounds, seed=seed)
    spread = np.repeat(weights[:, None], vectors.shape[1], axis=1)
    for _ in range(rounds if dimensions < vectors.shape[1] else 0):
        means = centroids(vectors, labels, spread, table @ projection)
        mass = np.bincount(labels, weights, minlength=len(table))[:, None]
        projection = np.linalg.svd(np.sqrt(mass) * means, full_matrices=False)[2][:dimensions].astype(np.float32)
        table = means @ projection.T
        before = labels
        labels = nearest(vectors @ projection.T, table)[0]
        if np.array_equal(before, labels):
            break
    return table, projection, labels


def repeated(projection: Floats, blocks: int) -> Codebook:
    """Return the block-diagonal matrix ``(blocks * d, blocks * size)`` with one projection in every block."""
    dimensions, size = projection.shape
    table = np.vstack([np.zeros((1, size), np.float32), projection])
    indices = np.kron(np.eye(blocks, dtype=np.int32), np.arange(1, dimensions + 1, dtype=np.int32)[:, None])
    return Codebook(table[None, None].astype(np.float16), indices.astype(np.int32))
