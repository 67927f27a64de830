"""Ross: nearest neighbours, one side continuous, the other a label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from scipy.special import psi

from isthmus.errors import BadInput
from isthmus.information.neighbours import NearestNeighbours, counts_within, kth_distances
from isthmus.information.result import CD, Estimate, Kinds, Side

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Ross(NearestNeighbours):
    """``psi(n) - <psi(n of the label)> + psi(k) - <psi(m)>`` (Ross 2014, equation 2).

    ``m`` is the number of samples within the distance of the k-th nearest sample of the same label. Samples whose label
    is theirs alone say nothing and are left out.
    """

    name: ClassVar[str] = "ross"
    about: ClassVar[str] = "k nearest neighbours of a continuous side within each label; few dimensions"
    paper: ClassVar[str] = "Ross 2014, PLoS ONE 9(2)"
    slug: ClassVar[str | None] = None
    kinds: ClassVar[tuple[Kinds, ...]] = (CD,)

    def estimate(self, x: Side, y: Side, rng: np.random.Generator) -> Estimate:
        """Return the estimate."""
        parts = ross_parts(self.prepared(x.values), y.symbols, self.neighbours)
        return Estimate(float(parts.mean()), parts)


def ross_parts(x: Floats, labels: npt.NDArray[np.int64], neighbours: int) -> Floats:
    """Return what each sample adds, shape ``(samples with a label that others have too,)``.

    Raises
    ------
    BadInput
        If no label occurs twice.
    """
    _, labels, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    kept = sizes[labels] > 1
    if not kept.any():
        raise BadInput("no label occurs twice; the neighbours of a label need at least two samples")
    x, labels = x[kept], labels[kept]
    radii, used = np.zeros(len(x)), np.zeros(len(x))
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        count = min(neighbours, len(own) - 1)
        radii[own] = kth_distances(x[own], count)
        used[own] = count
    within = counts_within(x, radii) + 1
    return np.asarray(psi(len(x)) - psi(sizes[labels]) + psi(used) - psi(within), dtype=np.float64)
