"""Noticing that one continuous side is a function of the other: information is then infinite, whatever is computed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from isthmus.information.marginals import standardised
from isthmus.information.result import Side

Floats = npt.NDArray[np.float64]

EXACT = 1e-9
"""Share of a column's variance that a linear fit leaves where it is exact up to rounding."""
DIMS, COLUMNS, SAMPLES = 6, 16, 4000
"""Dimensions in which neighbours are near enough to tell; columns and samples that are looked at, at the most."""
SMALL = 0.05
"""Standard deviations: a residual above this is noise, or cannot be told from it."""


def determined(x: Side, y: Side) -> str | None:
    """Return why information is infinite, or None where nothing says so.

    Looked for: a column that both share; and, both ways, one that is a linear function of the other side, up to
    rounding, or, where the other side has at most 6 dimensions, one whose residual from a plane through the nearest
    neighbours shrinks with the samples as that of a smooth function does. Noise stays as large as it is however many
    samples there are. A function of more dimensions that bends is not noticed.
    """
    if "discrete" in (x.kind, y.kind):
        return None
    shared = _equal(x, y)
    if shared.any():
        one, same = np.argwhere(shared)[0]
        return f"column {same} of y is column {one} of x"
    left, right = (standardised(side.values) for side in (x, y))
    for name, other, given, target in (("y", "x", left, right), ("x", "y", right, left)):
        column = _linear(given, target)
        if column is not None:
            return f"column {column} of {name} is a linear function of {other}"
        column = _smooth(given, target)
        if column is not None:
            return f"column {column} of {name} is a smooth function of {other}"
    return None


def _equal(x: Side, y: Side) -> npt.NDArray[np.bool_]:
    return np.array([[bool((left == right).all()) for right in y.values.T] for left in x.values.T])


def _linear(given: Floats, target: Floats) -> int | None:
    if len(given) < 2 * given.shape[1] + 10:
        return None
    fitted = given @ np.linalg.lstsq(given, target, rcond=None)[0]
    left = np.square(target - fitted).mean(0)
    return int(left.argmin()) if left.min() < EXACT else None


def _smooth(given: Floats, target: Floats) -> int | None:
    dims = given.shape[1]
    if dims > DIMS or len(given) < 200:
        return None
    given, target = given[:SAMPLES], target[:SAMPLES, :COLUMNS]
    size = 2 * dims + 4
    fine, near = _residuals(given, target, size)
    coarse, far = _residuals(given[::4], target[::4], size)
    # A smooth function leaves a residual of the order of the squared distance to the neighbours.
    shrinks = np.log(np.maximum(fine, 1e-15) / np.maximum(coarse, 1e-15)) < 1.2 * np.log(near / far)
    found = np.flatnonzero((fine < SMALL) & (shrinks | (fine < 1e-7)))
    return int(found[0]) if len(found) else None


def _residuals(given: Floats, target: Floats, size: int) -> tuple[Floats, float]:
    distances, places = cKDTree(given).query(given, k=size + 1)
    places, own = places[:, 1:], given[:, None]
    design = np.concatenate([np.ones((*places.shape, 1)), given[places] - own], 2)
    ridge = 1e-12 * np.eye(design.shape[2])
    normal = design.transpose(0, 2, 1) @ design
    normal = normal + ridge * np.trace(normal, axis1=1, axis2=2)[:, None, None]
    solved = np.linalg.solve(normal, design.transpose(0, 2, 1) @ target[places])
    return np.median(np.abs(target - solved[:, 0]), 0), max(float(np.median(distances[:, -1])), 1e-300)
