"""Invariance: how much of what tells samples apart is left when each is disturbed a little."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from isthmus.errors import BadInput
from isthmus.information.checking import Floats, two_views
from isthmus.information.spectra import entropy_of, gram_entropy

TEMPERATURE = 0.1


def info_nce(first: npt.ArrayLike, second: npt.ArrayLike, *, temperature: float = TEMPERATURE) -> float:
    """Return a lower bound on the mutual information of two views of the same samples, in nats.

    ``log(samples)`` less the cross-entropy of finding each sample's other view among all, by the cosine over a
    temperature (van den Oord et al. 2018, equation 5). At most ``log(samples)``, and below 0 where cosines mislead.

    Parameters
    ----------
    first, second : array_like, shape ``(samples, width)``
        In the same order.
    temperature : float
        Above 0.

    Raises
    ------
    BadInput
        If a view is no finite matrix, they are not of one shape, or the temperature is not above 0.
    """
    if not temperature > 0:
        raise BadInput(f"temperature {temperature:g}: give a number above 0")
    one, other = (_unit(view) for view in two_views(first, second))
    scores = one @ other.T / temperature
    highest = scores.max(1)
    partition = highest + np.log(np.exp(scores - highest[:, None]).sum(1))
    return float(np.log(len(one)) - (partition - scores.diagonal()).mean())


def dime(first: npt.ArrayLike, second: npt.ArrayLike, *, draws: int = 8, seed: int = 0) -> float:
    """Return the difference of matrix-based entropies of views that do not belong together and views that do, in nats.

    DiME (Skean et al. 2023, arXiv 2301.08164, equation 5): the joint entropy of two views is that of the elementwise
    product of their Gram matrices, here of a Gaussian kernel as wide as the median distance; the mean over permutations
    of the second view, less that of the views as they belong. Above 0 where the views share what tells samples apart.

    Parameters
    ----------
    first, second : array_like, shape ``(samples, width)``
        In the same order.
    draws : int
        Permutations.
    seed : int

    Raises
    ------
    BadInput
        If a view is no finite matrix, they are not of one shape, or there is no draw.
    """
    if draws < 1:
        raise BadInput(f"draws {draws}: give 1 or more")
    one, other = (_gram(view) for view in two_views(first, second))
    together = gram_entropy(one * other)
    generator = np.random.default_rng(seed)
    apart = []
    for _ in range(draws):
        order = generator.permutation(len(other))
        apart.append(gram_entropy(one * other[np.ix_(order, order)]))
    return float(np.mean(apart) - together)


def lidar(views: npt.ArrayLike, *, damping: float = 1e-4) -> float:
    """Return the effective rank of what tells samples apart, measured against how views of one sample differ.

    LiDAR (Thilak et al. 2023, arXiv 2312.04000, section 4): scatter between samples, whitened by the scatter within the
    views of a sample; the exponential of the entropy of its eigenvalues over their sum.

    Parameters
    ----------
    views : array_like, shape ``(samples, views, width)``
    damping : float
        Added to the diagonal of the scatter within, as a share of its mean.

    Raises
    ------
    BadInput
        If there are fewer than two samples or two views, or a value is not finite.
    """
    stack = np.asarray(views, dtype=np.float64)
    if stack.ndim != 3 or min(stack.shape[:2]) < 2:
        raise BadInput(f"views: of shape {stack.shape}; give (samples, views, width), two or more of both")
    if not np.isfinite(stack).all():
        raise BadInput("views: a value is not a finite number; take it out")
    samples, count, width = stack.shape
    means = stack.mean(1)
    spread = (stack - means[:, None]).reshape(-1, width)
    within = spread.T @ spread / (samples * count)
    centred = means - means.mean(0)
    between = centred.T @ centred / (samples - 1)
    if np.trace(between) == 0:
        return 0.0
    size = np.trace(within) / width or np.trace(between) / width
    values, vectors = np.linalg.eigh(within + damping * size * np.eye(width))
    whitening = vectors / np.sqrt(values)
    found = np.linalg.eigvalsh(whitening.T @ between @ whitening).clip(min=0)
    return float(np.exp(entropy_of(found / found.sum())))


def _unit(view: Floats) -> Floats:
    norms = np.linalg.norm(view, axis=1, keepdims=True)
    found: Floats = view / np.where(norms > 0, norms, 1.0)
    return found


def _gram(view: Floats) -> Floats:
    squares = (view**2).sum(1)
    distances = (squares[:, None] + squares[None] - 2 * view @ view.T).clip(min=0)
    typical = float(np.median(distances[~np.eye(len(view), dtype=bool)]))
    found: Floats = np.exp(-distances / (typical or 1.0))
    return found
