"""Gram matrices of a Gaussian kernel, for the two estimators that are built on them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist

from isthmus.information.marginals import standardised
from isthmus.information.result import Side

Floats = npt.NDArray[np.float64]


def silverman(samples: int, dims: int) -> float:
    """Return the width of a kernel for standardised data (Silverman 1986, equation 4.14): shrinks with the samples."""
    return float((4 / (samples * (dims + 2))) ** (1 / (dims + 4)))


def gram(side: Side, width: float | None) -> Floats:
    """Return ``exp(-|a - b|^2 / 2 width^2)`` of standardised samples, shape ``(samples, samples)``.

    Distances are divided by the square root of the dimensions, so that a width means the same in every space. Symbols
    are alike (1) or not (0).
    """
    if side.kind == "discrete":
        return np.asarray(side.symbols[:, None] == side.symbols, dtype=np.float64)
    values = standardised(side.values) / np.sqrt(side.values.shape[1])
    size = silverman(len(values), side.values.shape[1]) if width is None else width
    return np.asarray(np.exp(-0.5 * cdist(values, values, "sqeuclidean") / size**2), dtype=np.float64)


def thinned(x: Side, y: Side, most: int, rng: np.random.Generator) -> tuple[Side, Side, tuple[str, ...]]:
    """Return at most ``most`` of the samples, drawn at random, and a note if there were more."""
    if len(x.values) <= most:
        return x, y, ()
    places = rng.choice(len(x.values), most, replace=False)
    return x.taken(places), y.taken(places), (f"computed on {most} of {len(x.values)} samples",)
