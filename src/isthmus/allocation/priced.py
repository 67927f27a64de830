"""Allocation by prices: sites take turns, each with the count that is best at the prices and beside the others' counts.

At a price of every currency (nats a limit's worth), a site whose neighbours stand still has a best count, read off at
once. Sites take turns until none moves (coordinate descent on Lagrange's function); the prices are those at which the
limits just hold. From there single sites are moved, and the others give way (`isthmus.allocation.exchange`). Every
count may be chosen, not the settings of a menu only. The answer keeps the limits; that it is the best is not proved.
"""

from __future__ import annotations

import numpy as np

from isthmus.allocation.exchange import exchange, shed, spend
from isthmus.allocation.problem import SLACK, Floats, Menu, Problem, Selection
from isthmus.allocation.products import Integers, Products, products_of

SWEEPS = 50
"""Turns of all sites at most; a handful are enough, for no turn raises Lagrange's function."""
HALVINGS = 30
"""How often the bracket of a price is halved, in logarithms, from a width of up to twelve decades."""
ROUNDS = 3
"""How often the prices of several currencies are searched, each with the others as they are."""


def priced_selection(problem: Problem, menu: Menu) -> Selection | None:
    """Return a selection of little distortion that keeps the limits, or None where the smallest network does not.

    Parameters
    ----------
    menu : Menu
        Without layers that may go.
    """
    products = products_of(problem, menu)
    if (products.rates(products.least) > 1 + SLACK).any():
        return None
    kept = [spend(products, shed(products, counts)) for counts in _starts(products)]
    best = exchange(products, min(kept, key=products.distortion))
    counts = {name: int(count) for name, count in zip(products.names, best, strict=True)}
    return Selection(counts, (), products.distortion(best))


def _starts(products: Products) -> list[Integers]:
    """Return the counts on both sides of the prices at which the limits just hold; those above are to be shed."""
    prices = np.zeros(products.currencies)
    above, below = products.units, products.least
    for _ in range(ROUNDS if products.currencies > 1 else 1):
        for currency in range(products.currencies):
            prices, above, below = _search(products, prices, currency)
    return [below, above]


def _search(products: Products, prices: Floats, currency: int) -> tuple[Floats, Integers, Integers]:
    """Search the price of one currency at which its limit just holds, the other prices as they are.

    Returns
    -------
    tuple of ndarray
        The prices, and the counts just above and just below the limit.
    """

    def at(price: float, *starts: Integers) -> tuple[Floats, Integers]:
        tried = prices.copy()
        tried[currency] = price
        return tried, descend(products, tried, *starts, products.units, products.least)

    tried, above = at(0.0)
    if products.rates(above)[currency] <= 1 + SLACK:
        return tried, above, above
    # At the highest price all nats together are worth a thousandth of a millionth of the limit.
    high = 1e9 * max(float(products.lost[:, 0].sum()), 1e-9)
    low = high * 1e-15
    tried, below = at(high)
    found = tried
    for _ in range(HALVINGS):
        middle = float(np.sqrt(low * high))
        tried, counts = at(middle, above, below)
        if products.rates(counts)[currency] > 1 + SLACK:
            low, above = middle, counts
        else:
            high, below, found = middle, counts, tried
        if high <= low * (1 + 1e-6):
            break
    return found, above, below


def descend(products: Products, prices: Floats, *starts: Integers) -> Integers:
    """Return the counts of least ``distortion + prices . rates`` that sites reach in turns from any of the starts.

    Parameters
    ----------
    prices : ndarray, shape ``(C,)``
        Nats per limit's worth of each currency.
    starts : ndarray, shape ``(V,)``
        Kept counts.

    Returns
    -------
    ndarray, shape ``(V,)``
    """
    best: tuple[float, Integers] | None = None
    for start in starts:
        counts = _descended(products, prices, start)
        value = products.distortion(counts) + float(prices @ products.rates(counts))
        if best is None or value < best[0]:
            best = value, counts
    assert best is not None
    return best[1]


def _descended(products: Products, prices: Floats, start: Integers) -> Integers:
    counts = start.copy()
    for _ in range(SWEEPS):
        moved = False
        values = products.terms(counts) * prices[products.currency]
        for site, held in enumerate(products.by_site):
            # Falling, so that of equals the widest is the first.
            choices = np.arange(products.units[site], products.least[site] - 1, -1)
            ratio = choices / counts[site]
            cost = products.lost[site, choices]
            for power, terms in held:
                cost = cost + values[terms].sum() * ratio**power
            chosen = int(np.argmin(cost))
            if choices[chosen] != counts[site]:
                for power, terms in held:
                    values[terms] *= ratio[chosen] ** power
                counts[site] = choices[chosen]
                moved = True
        if not moved:
            break
    return counts
