"""Cauchy-Schwarz divergence between the joint distribution and the product of its marginals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from isthmus.errors import BadInput
from isthmus.information.kernels import gram, thinned
from isthmus.information.result import CC, CD, DD, Estimate, Kinds, Side
from isthmus.information.training.cauchy_schwarz import gram_information


@dataclass(frozen=True)
class CauchySchwarz:
    """``log(J M / C^2)`` of Gram matrices K and Q (Principe 2010, equation 2.87; Yu et al. 2024, proposition 2).

    ``J = mean(K * Q)``, ``M = mean(K) mean(Q)``, ``C = mean_i(mean_j K_ij mean_j Q_ij)``. Zero for independent sides.
    It is another divergence than Kullback's: use it to compare, not as a number of nats that pass.

    Parameters
    ----------
    width : float or None
        Of the kernel on standardised samples; None: Silverman's.
    most : int
        Samples that are used at the most: the cost grows with their square.
    """

    name: ClassVar[str] = "cauchy-schwarz"
    about: ClassVar[str] = "Cauchy-Schwarz divergence of kernel densities; not Shannon's, to compare only"
    paper: ClassVar[str] = "Yu et al. 2024, arXiv 2404.17951"
    slug: ClassVar[str | None] = "cs-ib"
    kinds: ClassVar[tuple[Kinds, ...]] = (CC, CD, DD)

    width: float | None = None
    most: int = 2000

    def __post_init__(self) -> None:
        if self.width is not None and not self.width > 0:
            raise BadInput(f"kernel width {self.width!r}; give a positive number")

    def estimate(self, x: Side, y: Side, rng: np.random.Generator) -> Estimate:
        """Return the estimate."""
        x, y, notes = thinned(x, y, self.most, rng)
        left, right = (torch.from_numpy(gram(side, self.width)) for side in (x, y))
        return Estimate(float(gram_information(left, right)), warnings=notes)
