"""LLM.int8(): the few input columns that carry large activations are kept apart, the rest is rounded to 8 bits.

Dettmers et al. 2022, arXiv 2208.07339. The paper takes a column for an outlier where an activation exceeds 6; here it
is one whose root mean square exceeds 6 times the median column's, since networks differ in scale. Only weights are
coded: activations stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from isthmus.bottlenecks.bits.grid import checked_moments, covering, groups, peaks, rounded, top_of
from isthmus.bottlenecks.checks import check_matrix
from isthmus.bottlenecks.coder import Floats, MatrixStatistics, Setting
from isthmus.errors import BadInput
from isthmus.storage.coded import Outliers, Uniform

_LARGEST_HALF = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class OutlierSplit:
    """Rows rounded to the nearest with a scale each; columns of outliers in float16.

    A weight kept apart takes about four bytes, two of them for its place, and its integer is a zero that costs next to
    nothing.

    Parameters
    ----------
    threshold : float
        Times the median column's root mean square activation.
    most : float
        Share of the columns that may be kept apart, the strongest first, one always being allowed.
    """

    name: ClassVar[str] = "llm-int8"
    slug: ClassVar[str | None] = "llm-int8"
    family: ClassVar[str] = "bits"
    needs: ClassVar[frozenset[str]] = frozenset({"moments"})

    threshold: float = 6.0
    most: float = 0.01

    def settings(self, shape: tuple[int, int]) -> tuple[Setting, ...]:
        """Return 8 bits, as in the paper, and fewer."""
        return tuple(Setting(bits) for bits in (8, 6, 5, 4, 3))

    def code(self, weight: Floats, statistics: MatrixStatistics, setting: Setting, *, seed: int = 0) -> Uniform:
        """Return the code of a matrix of shape ``(rows, columns)``; without moments no column is kept apart.

        Raises
        ------
        BadInput
            If a weight is not a finite number, one kept apart is too large for float16, or moments are not those of
            inputs of this matrix.
        """
        check_matrix(weight)
        top = top_of(setting)
        rows, columns = weight.shape
        moments = checked_moments(statistics, columns)
        apart = np.zeros(0, dtype=np.int64)
        if moments is not None:
            apart = outlier_columns(np.sqrt(np.maximum(np.diag(moments), 0)), self.threshold, self.most)
        rest = weight.copy()
        rest[:, apart] = 0
        exponents = covering(peaks(rest, groups(columns, setting.group)), top)
        integers = rounded(rest, exponents, top)
        if not len(apart):
            return Uniform(integers, (exponents,))
        values = weight[:, apart]
        if np.abs(values).max() > _LARGEST_HALF:
            raise BadInput(
                f"a weight of {float(np.abs(values).max()):.3g} does not fit float16; divide the matrix before"
            )
        places = (np.arange(rows, dtype=np.int64)[:, None] * columns + apart).ravel()
        return Uniform(integers, (exponents,), outliers=Outliers(places, values.ravel().astype(np.float16)))


def outlier_columns(magnitudes: npt.NDArray[np.float64], threshold: float, most: float) -> npt.NDArray[np.int64]:
    """Return the columns whose activations are far above the rest, rising.

    Parameters
    ----------
    magnitudes : ndarray, shape ``(columns,)``
        Root mean squares of the activations.
    threshold, most
        As in `OutlierSplit`.
    """
    far = np.flatnonzero(magnitudes > threshold * np.median(magnitudes))
    count = max(1, int(most * len(magnitudes)))
    return np.sort(far[np.argsort(-magnitudes[far], kind="stable")[:count]])
