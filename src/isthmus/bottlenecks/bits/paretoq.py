"""ParetoQ: one family of quantizers from 4 bits to 1, each width with the form that suits it.

Liu et al. 2025, arXiv 2502.02631. With ``x = w / scale`` the levels are, at

====  ==================  =======================================================
bits  levels              of a weight
====  ==================  =======================================================
1     -1, 1               its sign (elastic binarization)
1.58  -1, 0, 1            ``round(clip(x, -1.5, 1.5))`` (stretched elastic)
2     -1.5, -.5, .5, 1.5  ``floor(clip(x, -2, 2)) + 0.5`` (stretched elastic)
3, 4  -4 to 3, -8 to 7    ``round(clip(x, n, p))``, ``n`` and ``p`` the ends (LSQ)
====  ==================  =======================================================

Here ``scale`` is the distance between levels (at 1 bit half of it); the paper's is that times 1.5 at 1.58 bits and
times 2 at 2 bits. What is trained is in `isthmus.bottlenecks.bits.fake_quantize`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from isthmus.bottlenecks.bits.grid import covering, fitted, groups, peaks, spread, starts
from isthmus.bottlenecks.checks import check_matrix
from isthmus.bottlenecks.coder import Floats, MatrixStatistics, Setting
from isthmus.errors import BadInput
from isthmus.storage.coded import FINENESS, Integers, Uniform

WIDTHS = (4.0, 3.0, 2.0, 1.58, 1.0)


@dataclass(frozen=True)
class ParetoQ:
    """The quantizers of ParetoQ, applied once; training from there on is for others.

    Parameters
    ----------
    fit : bool
        Choose each scale for the least squared error. Otherwise it is where the paper starts training: the mean
        magnitude at 1 bit, what takes in the largest magnitude at the others. Without training that is far from the
        best for 1.58 and 2 bits.
    """

    name: ClassVar[str] = "paretoq"
    slug: ClassVar[str | None] = "paretoq"
    family: ClassVar[str] = "bits"
    needs: ClassVar[frozenset[str]] = frozenset()

    fit: bool = False

    def settings(self, shape: tuple[int, int]) -> tuple[Setting, ...]:
        """Return 4, 3, 2, 1.58 and 1 bits, a scale for each row."""
        return tuple(Setting(bits) for bits in WIDTHS)

    def code(self, weight: Floats, statistics: MatrixStatistics, setting: Setting, *, seed: int = 0) -> Uniform:
        """Return the code of a matrix of shape ``(rows, columns)``.

        Raises
        ------
        BadInput
            If a weight is not a finite number, or the bits are none of the five.
        """
        check_matrix(weight)
        exponents = first_exponents(weight, setting.bits, groups(weight.shape[1], setting.group))
        if self.fit:
            exponents = fitted(weight, exponents, lambda scaled: levels(scaled, setting.bits))
        found = levels(weight / spread(exponents, (weight.shape[0], weight.shape[1])), setting.bits)
        if setting.bits == 2:  # half-integers are odd integers times half a scale
            return Uniform((2 * found).astype(np.int32), (exponents - FINENESS,))
        return Uniform(found.astype(np.int32), (exponents,))


def levels(scaled: Floats, bits: float) -> Floats:
    """Return the level of each weight over its scale; see the table at the head of this file.

    Raises
    ------
    BadInput
        If the bits are none of 4, 3, 2, 1.58 and 1.
    """
    low, high = ends(bits)
    if bits == 1:
        found = np.where(scaled < 0, np.float32(-1), np.float32(1))
    elif bits == 2:
        found = np.clip(np.floor(scaled) + np.float32(0.5), low, high)
    else:
        found = np.clip(np.rint(scaled), low, high)
    return found.astype(np.float32)


def ends(bits: float) -> tuple[float, float]:
    """Return the lowest and the highest level of a width.

    Raises
    ------
    BadInput
        If the bits are none of 4, 3, 2, 1.58 and 1.
    """
    if bits not in WIDTHS:
        raise BadInput(f"setting: {bits:g} bits a weight; choose one of 4, 3, 2, 1.58 and 1")
    if bits >= 3:
        return -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1
    return (-1.5, 1.5) if bits == 2 else (-1.0, 1.0)


def first_exponents(weight: Floats, bits: float, blocks: int) -> Integers:
    """Return exponents of the scales that training starts from, shape ``(rows, blocks)``.

    Raises
    ------
    BadInput
        If the bits are none of 4, 3, 2, 1.58 and 1.
    """
    high = ends(bits)[1]
    if bits == 1:
        first = starts(weight.shape[1], blocks)
        counts = np.diff(np.append(first, weight.shape[1]))
        means = np.add.reduceat(np.abs(weight), first, axis=1) / counts
        return covering(means.astype(np.float32), 1.0)
    if bits < 3:  # the stretched grids reach half a step beyond their outer levels
        return covering(peaks(weight, blocks), high + 0.5, 0.0)
    return covering(peaks(weight, blocks), high)
