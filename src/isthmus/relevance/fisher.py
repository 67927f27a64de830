"""Fisher relevance: the second-order change of the divergence when a unit is closed."""

from __future__ import annotations

from dataclasses import dataclass

from isthmus.relevance.estimator import Calibration, Relevance
from isthmus.relevance.statistics import Statistics


@dataclass(frozen=True)
class Fisher:
    """``1/2 mean (dL/dgate)**2`` (LeCun et al. 1989; Kwon et al. 2022, equation 6): nats, to second order."""

    name: str = "fisher"
    slug: str | None = None
    needs: frozenset[str] = frozenset({"gradients"})
    trains: bool = False

    def scores(self, calibration: Calibration, statistics: Statistics) -> Relevance:
        """Return half the diagonal of the Fisher information of the gates, shape ``(units,)`` a site."""
        return Relevance(self.name, {name: 0.5 * value for name, value in statistics.squares.items()})
