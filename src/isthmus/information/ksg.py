"""Kraskov, Stoegbauer and Grassberger: from distances to nearest neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from scipy.special import psi

from isthmus.errors import BadInput
from isthmus.information.neighbours import NearestNeighbours, counts_within, kth_distances
from isthmus.information.result import CC, Estimate, Kinds, Side

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Ksg(NearestNeighbours):
    """``psi(k) + psi(n) - <psi(nx + 1) + psi(ny + 1)>`` (Kraskov et al. 2004, equation 8)."""

    name: ClassVar[str] = "ksg"
    about: ClassVar[str] = "k nearest neighbours; few dimensions, at most a few nats"
    paper: ClassVar[str] = "Kraskov et al. 2004, arXiv cond-mat/0305641"
    slug: ClassVar[str | None] = None
    kinds: ClassVar[tuple[Kinds, ...]] = (CC,)

    def estimate(self, x: Side, y: Side, rng: np.random.Generator) -> Estimate:
        """Return the estimate."""
        parts = ksg_parts(self.prepared(x.values), self.prepared(y.values), self.neighbours)
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
