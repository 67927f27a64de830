"""Exchange: units of one site for those of others, while the limits hold and less is lost each time."""

from __future__ import annotations

import numpy as np

from isthmus.allocation.problem import SLACK
from isthmus.allocation.products import Integers, Products

PASSES = 4
"""Passes over all sites at most."""
PARTS = 64
"""Sites of more units than this give way in steps of several at first."""


def shed(products: Products, counts: Integers, apart: int | None = None) -> Integers:
    """Take units away, those of least relevance per what they save first, until the limits hold.

    Parameters
    ----------
    counts : ndarray, shape ``(V,)``
    apart : int, optional
        A site that is left as it is.

    Returns
    -------
    ndarray, shape ``(V,)``
        Above a limit where only the site apart could still give way.
    """
    counts = counts.copy()
    coarse = np.maximum(products.units // PARTS, 1)
    while (over := products.rates(counts) > 1 + SLACK).any():
        steps = np.minimum(coarse, counts - products.least)
        if apart is not None:
            steps[apart] = 0
        saved = -products.changes(counts, -steps)[over].sum(axis=0)
        helps = (steps > 0) & (saved > 0)
        if not helps.any():
            break
        lost = products.losses(counts - steps) - products.losses(counts)
        best = int(np.argmin(np.where(helps, lost / np.where(helps, saved, 1.0), np.inf)))
        counts[best] -= steps[best]
    return counts


def spend(products: Products, counts: Integers, apart: int | None = None) -> Integers:
    """Give units back, those of most relevance per cost first, until no single one fits.

    Parameters
    ----------
    counts : ndarray, shape ``(V,)``
        Keep the limits.
    apart : int, optional
        A site that is left as it is.

    Returns
    -------
    ndarray, shape ``(V,)``
    """
    counts = counts.copy()
    coarse = np.maximum(products.units // PARTS, 1)
    while True:
        steps = np.minimum(coarse, products.units - counts)
        if apart is not None:
            steps[apart] = 0
        changes = products.changes(counts, steps)
        fits = (steps > 0) & (products.rates(counts)[:, None] + changes <= 1 + SLACK).all(axis=0)
        if fits.any():
            gain = products.losses(counts) - products.losses(counts + steps)
            cost = changes.sum(axis=0)
            worth = np.where(cost > 0, gain / np.where(cost > 0, cost, 1.0), np.inf)
            best = int(np.argmax(np.where(fits, worth, -np.inf)))
            counts[best] += steps[best]
        elif (coarse > 1).any():
            coarse = np.maximum(coarse // 2, 1)
        else:
            return counts


def exchange(products: Products, counts: Integers) -> Integers:
    """Move one site at a time, let the others give way or take what it leaves, and keep what loses less.

    Parameters
    ----------
    counts : ndarray, shape ``(V,)``
        Keep the limits.

    Returns
    -------
    ndarray, shape ``(V,)``
        Keep the limits and lose no more.
    """
    best, least = counts, products.distortion(counts)
    for _ in range(PASSES):
        before = least
        for site in range(len(counts)):
            for tried in _moves(products, best, site):
                lost = products.distortion(tried)
                if lost < least * (1 - 1e-9) and (products.rates(tried) <= 1 + SLACK).all():
                    best, least = tried, lost
        if least >= before:
            break
    return best


def _moves(products: Products, counts: Integers, site: int) -> list[Integers]:
    """Return what becomes of the counts where one site has fewer or more units, by powers of two."""
    found = []
    step = 1
    while step < products.units[site]:
        for count in (counts[site] - step, counts[site] + step):
            if products.least[site] <= count <= products.units[site]:
                moved = counts.copy()
                moved[site] = count
                if count > counts[site]:
                    moved = shed(products, moved, apart=site)
                found.append(spend(products, spend(products, moved, apart=site)))
        step *= 2
    return found
