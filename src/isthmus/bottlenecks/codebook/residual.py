"""Residual codebooks: a second table made on what the first leaves, both fitted and looked up together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from isthmus.bottlenecks.codebook.kmeans import CHUNK, centroids, kmeans
from isthmus.bottlenecks.codebook.vectors import MOST_BITS, cut
from isthmus.bottlenecks.codebook.vptq import damped, in_turn, vector_weights
from isthmus.bottlenecks.coder import MatrixStatistics, Setting
from isthmus.bottlenecks.feedback import feedback_factor
from isthmus.errors import BadInput
from isthmus.storage.coded import Codebook, Sum

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int32]
Tables = tuple[Floats, Floats]

TABLE_SHARE = 0.1
"""Both tables together may take so much of what their indices take."""
_RATES = (3.0, 2.5, 2.0, 1.75, 1.5, 1.25, 1.0, 0.75, 0.5)
_LENGTHS = (8, 6, 4, 2, 1)
_FITTED = 1 << 16
"""Tables are fitted to so many of the vectors, drawn where there are more."""
_MEANS = 3
"""How often the means of both tables follow each other in a turn."""


@dataclass(frozen=True)
class ResidualCodebook:
    r"""A sum of two codebooks, the second made on the errors of the first (Chen, Guan and Wang 2010).

    The residual stage of VPTQ (Liu et al. 2024). That both tables are then fitted and looked up together is additive
    quantization (Babenko and Lempitsky 2014), as in AQLM (Egiazarian et al. 2024). Least is
    :math:`tr((W - \hat W) H (W - \hat W)^T)` with ``H`` the moments of the inputs. Tables start by k-means, weighted by
    the diagonal of ``H``, and take turns: the best pair of entries for each vector, its first among the ``beam`` that
    are nearest alone; then the weighted means of what the other table leaves. At the end pairs are looked up block by
    block with error feedback, as in `Vptq`.

    Two tables of ``n`` entries stand for ``n * n`` vectors, so that vectors may be longer than one table allows:
    ``bits * group / 2`` bits make an index. Beside one table of the same bytes this pays where tables are small beside
    the indices; in a small matrix at a high rate it loses.

    An embedding has no moments: then all errors count alike.

    Parameters
    ----------
    damping : float
        Share of the mean of the diagonal that is added to it.
    rounds : int
        Of Lloyd's algorithm, for each table.
    turns, beam : int
    """

    name: ClassVar[str] = "residual-codebook"
    slug: ClassVar[str | None] = None
    family: ClassVar[str] = "vector-quantization"
    needs: ClassVar[frozenset[str]] = frozenset({"moments"})

    damping: float = 0.01
    rounds: int = 20
    turns: int = 10
    beam: int = 8

    def settings(self, shape: tuple[int, int]) -> tuple[Setting, ...]:
        """Return the settings whose tables pay for themselves, finest first; none for a very small matrix."""
        rows, columns = shape
        found = []
        for rate in _RATES:
            for length in _LENGTHS:
                bits = rate * length / 2
                fits = columns % length == 0 and bits == int(bits) and 1 <= bits <= MOST_BITS
                if fits and 4 * 2**bits * length <= TABLE_SHARE * rows * columns * rate / 8:
                    found.append(Setting(rate, length))
                    break
        return tuple(found)

    def code(self, weight: Floats, statistics: MatrixStatistics, setting: Setting, *, seed: int = 0) -> Sum:
        """Return the code of a matrix of shape ``(rows, columns)``.

        Raises
        ------
        BadInput
            If a weight or moment is not a finite number, or the setting's vectors do not fill the columns.
        """
        entries, size = entries_of_each(setting), setting.group
        vectors, exponents = cut(weight, size, by_row=True)
        rows, columns = weight.shape
        hessian = damped(statistics.moments, columns, self.damping)
        weighed = vector_weights(hessian, exponents, size)
        weights = (weighed / weighed.mean()).astype(np.float32)
        fitted = self._fit(vectors, weights, entries, seed)
        first, second = (table.astype(np.float16).astype(np.float32) for table in fitted)
        if statistics.moments is None:
            pair = nearest_pairs(vectors, (first, second), self.beam)
        else:
            pair = look_up(vectors.reshape(rows, columns), (first, second), feedback_factor(hessian), self.beam)[0]
        parts = tuple(
            Codebook(table[None, None].astype(np.float16), indices.reshape(rows, -1))
            for table, indices in zip((first, second), pair, strict=True)
        )
        return Sum(parts, (exponents,))

    def _fit(self, vectors: Floats, weights: Floats, entries: int, seed: int) -> Tables:
        if len(vectors) > _FITTED:
            drawn = np.sort(np.random.default_rng(seed).choice(len(vectors), _FITTED, replace=False))
            vectors, weights = vectors[drawn], weights[drawn]
        first, labels = kmeans(vectors, entries, weights=weights, rounds=self.rounds, seed=seed)
        left = vectors - first[labels]
        second, others = kmeans(left, entries, weights=weights, rounds=self.rounds, seed=seed)
        for _ in range(self.turns):
            labels, others = nearest_pairs(vectors, (first, second), self.beam, weights)
            for _ in range(_MEANS):
                first = centroids(vectors - second[others], labels, weights, first)
                second = centroids(vectors - first[labels], others, weights, second)
        return first, second


def entries_of_each(setting: Setting) -> int:
    """Return how many entries each of two tables has: ``2 ** (bits * group / 2)``.

    Raises
    ------
    BadInput
        If vectors have no length, or a table would have fewer than 2 or more than ``2 ** MOST_BITS`` entries.
    """
    entries = round(2 ** min(setting.bits * setting.group / 2, 64.0))
    if setting.group < 1 or not 2 <= entries <= 2**MOST_BITS:
        raise BadInput(
            f"two codebooks of {setting.bits:g} bits a weight for vectors of {setting.group} have {entries} entries "
            f"each; choose bits and group so that they have 2 to {2**MOST_BITS}"
        )
    return entries


def nearest_pairs(
    vectors: Floats, tables: Tables, beam: int, weights: Floats | None = None
) -> tuple[Integers, Integers]:
    """Return for each vector the entries of two tables whose sum is nearest.

    The first entry is one of the ``beam`` that are nearest alone; with as many as the table has, no pair is left out.

    Parameters
    ----------
    vectors : ndarray of float32, shape ``(count, size)``
    tables : tuple of ndarray of float32, shapes ``(entries, size)``
    weights : ndarray of float32, shape ``(count, size)``, or None

    Returns
    -------
    tuple of ndarray
        Two of int32, shape ``(count,)``.
    """
    first, second = tables
    beam = min(beam, len(first))
    found = np.empty((2, len(vectors)), np.int32)
    step = max(CHUNK // max(len(second) * beam, len(first)), 1)
    for start in range(0, len(vectors), step):
        part = vectors[start : start + step]
        own = None if weights is None else weights[start : start + step]
        alone = _gaps(part, first, own)
        held = np.argpartition(alone, beam - 1, axis=1)[:, :beam]
        left = (part[:, None] - first[held]).reshape(-1, part.shape[1])
        both = _gaps(left, second, None if own is None else np.repeat(own, beam, axis=0))
        both += np.take_along_axis(alone, held, axis=1).reshape(-1, 1)
        place, other = np.divmod(both.reshape(len(part), -1).argmin(1), len(second))
        found[:, start : start + step] = held[np.arange(len(part)), place], other
    return found[0], found[1]


def _gaps(vectors: Floats, table: Floats, weights: Floats | None) -> Floats:
    """Return squared distances to each entry, ``(count, entries)``, less what is the same for all of a vector's."""
    squares = table**2
    if weights is None:
        return np.asarray(vectors @ (-2 * table.T) + squares.sum(1), np.float32)
    return np.asarray(np.hstack([weights * vectors, weights]) @ np.hstack([-2 * table, squares]).T, np.float32)


def look_up(weight: Floats, tables: Tables, factor: Doubles, beam: int) -> tuple[tuple[Integers, Integers], float]:
    """Return the pair of entries for each vector, each chosen and its error passed on before the next.

    Parameters
    ----------
    weight : ndarray of float32, shape ``(rows, columns)``
    tables : tuple of ndarray of float32, shapes ``(entries, size)``
    factor : ndarray of float64, shape ``(columns, columns)``
        From `feedback_factor`.

    Returns
    -------
    tuple of (tuple of ndarray of int32, float)
        Two of shape ``(rows, columns / size)``, and what is lost: the trace in `ResidualCodebook`.
    """
    rows, columns = weight.shape
    first, second = tables
    size = first.shape[1]
    found = np.empty((2, rows, columns // size), np.int32)

    def choose(block: int, vectors: Doubles, metric: Doubles) -> Doubles:
        """Return the sums of the nearest pairs."""
        turned = tuple((matrix @ metric).astype(np.float32) for matrix in (vectors, first, second))
        found[:, :, block] = nearest_pairs(turned[0], (turned[1], turned[2]), beam)
        return np.asarray(first[found[0, :, block]].astype(np.float64) + second[found[1, :, block]])

    lost = in_turn(weight, size, factor, choose)
    return (found[0], found[1]), lost
