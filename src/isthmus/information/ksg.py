"""Kraskov, Stoegbauer and Grassberger: from distances to nearest neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from scipy.special import psi

from isthmus.errors import BadInput
from isthmus.information.marginals import gaussianised, standardised
from isthmus.information.neighbours import counts_within, kth_distances
from isthmus.information.result import CC, Estimate, Kinds, Side

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Ksg:
    """``psi(k) + psi(n) - <psi(nx + 1) + psi(ny + 1)>`` (Kraskov et al. 2004, equation 8).

    Parameters
    ----------
    neighbours : int
        ``k``: less has less bias and more variance.
    ranks : bool
        Coordinates are first given normal marginals; otherwise they are only standardised.

    Raises
    ------
    BadInput
        If there is no neighbour.
    """

    name: ClassVar[str] = "ksg"
    about: ClassVar[str] = "k nearest neighbours; few dimensions, at most a few nats"
    paper: ClassVar[str] = "Kraskov et al. 2004, arXiv cond-mat/0305641"
    slug: ClassVar[str | None] = None
    kinds: ClassVar[tuple[Kinds, ...]] = (CC,)

    neighbours: int = 3
    ranks: bool = True

    def __post_init__(self) -> None:
        if self.neighbours < 1:
            raise BadInput(f"{self.neighbours} neighbours; give at least one")

    def estimate(self, x: Side, y: Side, rng: np.random.Generator) -> Estimate:
        """Return the estimate."""
        prepare = gaussianised if self.ranks else standardised
        parts = ksg_parts(prepare(x.values), prepare(y.values), self.neighbours)
        return Estimate(float(parts.mean()), parts, ceiling=float(psi(len(parts))))


def ksg_parts(x: Floats, y: Floats, neighbours: int) -> Floats:
    """Return what each sample adds, shape ``(samples,)``; their mean is the estimate.

    Raises
    ------
    BadInput
        If there are no more samples than neighbours.
    """
    if len(x) <= neighbours:
        raise BadInput(f"{len(x)} samples; {neighbours} neighbours need more")
    radii = kth_distances(np.hstack([x, y]), neighbours)
    counts = [psi(counts_within(side, radii) + 1) for side in (x, y)]
    return np.asarray(psi(neighbours) + psi(len(x)) - counts[0] - counts[1], dtype=np.float64)
