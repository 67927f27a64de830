"""Activation-weighted magnitude: how much a unit sends into the weights that read it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from isthmus.relevance.estimator import Calibration, Relevance
from isthmus.relevance.probe import gated_sites
from isthmus.relevance.statistics import Statistics
from isthmus.relevance.weights import slice_energy


@dataclass(frozen=True)
class Activation:
    """Root mean square of a unit's activation times the norm of the weights that read it.

    The structured form of Wanda (Sun et al. 2024, equation 1): ``|W| * ||X||`` summed over what a unit owns.
    """

    name: str = "activation"
    slug: str | None = None
    needs: frozenset[str] = frozenset({"activations"})
    trains: bool = False

    def scores(self, calibration: Calibration, statistics: Statistics) -> Relevance:
        """Return ``sqrt(mean(x**2) * sum(w**2))``, shape ``(units,)`` a site."""
        parameters = dict(calibration.network.model.named_parameters())
        scores = {}
        for site in gated_sites(calibration.sites):
            # Dimension 1 of a weight is its input: these are the weights that read the unit.
            reading = torch.zeros(site.units, dtype=torch.float64)
            for part in site.slices:
                if part.dim == 1 and "embeddings." not in part.parameter:
                    reading += slice_energy(parameters[part.parameter], part, site.units)
            weight = reading.numpy() if float(reading.sum()) > 0 else np.ones(site.units)
            scores[site.name] = np.sqrt(statistics.activations[site.name] * weight)
        return Relevance(self.name, scores)
