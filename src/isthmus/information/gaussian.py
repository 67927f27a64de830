"""Gaussian closed form: what second moments alone say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from scipy.special import psi

from isthmus.errors import BadInput
from isthmus.information.marginals import gaussianised
from isthmus.information.result import CC, Estimate, Kinds, Side

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Gaussian:
    """``1/2 log(|Sx| |Sy| / |Sxy|)`` (Cover and Thomas 2006, equation 8.56), its bias at n samples taken off.

    Parameters
    ----------
    ranks : bool
        Each coordinate is first given a normal marginal: the closed form of a Gaussian copula (Ince et al. 2017).
    """

    name: ClassVar[str] = "gaussian"
    about: ClassVar[str] = "closed form of second moments, marginals made normal by ranks"
    paper: ClassVar[str] = "Ince et al. 2017, Human Brain Mapping 38"
    slug: ClassVar[str | None] = None
    kinds: ClassVar[tuple[Kinds, ...]] = (CC,)

    ranks: bool = True

    def estimate(self, x: Side, y: Side, rng: np.random.Generator) -> Estimate:
        """Return the estimate.

        Raises
        ------
        BadInput
            If there are not more samples than dimensions.
        """
        left, right = (gaussianised(side.values) if self.ranks else side.values for side in (x, y))
        nats, parts = gaussian_information(left, right)
        return Estimate(nats, parts - parts.mean() + nats)


def gaussian_information(x: Floats, y: Floats) -> tuple[float, Floats]:
    """Return the unbiased closed form in nats, and the log-density ratio of each sample, shape ``(samples,)``.

    Under a Gaussian ``log |S|`` of n samples is high by a sum of digammas (Misra et al. 2005, theorem 2.1).
    """
    samples, dims = len(x), (x.shape[1], y.shape[1])
    if samples <= sum(dims) + 2:
        raise BadInput(f"{samples} samples of {sum(dims)} dimensions; the closed form needs more samples than that")
    both = np.hstack([x, y])
    both = both - both.mean(0)
    cut = dims[0]
    terms, quadratics = [], []
    for part in (both[:, :cut], both[:, cut:], both):
        values, vectors = np.linalg.eigh(part.T @ part / (samples - 1))
        values = np.maximum(values, 1e-12 * max(values.max(), 1e-300))
        quadratics.append((np.square(part @ vectors) / values).sum(1))
        size = part.shape[1]
        bias = psi((samples - 1 - np.arange(size)) / 2).sum() + size * np.log(2 / (samples - 1))
        terms.append(np.log(values).sum() - bias)
    nats = 0.5 * (terms[0] + terms[1] - terms[2])
    return float(nats), nats + 0.5 * (quadratics[0] + quadratics[1] - quadratics[2])
