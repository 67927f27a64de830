"""Random relevance: the baseline that any estimator must beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isthmus.relevance.estimator import Calibration, Relevance
from isthmus.relevance.probe import gated_sites
from isthmus.relevance.statistics import Statistics


@dataclass(frozen=True)
class Random:
    """Random order within each site; how much a site can lose is measured all the same."""

    name: str = "random"
    slug: str | None = None
    needs: frozenset[str] = frozenset()
    trains: bool = False

    def scores(self, calibration: Calibration, statistics: Statistics) -> Relevance:
        """Return uniform random scores in (0, 1), shape ``(units,)`` a site."""
        generator = np.random.default_rng(calibration.seed)
        sites = gated_sites(calibration.sites)
        return Relevance(self.name, {site.name: generator.uniform(0.5, 1, site.units) for site in sites})
