"""COMQ: coordinate descent on the error of a linear map's outputs, over integers and scales in turn.

Zhang et al. 2024, arXiv 2403.07134. For a row of weights ``w`` with integers ``q`` and scale ``s`` the error is
``(w - s q)ᵀ H (w - s q)``, ``H`` the moments of the inputs. In one integer it is a parabola, so the best integer is its
vertex, rounded and clipped; in the scale it is one too. The first sweep starts from weights that are not yet rounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from isthmus.bottlenecks.bits.grid import (
    LEAST,
    MOST,
    checked_moments,
    clipping,
    covering,
    fitted,
    no_group,
    peaks,
    rounded,
    top_of,
)
from isthmus.bottlenecks.checks import check_matrix
from isthmus.bottlenecks.coder import Floats, MatrixStatistics, Setting
from isthmus.errors import BadInput
from isthmus.storage.coded import Integers, Uniform, exponents_of, scale_of


@dataclass(frozen=True)
class Comq:
    """Coordinate descent without gradients, a scale for each row.

    Parameters
    ----------
    order : {"greedy", "cyclic"}
        Greedy: in each row the weights with the largest share of the outputs, ``|w_j| sqrt(H_jj)``, come first;
        cyclic: from left to right.
    sweeps : int
        Times that every integer, and then the scale, is set anew.

    Raises
    ------
    BadInput
        If the order is another, or there is no sweep.
    """

    name: ClassVar[str] = "comq"
    slug: ClassVar[str | None] = "comq"
    family: ClassVar[str] = "bits"
    needs: ClassVar[frozenset[str]] = frozenset({"moments"})

    order: Literal["greedy", "cyclic"] = "greedy"
    sweeps: int = 3

    def __post_init__(self) -> None:
        if self.order not in ("greedy", "cyclic") or self.sweeps < 1:
            raise BadInput(
                f"order {self.order!r}, {self.sweeps} sweeps; choose greedy or cyclic, and at least one sweep"
            )

    def settings(self, shape: tuple[int, int]) -> tuple[Setting, ...]:
        """Return 8 to 2 bits."""
        return tuple(Setting(bits) for bits in (8, 6, 5, 4, 3, 2))

    def code(self, weight: Floats, statistics: MatrixStatistics, setting: Setting, *, seed: int = 0) -> Uniform:
        """Return the code of a matrix of shape ``(rows, columns)``; without moments the errors of weights count alike.

        Raises
        ------
        BadInput
            If a weight is not a finite number, moments are not those of inputs of this matrix, or groups are asked for.
        """
        check_matrix(weight)
        no_group(setting, self.name)
        top = top_of(setting)
        moments = checked_moments(statistics, weight.shape[1])
        importance = None if moments is None else np.diag(moments).astype(np.float32)
        exponents = fitted(weight, covering(peaks(weight, 1), top), clipping(top), importance)[:, 0]
        if moments is None:
            for _ in range(self.sweeps):
                integers = rounded(weight, exponents[:, None], top)
                exponents = rescaled(exponents, (integers * weight).sum(1), np.square(integers).sum(1))
            return Uniform(rounded(weight, exponents[:, None], top), (exponents[:, None],))
        hessian = moments.astype(np.float32)
        places = visits(weight, hessian, self.order)
        levels = weight / scale_of(exponents)[:, None]
        for _ in range(self.sweeps):
            levels = sweep(weight, hessian, exponents, levels, places, top)
            felt = levels @ hessian
            exponents = rescaled(exponents, (felt * weight).sum(1), (felt * levels).sum(1))
        return Uniform(levels.astype(np.int32), (exponents[:, None],))


def visits(weight: Floats, hessian: Floats, order: Literal["greedy", "cyclic"]) -> npt.NDArray[np.int64]:
    """Return the columns of each row in the order that they are visited in, shape ``(rows, columns)``."""
    if order == "cyclic":
        return np.broadcast_to(np.arange(weight.shape[1]), weight.shape)
    return np.argsort(-np.abs(weight) * np.sqrt(np.diag(hessian)), axis=1, kind="stable")


def sweep(
    weight: Floats,
    hessian: Floats,
    exponents: Integers,
    levels: Floats,
    places: npt.NDArray[np.int64],
    top: int,
    width: int = 0,
) -> Floats:
    """Return the levels after each was set, in its turn, to the integer with the least error of the row's output.

    Parameters
    ----------
    weight : ndarray of float32, shape ``(rows, columns)``
    hessian : ndarray of float32, shape ``(columns, columns)``
    exponents : ndarray of int32, shape ``(rows,)``
    levels : ndarray of float32, shape ``(rows, columns)``
        Where the sweep starts.
    places : ndarray of int, shape ``(rows, columns)``
        From `visits`.
    top : int
        The largest integer.
    width : int
        Visits between two products with the whole Hessian, 0: a choice that is fast; the result is the same.
    """
    rows, columns = weight.shape
    scale = scale_of(exponents)
    width = width or int(np.clip(columns // 12, 16, 128))
    levels = levels.astype(np.float32)
    every = np.arange(rows)
    flat = hessian.ravel()
    for start in range(0, columns, width):
        turn = places[:, start : start + width]
        # Of the errors' products with the Hessian only the entries of this turn are kept up to date.
        slope = np.take_along_axis((weight - levels * scale[:, None]) @ hessian, turn, axis=1)
        for step in range(turn.shape[1]):
            own = turn[:, step]
            curve = flat[own * columns + own]
            held = levels[every, own]
            moved = np.divide(slope[:, step], curve * scale, out=np.zeros(rows, dtype=np.float32), where=curve > 0)
            found = np.clip(np.rint(held + moved), -top, top)
            levels[every, own] = found
            later = turn[:, step + 1 :]
            slope[:, step + 1 :] -= ((found - held) * scale)[:, None] * flat[(own * columns)[:, None] + later]
    return levels


def rescaled(exponents: Integers, cross: npt.NDArray[np.floating], square: npt.NDArray[np.floating]) -> Integers:
    """Return the exponents nearest to the scales of least error, or those that were held where they are better.

    The error of a row is ``square * s ** 2 - 2 * cross * s`` and a constant, ``cross = qᵀ H w``, ``square = qᵀ H q``.
    """
    best = np.divide(cross, square, out=np.zeros(len(exponents)), where=square > 0)
    found = np.clip(exponents_of(np.maximum(best, 2.0**-60)), LEAST, MOST).astype(np.int32)
    closer = np.abs(scale_of(found) - best) < np.abs(scale_of(exponents) - best)
    return np.where(closer & (best > 0), found, exponents)
