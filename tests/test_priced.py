"""Allocation by prices, where nearly all counts multiply with others: against brute force and the exact solver."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from isthmus.allocation import solver
from isthmus.allocation.exchange import spend
from isthmus.allocation.priced import priced_selection
from isthmus.allocation.problem import Problem, Selection, menu_of, rates_of
from isthmus.allocation.products import products_of
from isthmus.allocation.reach import smallest_rates
from isthmus.allocation.solver import allocate, best_selection
from isthmus.cost.predict import kept_counts
from isthmus.cost.rates import Rate, Term
from isthmus.errors import UnreachableBudget
from isthmus.sites.site import Site


def chain(sites: int, most: int, seed: int, *, currencies: int = 1, square: bool = False) -> Problem:
    """Return a chain of convolutions: every site multiplies with the next, the first stays as a stream."""
    draw = np.random.default_rng(seed)
    found = tuple(Site(f"conv{i}", "channels", int(draw.integers(2, most + 1))) for i in range(sites))
    rates = {}
    for currency in ("macs", "params")[:currencies]:
        terms = [Term(float(draw.integers(0, 5))), Term(float(draw.integers(1, 9)), ("conv0",))]
        terms += [Term(float(draw.integers(1, 20)), (one.name, other.name)) for one, other in itertools.pairwise(found)]
        terms += [Term(float(draw.integers(0, 6)), ("conv0", site.name)) for site in found[2:]]
        if square:
            terms.append(Term(3.0, ("conv1", "conv1")))
        rates[currency] = Rate(currency, tuple(terms))
    relevance = {site.name: draw.lognormal(0, 1, site.units) * draw.uniform(0.2, 3) for site in found}
    original = {name: rate(kept_counts(found)) for name, rate in rates.items()}
    return Problem(found, relevance, rates, {}, original)


def limited(problem: Problem, *shares: float) -> Problem:
    """Limit each currency at a share of the way from the smallest to the whole network."""
    low = smallest_rates(replace(problem, limits=dict(problem.original)))
    limits = {
        name: low[name] + share * (problem.original[name] - low[name])
        for name, share in zip(problem.rates, shares, strict=True)
    }
    return replace(problem, limits=limits)


def brute_force(problem: Problem) -> float:
    best = np.inf
    for counts in itertools.product(*(range(1, site.units + 1) for site in problem.sites)):
        kept = {site.name: float(count) for site, count in zip(problem.sites, counts, strict=True)}
        if all(problem.rates[name](kept) <= limit * (1 + 1e-12) for name, limit in problem.limits.items()):
            nats = sum(
                np.sort(values)[: len(values) - int(kept[name])].sum() for name, values in problem.relevance.items()
            )
            best = min(best, float(nats))
    return best


def check(problem: Problem, selection: Selection) -> None:
    """Assert that the limits hold and that no single unit more would fit."""
    menu = menu_of(problem)
    assert all(
        rates_of(problem, menu, selection)[name] <= limit * (1 + 1e-12) for name, limit in problem.limits.items()
    )
    for site in problem.sites:
        count = selection.counts[site.name]
        assert 1 <= count <= site.units
        if count < site.units:
            more = replace(selection, counts={**selection.counts, site.name: count + 1})
            rates = rates_of(problem, menu, more)
            assert any(rates[name] > limit * (1 + 1e-13) for name, limit in problem.limits.items())


def solved(problem: Problem) -> Selection:
    selection = priced_selection(problem, menu_of(problem))
    assert selection is not None
    return selection


def test_hardly_more_is_lost_than_by_brute_force() -> None:
    excess = []
    for seed in range(12):
        several = 1 + seed % 2
        problem = chain(4, 6, seed, currencies=several, square=seed % 3 == 0)
        problem = limited(problem, *[(0.2, 0.4, 0.6, 0.8)[seed % 4], 0.5][:several])
        selection = solved(problem)
        check(problem, selection)
        least = brute_force(problem)
        assert selection.distortion >= least - 1e-9
        excess.append(selection.distortion / least - 1)
    assert np.mean(excess) < 0.01
    assert max(excess) < 0.1
    assert np.mean(np.array(excess) < 1e-9) > 0.6


def test_it_is_nearly_as_good_as_the_exact_solver() -> None:
    """Within a few percent where a unit is a large part of the budget."""
    excess = []
    for seed in range(3):
        problem = limited(chain(6, 8, seed), 0.4)
        exact = best_selection(problem, menu_of(problem))
        assert exact is not None
        excess.append(solved(problem).distortion / exact.distortion - 1)
    assert max(excess) < 0.05
    assert min(excess) < 1e-3


def test_a_long_chain_is_allocated_within_its_budget_and_the_same_each_time() -> None:
    problem = limited(chain(20, 40, 0, currencies=2), 0.4, 0.5)
    menu = menu_of(problem)
    assert not solver.enumerable(problem, menu)
    allocation = allocate(problem)
    assert allocate(problem) == allocation
    spent = [allocation.rates[name] / limit for name, limit in problem.limits.items()]
    assert 0.99 < max(spent) <= 1 + 1e-12
    selection = Selection(
        {site.name: len(allocation.kept.get(site.name, range(site.units))) for site in problem.sites}, (), 0.0
    )
    check(problem, selection)
    # Spending unit by unit from the smallest network on is what a simple solver would do.
    products = products_of(problem, menu)
    simple = products.distortion(spend(products, products.least))
    assert sum(allocation.distortion.values()) < simple


def test_what_cannot_be_met_is_refused_with_the_nearest_that_can() -> None:
    problem = chain(20, 40, 1)
    low = smallest_rates(replace(problem, limits=dict(problem.original)))["macs"]
    with pytest.raises(UnreachableBudget, match=r"ask for at least that"):
        allocate(replace(problem, limits={"macs": 0.9 * low}))
    assert all(len(units) == 1 for units in allocate(replace(problem, limits={"macs": low})).kept.values())
    assert allocate(replace(problem, limits=dict(problem.original))).kept == {}


def test_changes_are_those_of_the_rates() -> None:
    problem = limited(chain(6, 9, 3, currencies=2, square=True), 0.5, 0.5)
    products = products_of(problem, menu_of(problem))
    counts = np.minimum(products.units, 2)
    steps = np.minimum(products.units - counts, 3)
    changes = products.changes(counts, steps)
    for site in range(len(counts)):
        more = counts.copy()
        more[site] += steps[site]
        kept = dict(zip(products.names, more.astype(float), strict=True))
        expected = [rate(kept) / problem.limits[name] for name, rate in problem.rates.items()]
        assert products.rates(more) == pytest.approx(expected, rel=1e-12)
        assert products.rates(counts) + changes[:, site] == pytest.approx(expected, rel=1e-12)


def test_layers_that_may_go_are_for_the_exact_solver() -> None:
    problem = limited(chain(3, 4, 0), 0.5)
    layers = Site("layers", "layers", 2)
    with_layers = replace(
        problem, sites=(*problem.sites, layers), relevance={**problem.relevance, "layers": np.ones(2)}
    )
    with pytest.raises(ValueError, match="layers may go"):
        products_of(with_layers, menu_of(with_layers))
