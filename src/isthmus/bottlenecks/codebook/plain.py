"""Product quantization: the baseline that the other codebooks are held against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from isthmus.bottlenecks.codebook.kmeans import kmeans
from isthmus.bottlenecks.codebook.vectors import codebook, cut, entries_of, offered
from isthmus.bottlenecks.coder import MatrixStatistics, Setting
from isthmus.storage.coded import Codebook


@dataclass(frozen=True)
class PlainCodebook:
    """Vectors along the rows, one table a matrix, by k-means without weights.

    Product quantization (Jégou, Douze and Schmid 2011) of a weight matrix (Gong et al. 2014), with one table for all
    the parts of a row. Takes ``log2(entries) / group`` bits a weight before entropy coding.

    Parameters
    ----------
    rounds : int
        Of Lloyd's algorithm.
    """

    name: ClassVar[str] = "codebook"
    slug: ClassVar[str | None] = None
    family: ClassVar[str] = "vector-quantization"
    needs: ClassVar[frozenset[str]] = frozenset()

    rounds: int = 20

    def settings(self, shape: tuple[int, int]) -> tuple[Setting, ...]:
        """Return the settings whose tables pay for themselves, finest first; none for a very small matrix."""
        return offered(shape)

    def code(
        self, weight: npt.NDArray[np.float32], statistics: MatrixStatistics, setting: Setting, *, seed: int = 0
    ) -> Codebook:
        """Return the code of a matrix of shape ``(rows, columns)``.

        Raises
        ------
        BadInput
            If a weight is not a finite number, or the setting's vectors do not fill the columns.
        """
        entries = entries_of(setting)
        vectors, exponents = cut(weight, setting.group)
        table, labels = kmeans(vectors, entries, rounds=self.rounds, seed=seed)
        return codebook(table, labels, exponents, len(weight))
