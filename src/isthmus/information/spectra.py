"""Spectra: how evenly representations spread over the directions that they could use.

All of these look at the eigenvalues of one matrix of second moments only, so that a rotation changes none of them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from isthmus.errors import BadInput
from isthmus.information.checking import Floats, representations


def spectrum(values: npt.ArrayLike, *, centred: bool = False) -> Floats:
    """Return the eigenvalues of the second moments, largest first, as shares of their sum; all zero if that is zero.

    Parameters
    ----------
    values : array_like, shape ``(samples, width)``
    centred : bool
        Whether the mean is taken away first.

    Returns
    -------
    ndarray, shape ``(min(samples, width),)``

    Raises
    ------
    BadInput
        If they are no finite matrix.
    """
    matrix = representations(values, least=1)
    if centred:
        matrix = matrix - matrix.mean(0)
    scale = np.abs(matrix).max()
    if scale == 0:
        return np.zeros(min(matrix.shape))
    # Second moments of values far from one would leave the range of floating point.
    matrix = matrix / scale
    moments = matrix @ matrix.T if len(matrix) < matrix.shape[1] else matrix.T @ matrix
    found = np.linalg.eigvalsh(moments)[::-1].clip(min=0)
    shares: Floats = found / found.sum()
    return shares


def entropy_of(shares: Floats, order: float = 1.0) -> float:
    """Return the Rényi entropy of shares, in nats; of order 1 it is Shannon's.

    Raises
    ------
    BadInput
        If the order is not above zero.
    """
    if not order > 0:
        raise BadInput(f"order {order:g}: give a number above 0; 1 is Shannon's entropy")
    held = shares[shares > 0]
    if not len(held):
        return 0.0
    if order == 1:
        return float(-(held * np.log(held)).sum())
    if np.isinf(order):
        return float(-np.log(held.max()))
    return float(np.log((held**order).sum()) / (1 - order))


def gram_entropy(gram: Floats, *, order: float = 1.0) -> float:
    """Return the entropy of the eigenvalues of a Gram matrix over their sum, in nats, shape ``(samples, samples)``."""
    found = np.linalg.eigvalsh(gram / np.trace(gram)).clip(min=0)
    return entropy_of(found / found.sum(), order)


def matrix_entropy(values: npt.ArrayLike, *, order: float = 1.0) -> float:
    """Return the matrix-based entropy of representations, in nats.

    It is the Rényi entropy of the eigenvalues of ``Z Z'`` over their sum: 0 where all samples lie on one line through
    the origin, the logarithm of the smaller of samples and width where they spread evenly (Giraldo et al. 2014; as used
    on layers by Skean et al. 2025, arXiv 2502.02013, equation 1).

    Parameters
    ----------
    values : array_like, shape ``(samples, width)``
        Texts, or the tokens of one text (then it is the *prompt entropy*).
    order : float
        Above 0; 1 for von Neumann's entropy.

    Raises
    ------
    BadInput
        If they are no finite matrix, or the order is not above 0.
    """
    return entropy_of(spectrum(values), order)


def effective_rank(values: npt.ArrayLike) -> float:
    """Return the effective rank: the exponential of the entropy of singular values (Roy and Vetterli 2007).

    Raises
    ------
    BadInput
        If they are no finite matrix.
    """
    singular = np.sqrt(spectrum(values))
    if singular.sum() == 0:
        return 0.0
    return float(np.exp(entropy_of(singular / singular.sum())))


def anisotropy(values: npt.ArrayLike) -> float:
    """Return the share of the variance along the first principal direction, from ``1 / width`` to 1.

    Razzhigaev et al. 2024 (arXiv 2311.05928, equation 1): the largest squared singular value of what is centred, over
    the sum of all.

    Raises
    ------
    BadInput
        If they are no finite matrix of two samples or more.
    """
    matrix = representations(values)
    return float(spectrum(matrix, centred=True)[0])


def coding_rate(values: npt.ArrayLike, *, precision: float = 0.5) -> float:
    """Return the coding rate of representations, in nats a sample.

    ``1/2 logdet(I + width / (samples precision^2) Z' Z)``: about what it takes to say a sample up to an error of
    ``precision`` (Ma et al. 2007; Yu et al. 2023, arXiv 2311.13110, equation 4).

    Parameters
    ----------
    values : array_like, shape ``(samples, width)``
    precision : float
        Above 0, in the units of the values. Values are taken as they are: bring them to a common norm to compare.

    Raises
    ------
    BadInput
        If they are no finite matrix, or the precision is not above 0.
    """
    if not precision > 0:
        raise BadInput(f"precision {precision:g}: give a number above 0")
    matrix = representations(values, least=1)
    samples, width = matrix.shape
    moments = matrix @ matrix.T if samples < width else matrix.T @ matrix
    _, logarithm = np.linalg.slogdet(np.eye(len(moments)) + width / (samples * precision**2) * moments)
    return float(logarithm / 2)
