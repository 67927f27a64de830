"""Kernel matrix entropy: Renyi's entropy of the eigenvalues of Gram matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from isthmus.errors import BadInput
from isthmus.information.kernels import gram, thinned
from isthmus.information.result import CC, CD, DD, Estimate, Kinds, Side
from isthmus.information.spectra import gram_entropy


@dataclass(frozen=True)
class MatrixEntropy:
    """``S(A) + S(B) - S(A * B / tr)``, ``S(A) = log(tr A^a) / (1 - a)`` (Sanchez Giraldo et al. 2015, definition 2).

    A and B are Gram matrices of trace 1. No density is estimated, and the value is not Shannon's information: it
    depends on the width of the kernel, and is to be compared with others of the same width and samples.

    Parameters
    ----------
    alpha : float
        Order; near 1 Shannon's entropy of the eigenvalues.
    width : float
        Of the kernel on standardised samples.
    most : int
        Samples that are used at the most: the cost grows with their cube.
    """

    name: ClassVar[str] = "matrix-entropy"
    about: ClassVar[str] = "entropy of the eigenvalues of Gram matrices; not Shannon's, to compare only"
    paper: ClassVar[str] = "Sanchez Giraldo et al. 2015, arXiv 1211.2459"
    slug: ClassVar[str | None] = None
    kinds: ClassVar[tuple[Kinds, ...]] = (CC, CD, DD)

    alpha: float = 1.01
    width: float = 1.0
    most: int = 1000

    def __post_init__(self) -> None:
        if self.alpha <= 0 or self.alpha == 1 or self.width <= 0:
            raise BadInput(f"order {self.alpha}, width {self.width}; give a positive order other than 1, and width")

    def estimate(self, x: Side, y: Side, rng: np.random.Generator) -> Estimate:
        """Return the estimate."""
        x, y, notes = thinned(x, y, self.most, rng)
        left, right = gram(x, self.width), gram(y, self.width)
        nats = sum(gram_entropy(side, order=self.alpha) for side in (left, right))
        nats -= gram_entropy(left * right, order=self.alpha)
        return Estimate(nats, warnings=notes)
