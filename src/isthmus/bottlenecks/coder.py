"""Coders: what turns a weight matrix into a code of fewer bits; one interface for bits, codebooks and rank."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from isthmus.relevance.sensitivity import Sensitivity
from isthmus.storage.coded import Coded

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Setting:
    """How coarse a code is.

    Parameters
    ----------
    bits : float
        Bits a weight (of a factor, where ``rank`` is given), before entropy coding and without scales and tables.
    group : int
        Columns that share a scale, or the length of a codebook's vectors; 0: the coder's own choice.
    rank : int
        The inner dimension of a product of two factors; 0: no product.
    """

    bits: float
    group: int = 0
    rank: int = 0


@dataclass(frozen=True)
class MatrixStatistics:
    """What is known about a matrix besides its weights.

    Parameters
    ----------
    sensitivity : Sensitivity
        What an error in each weight costs, to second order: a factor of rows times a factor of columns.
    moments : ndarray of float32 or None, shape ``(columns, columns)``
        The mean of ``x xᵀ`` over the vectors ``x`` that enter the linear map; None for an embedding, whose rows are
        looked up one at a time.
    """

    sensitivity: Sensitivity
    moments: Floats | None = field(default=None, repr=False)


class Coder(Protocol):
    """Codes a matrix at a setting. A frozen dataclass, one file each, without state."""

    name: ClassVar[str]
    slug: ClassVar[str | None]
    family: ClassVar[str]
    needs: ClassVar[frozenset[str]]
    """Statistics that it looks at: of ``sensitivity`` and ``moments``."""

    def settings(self, shape: tuple[int, int]) -> tuple[Setting, ...]:
        """Return the settings that a matrix of this shape can be coded at, finest first."""

    def code(self, weight: Floats, statistics: MatrixStatistics, setting: Setting, *, seed: int = 0) -> Coded:
        """Return the code of a matrix of shape ``(rows, columns)``.

        Raises
        ------
        BadInput
            If a weight is not a finite number.
        """
