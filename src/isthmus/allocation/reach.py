"""How small a network can become, and the words that refuse a budget below that."""

from __future__ import annotations

import math

import numpy as np

from isthmus.allocation.linear import linearise, outer_sites
from isthmus.allocation.problem import Floats, Menu, Problem, Selection, distortion_of, menu_of, rates_of
from isthmus.errors import UnreachableBudget


def smallest_rates(problem: Problem) -> dict[str, float]:
    """Return what the network costs with every site at its fewest units, in every currency that has a rate.

    All of these are reached at once: where layers differ, those stay that cost least, as shares of the limits.
    """
    menu = menu_of(problem)
    return rates_of(problem, menu, _smallest(problem, menu))


def refusal(problem: Problem, menu: Menu) -> UnreachableBudget:
    """Return the error that names what was asked and the nearest budget that can be met."""
    smallest = rates_of(problem, menu, _smallest(problem, menu))
    whole = Selection(
        {name: choice.site.units for name, choice in menu.choices.items()}, (True,) * len(menu.removal), 0.0
    )
    original = {**rates_of(problem, menu, whole), **problem.original}
    asked = ",".join(_share(currency, limit, original[currency]) for currency, limit in problem.limits.items())
    nearest = ", ".join(
        f"{_share(currency, smallest[currency], original[currency], up=True)} ({_amount(currency, smallest[currency])})"
        for currency in problem.limits
    )
    advice = ",".join(
        _share(currency, max(limit, smallest[currency]), original[currency], up=limit < smallest[currency])
        for currency, limit in problem.limits.items()
    )
    ask = "that" if len(problem.limits) == 1 else advice
    return UnreachableBudget(
        f"budget {asked}: the smallest this network can become is {nearest}; ask for at least {ask}"
    )


def _smallest(problem: Problem, menu: Menu) -> Selection:
    counts = {name: choice.least for name, choice in menu.choices.items()}
    present = np.ones(len(menu.removal), dtype=bool)
    if menu.layers is not None:
        cost = _layer_costs(problem, menu, counts)
        fixed = set(menu.layers.fixed)
        order = sorted(range(len(cost)), key=lambda layer: (layer not in fixed, cost[layer], layer))
        present[order[max(menu.layers.minimum, len(fixed)) :]] = False
    chosen = tuple(bool(stays) for stays in present)
    return Selection(counts, chosen, distortion_of(menu, counts, chosen))


def _layer_costs(problem: Problem, menu: Menu, counts: dict[str, int]) -> Floats:
    """Return what each layer costs at the given counts, in limits' worths summed over the currencies."""
    outer = outer_sites(problem, menu)
    linear = linearise(problem, menu, outer, np.array([[counts[name] for name in outer]], dtype=np.float64))
    cost: Floats = linear.present[0].sum(axis=0)
    for column, name in enumerate(linear.inner):
        layer = menu.layer_of(name)
        if layer is not None:
            cost[layer] += linear.slope[0, :, column].sum() * counts[name]
    return cost


def _share(currency: str, amount: float, original: float, *, up: bool = False) -> str:
    """Write an amount as a share that the budget's grammar reads; rounded up where less could not be met."""
    percent = 100 * amount / original
    if up:
        # Three digits are enough to paste; the smallest figures keep more, rounded up all the same.
        step = 10.0 ** (math.floor(math.log10(percent)) - 2) if percent > 0 else 1.0
        percent = min(100.0, math.ceil(percent / step * (1 - 1e-12)) * step)
    return f"{currency}={percent:.10g}%"


def _amount(currency: str, amount: float) -> str:
    return f"{amount:.4g} ms" if currency == "latency" else f"{amount:,.0f}"
