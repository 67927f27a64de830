"""Limited rates as arrays of products of kept counts, quick to evaluate where hardly anything is linear.

In a network of convolutions what enters and what leaves a layer are two sites, each free, and a layer costs their
product: a chain of such products leaves too many sites outer (`isthmus.allocation.linear`) to enumerate their settings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isthmus.allocation.problem import Floats, Menu, Problem

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Factors:
    """Which terms hold which site, and how often it is a factor of each, all of shape ``(P,)``, by site."""

    site: Integers
    term: Integers
    power: Integers

    def of(self, site: int) -> tuple[tuple[int, Integers], ...]:
        """Return the terms of one site by how often it is a factor of them."""
        own = self.site == site
        return tuple((int(power), self.term[own & (self.power == power)]) for power in np.unique(self.power[own]))


@dataclass(frozen=True)
class Products:
    """The limited rates, each a sum over its terms of a coefficient times the kept counts of its factors.

    With V free sites, C limited currencies and T terms; every figure is divided by the currency's limit, so that a
    limit is 1.

    Parameters
    ----------
    names : tuple of str
        The free sites; no layer may go.
    least, units : ndarray, shape ``(V,)``
        How few and how many units of each may stay.
    lost : ndarray, shape ``(V, most units + 1)``
        Of each site the nats that are lost when k units stay; zero beyond all of its units.
    coefficient : ndarray, shape ``(T,)``
    currency : ndarray, shape ``(T,)``
        Which rate a term belongs to.
    factors : ndarray, shape ``(T, F)``
        The sites that a term multiplies, by number; V stands for none.
    held : Factors
        The same, by site.
    by_site : tuple
        The same of each site apart, as `Factors.of` returns them.
    """

    names: tuple[str, ...]
    least: Integers
    units: Integers
    lost: Floats
    coefficient: Floats
    currency: Integers
    factors: Integers
    held: Factors
    by_site: tuple[tuple[tuple[int, Integers], ...], ...]
    currencies: int

    def terms(self, counts: Integers) -> Floats:
        """Return the terms at these kept counts ``(V,)``, shape ``(T,)``."""
        values: Floats = self.coefficient * np.append(counts, 1).astype(np.float64)[self.factors].prod(axis=1)
        return values

    def rates(self, counts: Integers) -> Floats:
        """Return the rates at these kept counts, as shares of their limits, shape ``(C,)``."""
        return np.bincount(self.currency, self.terms(counts), minlength=self.currencies).astype(np.float64)

    def changes(self, counts: Integers, steps: Integers) -> Floats:
        """Return by how much the rates change where one site alone has ``steps[v]`` units more, shape ``(C, V)``."""
        held, many = self.held, len(self.names)
        ratio = (1 + steps / counts)[held.site] ** held.power
        moved = self.terms(counts)[held.term] * (ratio - 1)
        place = self.currency[held.term] * many + held.site
        found = np.bincount(place, moved, minlength=self.currencies * many).astype(np.float64)
        return found.reshape(self.currencies, many)

    def losses(self, counts: Integers) -> Floats:
        """Return the nats that each site loses at these kept counts, shape ``(V,)``."""
        found: Floats = self.lost[np.arange(len(counts)), counts]
        return found

    def distortion(self, counts: Integers) -> float:
        """Return the nats lost at these kept counts."""
        return float(self.losses(counts).sum())


def products_of(problem: Problem, menu: Menu) -> Products:
    """Write the limited rates as arrays.

    Raises
    ------
    ValueError
        If layers may go, or a rate names a site that the network does not have.
    """
    if menu.layers is not None:
        raise ValueError("layers may go: their presence is no count of units")
    names = tuple(menu.choices)
    number = {name: index for index, name in enumerate(names)}
    whole = {site.name: float(site.units) for site in problem.sites}
    rows: list[tuple[float, int, list[int]]] = []
    for currency, (name, limit) in enumerate(problem.limits.items()):
        for term in problem.rates[name].terms:
            value, free = term.coefficient / limit, []
            for factor in term.factors:
                if factor in number:
                    free.append(number[factor])
                elif factor in whole:
                    value *= whole[factor]
                elif not factor.startswith("layer:"):
                    raise ValueError(f"the rate of {name} counts {factor!r}, which is no site")
            rows.append((value, currency, free))
    most = max((len(free) for _, _, free in rows), default=0)
    factors = np.full((len(rows), max(most, 1)), len(names), dtype=np.int64)
    for row, (_, _, free) in enumerate(rows):
        factors[row, : len(free)] = free
    choices = tuple(menu.choices.values())
    lost = np.zeros((len(choices), max((choice.site.units for choice in choices), default=0) + 1))
    for row, choice in enumerate(choices):
        lost[row, : len(choice.lost)] = choice.lost
    held = _held(factors, len(names))
    return Products(
        names,
        np.array([choice.least for choice in choices], dtype=np.int64),
        np.array([choice.site.units for choice in choices], dtype=np.int64),
        lost,
        np.array([value for value, _, _ in rows]),
        np.array([currency for _, currency, _ in rows], dtype=np.int64),
        factors,
        held,
        tuple(held.of(site) for site in range(len(names))),
        len(problem.limits),
    )


def _held(factors: Integers, sites: int) -> Factors:
    power = np.stack([(factors == site).sum(axis=1) for site in range(sites)])
    site, term = np.nonzero(power)
    return Factors(site, term, power[site, term])
