"""Magnitude relevance: the size of a unit's weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isthmus.relevance.estimator import Calibration, Relevance
from isthmus.relevance.probe import gated_sites
from isthmus.relevance.statistics import Statistics
from isthmus.relevance.weights import unit_energy


@dataclass(frozen=True)
class Magnitude:
    """The L2 norm of all weights that leave with a unit (Li et al. 2017, "Pruning filters for efficient ConvNets")."""

    name: str = "magnitude"
    slug: str | None = None
    needs: frozenset[str] = frozenset()
    trains: bool = False

    def scores(self, calibration: Calibration, statistics: Statistics) -> Relevance:
        """Return ``sqrt(sum of squared weights)``, shape ``(units,)`` a site; layers score their whole norm."""
        parameters = dict(calibration.network.model.named_parameters())
        return Relevance(
            self.name,
            {site.name: np.sqrt(unit_energy(parameters, site)) for site in gated_sites(calibration.sites)},
        )
