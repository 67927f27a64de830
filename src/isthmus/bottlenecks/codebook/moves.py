"""Steps on a code along a derivative: of what the codes stand for, or of a few codes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from isthmus.storage.coded import FINENESS, Codebook, Uniform, block_size, decode, scale_of, stretch

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]

_PER_EXPONENT = np.log(2) / FINENESS
"""By what share a weight grows as the exponent of its scale rises by one."""
_LARGEST_HALF = float(np.finfo(np.float16).max)
_SHORTLIST = 4
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Move:
    """Codes to change: ``places`` in the flattened codes, and their new ``values``, by falling predicted gain."""

    places: npt.NDArray[np.int64]
    values: Integers

    @property
    def count(self) -> int:
        """How many codes change."""
        return len(self.places)


def apply(coded: Uniform | Codebook, move: Move) -> Uniform | Codebook:
    """Return a code with some of its integers or indices changed."""
    codes = (coded.integers if isinstance(coded, Uniform) else coded.indices).copy()
    codes.flat[move.places] = move.values
    return replace(coded, integers=codes) if isinstance(coded, Uniform) else replace(coded, indices=codes)


def shifted(coded: Uniform | Codebook, slope: Floats, curvature: Floats, length: float) -> Uniform | Codebook:
    """Return a code whose tables and scales moved as near as they can to ``weight - length * slope / curvature``.

    For each number that is shared, the least-squares step over the weights that share it, each counted by its
    curvature. Where both tables and scales could make the same move, half each. Exponents move by whole numbers.

    Parameters
    ----------
    slope, curvature : ndarray of float32, shape ``(rows, columns)``
        The derivative of the loss by the weights, and how steeply it changes, up to a factor.
    length : float
    """
    kinds = len(coded.scales) + isinstance(coded, Codebook)
    push = -slope * (length / max(kinds, 1))
    weight = decode(replace(coded, outliers=None))
    scales = tuple(grid + _exponent_steps(grid.shape, weight, push, curvature) for grid in coded.scales)
    if isinstance(coded, Uniform):
        return replace(coded, scales=scales)
    down, across, entries, size = coded.tables.shape
    places = _flat_entries(coded).ravel()
    scale = _scale(coded).reshape(-1, size)
    pushes, curvatures = push.reshape(-1, size), curvature.reshape(-1, size)
    steps = np.zeros((down * across * entries, size))
    for axis in range(size):
        mass = np.bincount(places, curvatures[:, axis] * scale[:, axis] ** 2, minlength=len(steps))
        total = np.bincount(places, scale[:, axis] * pushes[:, axis], minlength=len(steps))
        steps[:, axis] = total / np.maximum(mass, np.finfo(np.float32).tiny)
    tables = coded.tables.astype(np.float64) + steps.reshape(coded.tables.shape)
    return replace(coded, tables=tables.clip(-_LARGEST_HALF, _LARGEST_HALF).astype(np.float16), scales=scales)


def likely_moves(coded: Uniform | Codebook, slope: Floats, curvature: Floats, length: float, count: int) -> Move:
    r"""Return at most ``count`` changes of codes, those with the largest predicted gain.

    A change of weights ``d`` is predicted to lower the loss by
    :math:`-\sum_{ij} g_{ij} d_{ij} - \sum_{ij} c_{ij} d_{ij}^2 / (2\, length)`, with ``c`` the curvature. Only the
    codes with the largest :math:`g^2 / c` are looked at, four times as many as may change.

    Parameters
    ----------
    slope, curvature : ndarray of float32, shape ``(rows, columns)``
    length : float
        Of a gradient step: how far the model is trusted.
    """
    if isinstance(coded, Uniform):
        values, gains, places = _uniform_moves(coded, slope, curvature / length, count)
    else:
        values, gains, places = _codebook_moves(coded, slope, curvature / length, count)
    order = np.argsort(-gains, kind="stable")
    order = order[gains[order] > 0][:count]
    return Move(places[order], values[order].astype(np.int32))


def _uniform_moves(
    coded: Uniform, slope: Floats, curvature: Floats, count: int
) -> tuple[Integers, Floats, npt.NDArray[np.int64]]:
    places = _largest((slope**2 / curvature).ravel(), count)
    scale, slopes, curvatures = (grid.ravel()[places] for grid in (_scale(coded), slope, curvature))
    integers = coded.integers.ravel()[places]
    # No further than the range that is there: the alphabet stays as it is.
    aim = np.clip(-slopes / curvatures / scale, -(2**20), 2**20)
    values = np.clip(np.rint(integers + aim), coded.integers.min(), coded.integers.max()).astype(np.int32)
    steps = scale * (values - integers)
    return values, -slopes * steps - curvatures * steps**2 / 2, places


def _codebook_moves(
    coded: Codebook, slope: Floats, curvature: Floats, count: int
) -> tuple[Integers, Floats, npt.NDArray[np.int64]]:
    down, across, entries, size = coded.tables.shape
    slopes, curvatures = slope.reshape(-1, size), curvature.reshape(-1, size)
    places = _largest((slopes**2 / curvatures).sum(1), count)
    scale = _scale(coded).reshape(-1, size)
    own = _flat_entries(coded).ravel()[places]
    tables = coded.tables.reshape(down * across, entries, size).astype(np.float32)
    values = np.empty(len(places), np.int32)
    gains = np.empty(len(places), np.float32)
    step = max(_CHUNK // (entries * size), 1)
    for start in range(0, len(places), step):
        part = slice(start, start + step)
        block, entry = np.divmod(own[part], entries)
        moved = (tables[block] - tables[block, entry][:, None]) * scale[places[part]][:, None]
        gain = -np.einsum("nes,ns->ne", moved, slopes[places[part]])
        gain -= np.einsum("nes,ns->ne", moved**2, curvatures[places[part]] / 2)
        values[part] = gain.argmax(1)
        gains[part] = gain.max(1)
    return values, gains, places


def _largest(promise: Floats, count: int) -> npt.NDArray[np.int64]:
    held = min(_SHORTLIST * count, len(promise))
    return np.sort(np.argpartition(-promise, held - 1)[:held]).astype(np.int64)


def _exponent_steps(grid: tuple[int, ...], weight: Floats, push: Floats, curvature: Floats) -> Integers:
    lever = weight * np.float32(_PER_EXPONENT)
    total, mass = _summed(lever * push, grid), _summed(curvature * lever**2, grid)
    steps = np.divide(total, mass, out=np.zeros_like(total), where=mass > 0)
    whole: Integers = np.rint(np.clip(steps, -FINENESS, FINENESS)).astype(np.int32)
    return whole


def _summed(matrix: Floats, grid: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Return the sum over each block of a grid: the transpose of `stretch`."""
    total = matrix.astype(np.float64)
    for axis, held in enumerate(grid):
        wanted = total.shape[axis]
        starts = np.arange(0, wanted, block_size(wanted, held))
        padding = held - len(starts)
        total = np.add.reduceat(total, starts, axis=axis)
        if padding:
            total = np.concatenate([total, np.zeros_like(total.take(range(padding), axis=axis))], axis=axis)
    return total


def _scale(coded: Uniform | Codebook) -> Floats:
    scale = np.ones(coded.shape, np.float32)
    for grid in coded.scales:
        scale *= stretch(scale_of(grid), coded.shape)
    return scale


def _flat_entries(coded: Codebook) -> npt.NDArray[np.int64]:
    """Return for each vector the row of all tables stacked that it is looked up in."""
    down, across, entries, _ = coded.tables.shape
    block = np.arange(down * across, dtype=np.int64).reshape(down, across) * entries
    rows, columns = coded.indices.shape
    return np.asarray(stretch(block, (rows, columns)) + coded.indices, dtype=np.int64)
