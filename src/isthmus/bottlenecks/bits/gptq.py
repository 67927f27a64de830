"""GPTQ: columns are rounded one after another, and what each loses is made good by those still to come.

Frantar et al. 2022, arXiv 2210.17323. The second-order information of a linear map is that of its inputs, the same for
all rows, so all rows are rounded at once and the inverse of the Hessian is needed only as its Cholesky factor.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np

from isthmus.bottlenecks.bits.grid import (
    checked_moments,
    clipping,
    covering,
    fitted,
    groups,
    peaks,
    rounded,
    starts,
    top_of,
)
from isthmus.bottlenecks.checks import check_matrix
from isthmus.bottlenecks.coder import Floats, MatrixStatistics, Setting
from isthmus.bottlenecks.feedback import damped, feedback_factor
from isthmus.storage.coded import Integers, Uniform, scale_of


@dataclass(frozen=True)
class Gptq:
    """Rounding column by column with error feedback, in the columns' own order.

    Parameters
    ----------
    damping : float
        Share of the Hessian's mean diagonal that is added to its diagonal.
    fit : bool
        Choose each scale for the least squared error, large weights clipped; otherwise it reaches the largest weight.
        What feedback pushes beyond the grid is clipped in either case.
    """

    name: ClassVar[str] = "gptq"
    slug: ClassVar[str | None] = None
    family: ClassVar[str] = "bits"
    needs: ClassVar[frozenset[str]] = frozenset({"moments"})

    damping: float = 0.01
    fit: bool = True

    def settings(self, shape: tuple[int, int]) -> tuple[Setting, ...]:
        """Return 8 to 2 bits, a scale for each row."""
        return tuple(Setting(bits) for bits in (8, 6, 5, 4, 3, 2))

    def code(self, weight: Floats, statistics: MatrixStatistics, setting: Setting, *, seed: int = 0) -> Uniform:
        """Return the code of a matrix of shape ``(rows, columns)``; without moments, by rounding to the nearest.

        Raises
        ------
        BadInput
            If a weight is not a finite number, or moments are not those of inputs of this matrix.
        """
        check_matrix(weight)
        top = top_of(setting)
        blocks = groups(weight.shape[1], setting.group)
        moments = checked_moments(statistics, weight.shape[1])
        if moments is None:
            exponents = grid(weight, blocks, top, fit=self.fit)
            return Uniform(rounded(weight, exponents, top), (exponents,))
        importance = np.diag(moments).astype(np.float32)
        exponents = grid(weight, blocks, top, importance, fit=self.fit)
        factor = feedback_factor(damped(moments, self.damping)).astype(np.float32)
        integers, exponents = round_with_feedback(weight, factor, exponents, top, importance, fit=self.fit)
        return Uniform(integers, (exponents,))


def grid(weight: Floats, blocks: int, top: int, importance: Floats | None = None, *, fit: bool = True) -> Integers:
    """Return exponents of the scales of each row and group, shape ``(rows, blocks)``."""
    exponents = covering(peaks(weight, blocks), top)
    return fitted(weight, exponents, clipping(top), importance) if fit else exponents


def round_with_feedback(
    weight: Floats,
    factor: Floats,
    exponents: Integers,
    top: int,
    importance: Floats | None = None,
    *,
    fit: bool = True,
    width: int = 64,
) -> tuple[Integers, Integers]:
    """Return the integers of a matrix, each column rounded after it took its share of earlier errors, and exponents.

    Parameters
    ----------
    weight : ndarray of float32, shape ``(rows, columns)``
    factor : ndarray of float32, shape ``(columns, columns)``
        From `feedback_factor`.
    exponents : ndarray of int32, shape ``(rows, groups)``
        Where there are several groups, each column of exponents is set anew when its group is reached, for the weights
        as they are by then.
    top : int
        The largest integer.
    width : int
        Columns that are fed at once; those to their right wait, and get all of their errors in one product.
    """
    rows, columns = weight.shape
    work = np.array(weight.T, dtype=np.float32, order="C")  # a column's weights lie side by side
    integers, exponents = np.empty((columns, rows), dtype=np.int32), exponents.copy()
    first = [*starts(columns, exponents.shape[1]).tolist(), columns]
    for number, (begin, end) in enumerate(pairwise(first)):
        if len(first) > 2:
            own = None if importance is None else importance[begin:end]
            exponents[:, number] = grid(np.ascontiguousarray(work[begin:end].T), 1, top, own, fit=fit)[:, 0]
        scale = scale_of(exponents[:, number])
        for start in range(begin, end, width):
            stop = min(start + width, end)
            errors = np.empty((stop - start, rows), dtype=np.float32)
            for column in range(start, stop):
                levels = np.clip(np.rint(work[column] / scale), -top, top)
                integers[column] = levels
                error = (work[column] - levels * scale) / factor[column, column]
                work[column + 1 : stop] -= factor[column, column + 1 : stop, None] * error
                errors[column - start] = error
            work[stop:] -= factor[start:stop, stop:].T @ errors
    return np.ascontiguousarray(integers.T), exponents
