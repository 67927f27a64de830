"""Distances to nearest neighbours and counts within them, in the maximum norm; what estimators by these share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial import cKDTree

from isthmus.errors import BadInput
from isthmus.information.marginals import gaussianised, standardised

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

TREE = 12
"""Dimensions up to which a tree is quicker than all pairs."""
CHUNK = 1 << 22
"""Distances that are held at once."""


@dataclass(frozen=True)
class NearestNeighbours:
    """An estimator by the distances to nearest neighbours.

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

    neighbours: int = 3
    ranks: bool = True

    def __post_init__(self) -> None:
        if self.neighbours < 1:
            raise BadInput(f"{self.neighbours} neighbours; give at least one")

    def prepared(self, values: Floats) -> Floats:
        """Return continuous values, shape ``(samples, dims)``, as distances are taken on them."""
        return gaussianised(values) if self.ranks else standardised(values)


def kth_distances(points: Floats, neighbours: int) -> Floats:
    """Return the distance of each point to its ``neighbours``-th nearest other one, shape ``(samples,)``."""
    if points.shape[1] <= TREE:
        found, _ = cKDTree(points).query(points, k=[neighbours + 1], p=np.inf)
        return np.asarray(found[:, 0], dtype=np.float64)
    every = torch.from_numpy(np.ascontiguousarray(points))
    rows = max(1, CHUNK // len(points))
    parts = [
        torch.cdist(part, every, p=torch.inf).kthvalue(neighbours + 1, dim=1).values
        for part in torch.split(every, rows)
    ]
    return np.asarray(torch.cat(parts).numpy(), dtype=np.float64)


def counts_within(points: Floats, radii: Floats) -> Counts:
    """Return how many other points are nearer to each than its radius, strictly, shape ``(samples,)``."""
    # A neighbour at the radius itself is not nearer, whatever sums are rounded to.
    inside = radii * (1 - 1e-12)
    if points.shape[1] == 1:
        own = points[:, 0]
        ordered = np.sort(own)
        over = np.searchsorted(ordered, own + inside, side="right")
        under = np.searchsorted(ordered, own - inside, side="left")
        return np.asarray(np.maximum(over - under - 1, 0), dtype=np.int64)
    if points.shape[1] <= TREE:
        found = cKDTree(points).query_ball_point(points, inside, p=np.inf, return_length=True)
        return np.maximum(np.asarray(found, dtype=np.int64) - 1, 0)
    every, limits = torch.from_numpy(np.ascontiguousarray(points)), torch.from_numpy(inside)
    rows = max(1, CHUNK // len(points))
    parts = [
        (torch.cdist(part, every, p=torch.inf) <= limit[:, None]).sum(1)
        for part, limit in zip(torch.split(every, rows), torch.split(limits, rows), strict=True)
    ]
    found = torch.cat(parts).numpy().astype(np.int64)
    return np.asarray(np.maximum(found - 1, 0), dtype=np.int64)
