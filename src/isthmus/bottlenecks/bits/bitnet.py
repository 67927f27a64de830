"""BitNet b1.58: weights of minus one, zero and one, scaled by how large a weight of the matrix usually is.

Nielsen and Schneider-Kamp 2024 (BitNet b1.58 Reloaded, arXiv 2407.09527) take the median of the magnitudes, Ma et al.
2024 (arXiv 2402.17764) their mean. Both train with it; this is what such training starts from and ends with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from isthmus.bottlenecks.bits.grid import covering, rounded
from isthmus.bottlenecks.checks import check_matrix
from isthmus.bottlenecks.coder import Floats, MatrixStatistics, Setting
from isthmus.errors import BadInput
from isthmus.storage.coded import Uniform

TERNARY = 1.58


@dataclass(frozen=True)
class BitNet:
    """Ternary weights with one scale for the whole matrix.

    Parameters
    ----------
    mean : bool
        Take the mean of the magnitudes instead of their median.
    """

    name: ClassVar[str] = "bitnet"
    slug: ClassVar[str | None] = "bitnet-b158-reloaded"
    family: ClassVar[str] = "bits"
    needs: ClassVar[frozenset[str]] = frozenset()

    mean: bool = False

    def settings(self, shape: tuple[int, int]) -> tuple[Setting, ...]:
        """Return the one setting: 1.58 bits, a scale for the matrix."""
        return (Setting(TERNARY),)

    def code(self, weight: Floats, statistics: MatrixStatistics, setting: Setting, *, seed: int = 0) -> Uniform:
        """Return the code of a matrix of shape ``(rows, columns)``.

        Raises
        ------
        BadInput
            If a weight is not a finite number, or the setting has other than 1.58 bits or has groups.
        """
        check_matrix(weight)
        if setting.bits != TERNARY or setting.group:
            raise BadInput(f"setting: {setting.bits:g} bits, group {setting.group}; ternary weights take 1.58 bits, 0")
        return median_ternary(weight, mean=self.mean)


def median_ternary(weight: Floats, *, mean: bool = False) -> Uniform:
    """Return a matrix as -1, 0 and 1 times the median of its magnitudes: ``clip(round(w / scale), -1, 1)``.

    Parameters
    ----------
    weight : ndarray of float32, shape ``(rows, columns)``
    mean : bool
        Take their mean; so it is too where the median is zero and would leave nothing. The scale is the nearest 16th
        of an octave.
    """
    magnitudes = np.abs(weight)
    scale = 0.0 if mean else float(np.median(magnitudes))
    scale = scale or float(magnitudes.mean())
    exponents = covering(np.full((1, 1), scale, dtype=np.float32), 1.0)
    return Uniform(rounded(weight, exponents, 1), (exponents,))
