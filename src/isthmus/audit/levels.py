"""Levels: a score of a pair as probabilities of a few ordered levels, so that pairs can be audited as classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isthmus.audit.checks import Array, Integers
from isthmus.errors import BadInput


@dataclass(frozen=True)
class Levels:
    """A fitted proportional-odds model: ``P(level <= j) = sigmoid(cut_j - slope * (value - centre) / scale)``.

    Parameters
    ----------
    centre, scale, slope : float
    cuts : array (levels - 1,)
        Ascending.
    """

    centre: float
    scale: float
    slope: float
    cuts: Array

    def probabilities(self, values: Array) -> Array:
        """Return the probability of each level, shape (values, levels)."""
        from scipy.special import expit

        inner = expit(self.cuts[None] - self.slope * (values[:, None] - self.centre) / self.scale)
        ends = np.zeros((len(values), 1)), np.ones((len(values), 1))
        return np.asarray(np.diff(np.concatenate((ends[0], inner, ends[1]), axis=1), axis=1), dtype=np.float64)


def fit_levels(values: Array, levels: Integers, count: int) -> Levels:
    """Fit the proportional-odds model (McCullagh 1980) by maximum likelihood.

    Parameters
    ----------
    values : array (examples,)
        Such as cosines.
    levels : array (examples,)
        From 0 to ``count - 1``.
    count : int

    Raises
    ------
    BadInput
        If all values, or all levels, are the same.
    """
    from scipy import optimize

    scale = float(values.std())
    if scale == 0 or levels.min() == levels.max():
        raise BadInput("levels: all values or all levels are the same, so nothing can be fitted; give others")
    centre = float(values.mean())
    scaled = (values - centre) / scale
    # Cuts start at the shares of the levels, a level that nobody has getting half an example.
    shares = np.maximum(np.bincount(levels, minlength=count), 0.5)
    below = np.cumsum(shares)[:-1] / shares.sum()
    start_cuts = np.log(below / (1 - below))
    start = np.concatenate(([1.0, start_cuts[0]], np.log(np.diff(start_cuts))))
    rows = np.arange(len(values))

    def loss(flat: Array) -> float:
        model = Levels(0.0, 1.0, float(flat[0]), _cuts(flat))
        return -float(np.log(np.maximum(model.probabilities(scaled)[rows, levels], 1e-12)).mean())

    bounds = [(-50.0, 50.0), (-50.0, 50.0), *[(-8.0, 4.0)] * (count - 2)]
    found = optimize.minimize(loss, start, method="L-BFGS-B", bounds=bounds).x
    return Levels(centre, scale, float(found[0]), _cuts(found))


def _cuts(flat: Array) -> Array:
    return np.asarray(np.cumsum(np.concatenate((flat[1:2], np.exp(flat[2:])))), dtype=np.float64)
