"""Rate-distortion-optimal rounding: steps as fine as a weight is sensitive, integers chosen for error and bits at once.

DeepCABAC (Wiedemann et al. 2020) minimises ``importance * error**2 + lambda * bits`` weight by weight. Here the step of
a weight is ``step / sqrt(rows[i] * columns[j])``, which is optimal where rates are high: every weight then loses the
same ``step**2 / 24`` nats, and one number sets the rate of a whole network.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from isthmus.bottlenecks.checks import check_matrix
from isthmus.bottlenecks.coder import MatrixStatistics, Setting
from isthmus.relevance.sensitivity import Sensitivity
from isthmus.storage.coded import MOST, Integers, Uniform, exponents_of, scale_of

Floats = npt.NDArray[np.float32]

PASSES = 2
SLOPE = 2 * np.log(2) / 12
"""Where rates are high, a bit saves this many squared steps of error: the price of a bit in such units."""
_FLOOR = 1e-4
"""Factors count as no less than this share of their mean: a row that never mattered here may matter elsewhere."""
_NORMAL = 0.5 * math.log2(2 * math.pi * math.e)
"""Bits of a normal variable of variance 1 in steps of 1."""


@dataclass(frozen=True)
class DeepCabac:
    """Uniform steps that follow sensitivity, integers rounded for rate and distortion, entropy coded.

    Parameters
    ----------
    slope : float
        What a bit is worth, in squared steps; 0 rounds to nearest. What rounding towards zero loses adds up over the
        weights of a matrix, which the second order does not see, so the worth at high rates (`SLOPE`) is too much.
    tempering : float
        Power of the sensitivity that steps follow; 1 trusts it, 0 gives every weight of a matrix the same step.
    """

    name: ClassVar[str] = "deepcabac"
    slug: ClassVar[str | None] = "deepcabac"
    family: ClassVar[str] = "bits"
    needs: ClassVar[frozenset[str]] = frozenset({"sensitivity"})
    continuous: ClassVar[bool] = True
    slope: float = 0.0
    tempering: float = 0.5

    def settings(self, shape: tuple[int, int]) -> tuple[Setting, ...]:
        """Return 6 to 0.5 bits in halves; any number of bits in between will do."""
        return tuple(Setting(half / 2) for half in range(12, 0, -1))

    def code(self, weight: Floats, statistics: MatrixStatistics, setting: Setting, *, seed: int = 0) -> Uniform:
        """Return the code whose integers take about ``setting.bits`` each once entropy coded."""
        check_matrix(weight)
        down, across = self.scales(weight, statistics, setting)
        return quantize(weight, down, across, slope=self.slope)

    def scales(self, weight: Floats, statistics: MatrixStatistics, setting: Setting) -> tuple[Integers, Integers]:
        """Return the exponents of the steps of rows and columns, shapes ``(rows, 1)`` and ``(1, columns)``."""
        own = statistics.sensitivity
        rows, columns = tempered(own.rows, self.tempering), tempered(own.columns, self.tempering)
        step = step_for(weight, rows, columns, setting.bits)
        return exponents_of(step / np.sqrt(rows))[:, None], exponents_of(1 / np.sqrt(columns))[None, :]


def step_for(weight: Floats, rows: npt.NDArray[np.float64], columns: npt.NDArray[np.float64], bits: float) -> float:
    """Return the step at which normal weights of this size would take ``bits`` each, by the rate at high resolution."""
    size = math.log2(max(float(np.sqrt(np.mean(weight.astype(np.float64) ** 2))), 1e-12))
    fineness = 0.5 * float(np.log2(rows).mean() + np.log2(columns).mean())
    return float(2 ** (size + fineness + _NORMAL - bits))


def steps(sensitivity: Sensitivity, step: float, tempering: float = 1.0) -> tuple[Integers, Integers]:
    """Return the exponents of rows and columns that make every weight lose ``step**2 / 24`` nats."""
    down = exponents_of(step / np.sqrt(tempered(sensitivity.rows, tempering)))[:, None]
    across = exponents_of(1 / np.sqrt(tempered(sensitivity.columns, tempering)))[None, :]
    return down, across


def quantize(weight: Floats, down: Integers, across: Integers, *, slope: float = SLOPE) -> Uniform:
    """Return a matrix as integers times scales.

    Parameters
    ----------
    weight : ndarray of float32, shape ``(rows, columns)``
    down, across : ndarray of int32, shapes ``(rows, 1)`` and ``(1, columns)``
        Exponents of the steps, see ``storage.coded``.
    slope : float
        What a bit is worth, in squared steps; 0 rounds to nearest.
    """
    exact = np.clip(weight / scale_of(down) / scale_of(across), -MOST, MOST)
    integers = np.rint(exact).astype(np.int32)
    for _ in range(PASSES if slope > 0 else 0):
        integers = cheaper(exact, integers, slope)
    return Uniform(integers, (down, across))


def tempered(factor: npt.NDArray[np.float64], power: float) -> npt.NDArray[np.float64]:
    """Return a factor of sensitivity, kept from vanishing and raised to a power, its mean unchanged."""
    mean = float(factor.mean()) or 1.0
    return np.asarray(mean * np.maximum(factor / mean, _FLOOR) ** power)


def cheaper(exact: Floats, integers: npt.NDArray[np.int32], slope: float) -> npt.NDArray[np.int32]:
    """Return for each weight the nearest integer or the next one towards zero, whichever costs less with its bits."""
    low = int(integers.min())
    counts = np.bincount((integers - low).ravel(), minlength=2) + 0.5
    bits = (np.log2(counts.sum()) - np.log2(counts)).astype(np.float32)
    nearest = np.rint(exact).astype(np.int32)
    closer = nearest - np.sign(nearest)
    price = slope * bits
    top = len(bits) - 1
    first = (exact - nearest) ** 2 + price[np.clip(nearest - low, 0, top)]
    second = (exact - closer) ** 2 + price[np.clip(closer - low, 0, top)]
    return np.where(second < first, closer, nearest).astype(np.int32)
