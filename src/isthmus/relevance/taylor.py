"""Taylor relevance: the first-order change of the loss when a unit is closed."""

from __future__ import annotations

from dataclasses import dataclass

from isthmus.relevance.estimator import Calibration, Relevance
from isthmus.relevance.statistics import Statistics


@dataclass(frozen=True)
class Taylor:
    """``mean |dL/dgate|`` at an open gate (Molchanov et al. 2019; Michel et al. 2019, equation 2)."""

    name: str = "taylor"
    slug: str | None = None
    needs: frozenset[str] = frozenset({"gradients"})
    trains: bool = False

    def scores(self, calibration: Calibration, statistics: Statistics) -> Relevance:
        """Return the mean absolute derivative by each gate, shape ``(units,)`` a site."""
        return Relevance(self.name, dict(statistics.gradients))
