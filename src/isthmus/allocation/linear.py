"""Rates as linear forms: once the outer sites are set, everything else enters every rate linearly.

A rate is a sum of products of kept counts. Enough sites are made outer, and their settings enumerated, that each
product holds at most one other free site, and the presence of a layer only next to a site of that same layer.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from isthmus.allocation.problem import Floats, Menu, Problem
from isthmus.cost.rates import Term, presence


@dataclass(frozen=True)
class Linear:
    """Limited rates for every combination of the outer sites' settings.

    With O combinations, C limited currencies, L free layers and S inner sites, a rate is
    ``constant[o, c] + sum_l present[o, c, l] * y_l + sum_s slope[o, c, s] * count_s``. Every figure is divided by the
    currency's limit, so that a limit is 1.

    Parameters
    ----------
    outer, inner : tuple of str
        Names of the sites.
    counts : ndarray, shape ``(O, outer)``
        Kept units of the outer sites.
    lost : ndarray, shape ``(O,)``
        Nats that the outer settings lose.
    constant : ndarray, shape ``(O, C)``
    present : ndarray, shape ``(O, C, L)``
    slope : ndarray, shape ``(O, C, S)``
    """

    outer: tuple[str, ...]
    inner: tuple[str, ...]
    counts: Floats
    lost: Floats
    constant: Floats
    present: Floats
    slope: Floats


def outer_sites(problem: Problem, menu: Menu) -> tuple[str, ...]:
    """Choose the sites whose settings are enumerated: a small cover of all products of free sites.

    Raises
    ------
    ValueError
        If a rate multiplies what belongs to two layers, which no enumeration here takes apart.
    """
    conflicts = [
        pair for currency in problem.limits for term in problem.rates[currency].terms for pair in _conflicts(term, menu)
    ]
    chosen: list[str] = []
    while conflicts:
        times = Counter(name for pair in conflicts for name in set(pair))
        candidates = [name for name in times if menu.choices[name].site.layer is None or menu.layers is None]
        if not candidates:
            raise ValueError(f"rates multiply sites of layers, {' and '.join(sorted(times))}; they cannot be allocated")
        best = min(candidates, key=lambda name: (-times[name], len(menu.choices[name].settings), name))
        chosen.append(best)
        conflicts = [pair for pair in conflicts if best not in pair]
    return tuple(name for name in menu.choices if name in chosen)


def _conflicts(term: Term, menu: Menu) -> list[tuple[str, ...]]:
    """Return the groups of which at least one site must be outer for the term to become linear."""
    free = [name for name in term.factors if name in menu.choices]
    pairs: list[tuple[str, ...]] = list(itertools.combinations(free, 2))
    layers = _layers(term, menu)
    if len(layers) > 1:
        raise ValueError(f"a rate multiplies the presences of two layers: {term.factors}")
    # A site comes and goes with its own layer; the presence of another one is a second variable.
    pairs += [(name,) for name in free for layer in layers if menu.choices[name].site.layer != layer]
    return pairs


def _layers(term: Term, menu: Menu) -> list[int]:
    units = menu.layers.units if menu.layers is not None else 0
    return [layer for layer in range(units) if presence(layer) in term.factors]


def combinations(menu: Menu, outer: Sequence[str]) -> Floats:
    """Return every combination of the outer sites' settings, shape ``(O, outer)``."""
    settings = [menu.choices[name].settings for name in outer]
    rows = list(itertools.product(*settings))
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(outer))


def count_combinations(menu: Menu, outer: Sequence[str]) -> int:
    """Return how many combinations of the outer sites' settings there are."""
    return math.prod(len(menu.choices[name].settings) for name in outer)


def linearise(problem: Problem, menu: Menu, outer: tuple[str, ...], counts: Floats) -> Linear:
    """Write the limited rates as linear forms.

    Parameters
    ----------
    outer : tuple of str
        As `outer_sites` returns them.
    counts : ndarray, shape ``(O, outer)``
        Kept units of the outer sites, a combination a row.

    Raises
    ------
    ValueError
        If a rate names a site or layer that the network does not have.
    """
    inner = tuple(name for name in menu.choices if name not in outer)
    layers = menu.layers.units if menu.layers is not None else 0
    rows, currencies = len(counts), len(problem.limits)
    constant = np.zeros((rows, currencies))
    present = np.zeros((rows, currencies, layers))
    slope = np.zeros((rows, currencies, len(inner)))
    whole = {site.name: float(site.units) for site in problem.sites}
    for c, (currency, limit) in enumerate(problem.limits.items()):
        for term in problem.rates[currency].terms:
            value = np.full(rows, term.coefficient / limit)
            inside: str | None = None
            for factor in term.factors:
                if factor in outer:
                    value = value * counts[:, outer.index(factor)]
                elif factor in menu.choices:
                    inside = factor
                elif factor in whole:
                    value = value * whole[factor]
                elif not factor.startswith("layer:"):
                    raise ValueError(f"the rate of {currency} counts {factor!r}, which is no site")
            layer = _layers(term, menu)
            if inside is not None:
                slope[:, c, inner.index(inside)] += value
            elif layer:
                present[:, c, layer[0]] += value
            else:
                constant[:, c] += value
    lost = np.zeros(rows)
    for column, name in enumerate(outer):
        lost += menu.choices[name].lost[counts[:, column].astype(np.int64)]
    return Linear(outer, inner, counts, lost, constant, present, slope)


def lower_bound(linear: Linear, menu: Menu, prices: Floats, weight: float = 1.0) -> Floats:
    """Return the least of ``weight * distortion + prices . (rates - 1)`` for every outer combination, shape ``(O,)``.

    For prices that are not negative this bounds the distortion of whatever keeps the limits from below (Lagrange). With
    ``weight`` 0 and the price of one currency 1 it is the smallest rate of that currency, less 1.

    Parameters
    ----------
    prices : ndarray, shape ``(C,)``
        Nats per limit's worth of each currency.
    """
    total = weight * linear.lost + (linear.constant - 1.0) @ prices
    keeping = linear.present.transpose(0, 2, 1) @ prices
    slopes = linear.slope.transpose(0, 2, 1) @ prices
    for column, name in enumerate(linear.inner):
        choice = menu.choices[name]
        costs = weight * choice.lost[choice.settings] + slopes[:, column, None] * choice.settings
        layer = menu.layer_of(name)
        if layer is None:
            total = total + costs.min(axis=1)
        else:
            keeping[:, layer] += costs.min(axis=1)
    if menu.layers is None:
        return total
    removal = weight * menu.removal
    gain = keeping - removal
    fixed = sorted(set(menu.layers.fixed))
    free = np.sort(np.delete(gain, fixed, axis=1), axis=1)
    needed = max(0, max(menu.layers.minimum, 0) - len(fixed))
    must = gain[:, fixed].sum(axis=1) + free[:, :needed].sum(axis=1)
    result: Floats = total + removal.sum() + must + np.minimum(free[:, needed:], 0.0).sum(axis=1)
    return result
