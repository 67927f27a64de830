"""The surgeon: units leave in the order in which those that stay can best make up for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isthmus.relevance.estimator import Calibration, Relevance
from isthmus.relevance.readers import find_readers
from isthmus.relevance.statistics import Statistics

EXAMPLES = 512


@dataclass(frozen=True)
class Surgeon:
    """Error of what reads a site, solved anew without a unit (Hassibi and Stork 1993, equation 5, for blocks).

    What each unit adds to the error when it leaves after those before it (`isthmus.relevance.readers`); and when the
    cost of leaving is measured, what reads the site is solved anew too, as it will be after the cut. Sites that many
    read (streams, layers) have the relevance of ``fisher``.
    """

    name: str = "surgeon"
    slug: str | None = None
    needs: frozenset[str] = frozenset({"gradients"})
    trains: bool = False

    def scores(self, calibration: Calibration, statistics: Statistics) -> Relevance:
        """Return the error that each unit adds, rising in the order of leaving, shape ``(units,)`` a site."""
        # The probe's network, for it is its modules that are closed when the cost is measured.
        network = calibration.probe.network
        readers = find_readers(network, calibration.sites, calibration.examples[:EXAMPLES])
        found = {name: 0.5 * value for name, value in statistics.squares.items()}
        for number, (name, reader) in enumerate(readers.items()):
            order, errors = reader.order()
            scores = np.zeros(reader.site.units)
            # As errors are differences of sums they may fall a little; the order must be that of leaving.
            scores[order] = np.maximum.accumulate(errors)
            stays = np.setdiff1d(np.arange(reader.site.units), order)
            scores[stays] = (scores.max() + 1e-12) * 2
            scores[order] += scores.max() * 1e-9 * np.arange(len(order))
            found[name] = scores
            calibration.progress("surgeon", number + 1, len(readers))
        return Relevance(self.name, found, readers=readers)
