"""The log-density ratio of a Gaussian, from canonical correlations that stand out of the noise."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import norm

Floats = npt.NDArray[np.float64]


class GaussianRatio:
    """``log q(x, y) / (q(x) q(y))`` of a Gaussian: ``x' A y - x' B x / 2 - y' C y / 2 + c``.

    Columns after those that the Gaussian was fitted to are not looked at.
    """

    def __init__(self, cross: Floats, left: Floats, right: Floats, constant: float) -> None:
        self.cross, self.left, self.right = (torch.from_numpy(part).float() for part in (cross, left, right))
        self.constant = constant

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the ratios of all pairs, shape ``(len(x), len(y))``."""
        x, y = x[:, : len(self.left)], y[:, : len(self.right)]
        own = ((x @ self.left) * x).sum(1, keepdim=True)
        other = ((y @ self.right) * y).sum(1)
        return x @ self.cross @ y.T - 0.5 * own - 0.5 * other + self.constant


def canonical_ratio(x: Floats, y: Floats) -> GaussianRatio:
    """Return the ratio of the Gaussian with the moments of x and y, each canonical correlation shrunk.

    A sample correlation below ``sqrt(p/n) + sqrt(q/n)`` is taken for noise; above, it is shrunk as the singular value
    of a matrix with noise of that size (Gavish and Donoho 2017, equation 7).
    """
    samples, dims, others = len(x), x.shape[1], y.shape[1]
    left, right = (_whitening(side) for side in (x, y))
    cross = left.T @ (x - x.mean(0)).T @ (y - y.mean(0)) @ right / samples
    first, found, second = np.linalg.svd(cross, full_matrices=False)
    found = np.minimum(found, 1 - 1e-6)
    room = np.maximum((found**2 - (dims + others) / samples) ** 2 - 4 * dims * others / samples**2, 0)
    noise = np.sqrt(dims / samples) + np.sqrt(others / samples)
    rho = np.where(found > noise, np.sqrt(room) / np.maximum(found, 1e-12), 0)
    one, two = left @ first, right @ second.T
    inner, outer = rho / (1 - rho**2), rho**2 / (1 - rho**2)
    return GaussianRatio(
        (one * inner) @ two.T, (one * outer) @ one.T, (two * outer) @ two.T, float(-0.5 * np.log1p(-(rho**2)).sum())
    )


def departs(values: Floats) -> bool:
    """Return whether samples with standard normal marginals are plainly not jointly Gaussian.

    Hermite polynomials of any two coordinates have known mean products under a Gaussian: ``rho**2`` for two of degree 2
    (of variance 1), 0 for unlike degrees. The largest of the standardised differences is held against the normal
    quantile at 1 in 1000 over their number; their mean square against 1.

    Parameters
    ----------
    values : ndarray of float64, shape ``(samples, dims)``
    """
    samples, dims = values.shape
    if dims < 2:
        return False
    one = (values - values.mean(0)) / values.std(0)
    two, three = (one**2 - 1) / np.sqrt(2), (one**3 - 3 * one) / np.sqrt(6)
    rho = one.T @ one / samples
    pairs = np.triu_indices(dims, 1)
    unlike = ~np.eye(dims, dtype=bool)
    scores = [
        _scores(two, two, rho**2)[pairs],
        _scores(one, two, np.zeros_like(rho))[unlike],
        _scores(one, three, np.zeros_like(rho))[unlike],
    ]
    every = np.concatenate(scores)
    limit = norm.isf(0.0005 / len(every))
    return bool(np.abs(every).max() > limit or np.square(every).mean() > 1 + 6 / np.sqrt(len(every)))


def _scores(left: Floats, right: Floats, expected: Floats) -> Floats:
    samples = len(left)
    mean = left.T @ right / samples
    variance = (left**2).T @ (right**2) / samples - mean**2
    return np.asarray((mean - expected) * np.sqrt(samples / np.maximum(variance, 1e-9)), dtype=np.float64)


def _whitening(side: Floats) -> Floats:
    spreads, directions = np.linalg.eigh(np.cov(side, rowvar=False).reshape(side.shape[1], side.shape[1]))
    seen = spreads > 1e-9 * max(float(spreads.max()), 1e-300)
    return np.asarray(directions * np.where(seen, 1 / np.sqrt(np.where(seen, spreads, 1)), 0), dtype=np.float64)
