"""Hessian-aware saliency with a price of what a unit costs: units of all sites leave in one order, round by round.

NViT (Yang et al. 2023, arXiv 2110.04869). A unit's saliency is the square of what its weights times their gradients sum
to (equation 7: the Hessian by the gradients' outer product), which is that of the loss by its gate; from it a part of
the latency that leaves with the unit is taken off (equation 9). In every round the least units of all sites close, so
many that the cost falls on a straight line to the budget, and the saliency of the others is estimated anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from isthmus.cost.rates import presence
from isthmus.progress import silent
from isthmus.relevance.estimator import Calibration, Relevance
from isthmus.relevance.probe import Probe, gated_sites
from isthmus.relevance.statistics import Scores, Statistics, gradients_at
from isthmus.sites import LAYERS, Site

ROUNDS = 8


@dataclass(frozen=True)
class HessianLatency:
    """Squared Taylor saliency, less a price of the latency (or what else the budget is in) that a unit costs.

    Parameters
    ----------
    price : float
        What all of the network's cost weighs beside the saliency of all its units; 0: saliency alone.
    rounds : int
    """

    name: str = "nvit"
    slug: str | None = "nvit-hessian-pruning"
    needs: frozenset[str] = frozenset()
    trains: bool = True
    price: float = 0.5
    rounds: int = ROUNDS

    def scores(self, calibration: Calibration, statistics: Statistics) -> Relevance:
        """Return the round in which a unit leaves, and within a round its saliency, shape ``(units,)`` a site.

        Units that stay to the end count as those of a round of their own. Layers do not take part: what each is worth
        is measured for all methods alike.
        """
        sites = tuple(site for site in gated_sites(calibration.sites) if site.name != LAYERS)
        probe = _smaller(calibration.probe)
        closed = {site.name: np.zeros(site.units, dtype=bool) for site in sites}
        found = {site.name: np.zeros(site.units) for site in sites}
        for number in range(self.rounds):
            _, squares = gradients_at(probe, sites, calibration.seed, silent, closed)
            saliency = self._priced(sites, squares, closed, calibration)
            share = (number + 1) / self.rounds
            for name, units in _leaving(sites, saliency, closed, calibration, share).items():
                found[name][units] = number + _ranks(saliency[name][units])
                closed[name][units] = True
            calibration.progress("saliency", number + 1, self.rounds)
        for site in sites:
            stays = ~closed[site.name]
            found[site.name][stays] = self.rounds + _ranks(saliency[site.name][stays])
        every = {site.name: found.get(site.name, np.ones(site.units)) for site in gated_sites(calibration.sites)}
        return Relevance(self.name, every)

    def _priced(
        self,
        sites: tuple[Site, ...],
        squares: Mapping[str, Scores],
        closed: Mapping[str, np.ndarray],
        calibration: Calibration,
    ) -> dict[str, Scores]:
        """Return saliency as a share of that of all open units, less the price of the share of the cost that leaves."""
        total = sum(float(squares[site.name][~closed[site.name]].sum()) for site in sites) or 1.0
        saved = _saved(sites, closed, calibration)
        return {site.name: squares[site.name] / total - self.price * saved[site.name] for site in sites}


def _smaller(probe: Probe) -> Probe:
    """Return half of a probe: saliency is estimated often."""
    return replace(probe, examples=probe.examples[::2], inputs=probe.inputs[::2], reference=probe.reference[::2])


def _counts(
    sites: tuple[Site, ...], closed: Mapping[str, np.ndarray], calibration: Calibration
) -> dict[str, torch.Tensor]:
    """Return how many units of every site are open, as scalars that costs can be differentiated by."""
    counts = {site.name: torch.tensor(float(site.units)) for site in calibration.sites}
    counts.update({presence(site.layer): torch.ones(()) for site in calibration.sites if site.layer is not None})
    for site in sites:
        counts[site.name] = torch.tensor(float((~closed[site.name]).sum()), requires_grad=True)
    return counts


def _saved(sites: tuple[Site, ...], closed: Mapping[str, np.ndarray], calibration: Calibration) -> dict[str, float]:
    """Return the share of the cost that leaves with one unit of each site, the most of all currencies."""
    found = dict.fromkeys((site.name for site in sites), 0.0)
    for currency in calibration.limits:
        counts = _counts(sites, closed, calibration)
        cost = calibration.rates[currency](counts) / calibration.original[currency]
        if not (isinstance(cost, torch.Tensor) and cost.requires_grad):
            continue
        slopes = torch.autograd.grad(cost, [counts[site.name] for site in sites], allow_unused=True)
        for site, slope in zip(sites, slopes, strict=True):
            found[site.name] = max(found[site.name], 0.0 if slope is None else float(slope))
    return found


def _leaving(
    sites: tuple[Site, ...],
    saliency: Mapping[str, Scores],
    closed: Mapping[str, np.ndarray],
    calibration: Calibration,
    share: float,
) -> dict[str, np.ndarray]:
    """Return the fewest least salient units without which the cost is on its way, a share of it, to the limits."""
    rows = []
    for site in sites:
        free = np.flatnonzero(~closed[site.name])
        free = np.setdiff1d(free, np.asarray(site.fixed, dtype=int))
        order = free[np.argsort(saliency[site.name][free], kind="stable")]
        spare = max(0, int((~closed[site.name]).sum()) - site.minimum)
        rows += [(float(saliency[site.name][unit]), site.name, int(unit)) for unit in order[:spare]]
    rows.sort()

    def without(count: int) -> dict[str, np.ndarray]:
        gone = {name: shut.copy() for name, shut in closed.items()}
        for _, name, unit in rows[:count]:
            gone[name][unit] = True
        return gone

    def enough(count: int) -> bool:
        counts = _counts(sites, without(count), calibration)
        return all(
            float(calibration.rates[currency](counts)) / calibration.original[currency]
            <= 1 + (limit / calibration.original[currency] - 1) * share
            for currency, limit in calibration.limits.items()
        )

    low, high = 0, len(rows)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    gone = without(low)
    return {name: np.flatnonzero(gone[name] & ~closed[name]) for name in gone}


def _ranks(values: Scores) -> Scores:
    """Return ranks from 0 to less than 1, the least first."""
    ranks = np.empty(len(values))
    ranks[np.argsort(values, kind="stable")] = np.arange(len(values)) / max(len(values), 1)
    return ranks
