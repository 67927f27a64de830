"""The solver against brute force, and what must hold of every allocation."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.allocation.floor import smallest
from isthmus.allocation.problem import Problem
from isthmus.allocation.reach import smallest_rates
from isthmus.allocation.solver import allocate
from isthmus.budget import parse_budget
from isthmus.cost.latency_table import FEATURES, feature_terms
from isthmus.cost.predict import kept_counts, parameter_rate
from isthmus.cost.rates import Rate, Term, presence
from isthmus.errors import BadInput, UnreachableBudget
from isthmus.sites.site import Site, Slice


def tiny_problem(draw_int, *, shared_heads=False, two_widths=False, currencies=1):
    """Build a random problem of two layers, small enough for brute force; limits are set by the caller."""
    sites = [Site("vocabulary", "vocabulary", draw_int(2, 6), minimum=1, fixed=(1,)), Site("layers", "layers", 2)]
    sites.append(Site("width", "width", draw_int(1, 4)))
    if two_widths:
        sites.append(Site("embedding_width", "width", draw_int(1, 3)))
    if shared_heads:
        sites.append(Site("heads", "heads", draw_int(1, 3)))
    else:
        sites += [Site(f"layers.{i}.heads", "heads", draw_int(1, 3), layer=i) for i in range(2)]
    sites += [Site(f"layers.{i}.neurons", "neurons", draw_int(1, 4), layer=i, minimum=draw_int(1, 2)) for i in range(2)]
    sites = [site if site.minimum <= site.units else replace(site, minimum=1) for site in sites]
    entry = "embedding_width" if two_widths else "width"
    rates = {}
    for currency in ("params", "latency")[:currencies]:
        size = lambda: float(draw_int(1, 9))  # noqa: E731
        terms = [Term(size()), Term(size(), ("vocabulary", entry)), Term(size(), ("width",))]
        if two_widths:
            terms.append(Term(size(), (entry, "width")))
        for i in range(2):
            here = presence(i)
            heads = "heads" if shared_heads else f"layers.{i}.heads"
            terms += [Term(size(), (here,)), Term(size(), (here, heads, "width")), Term(size(), (here, heads))]
            terms += [Term(size(), (here, "width")), Term(size(), (f"layers.{i}.neurons", here, "width"))]
        rates[currency] = Rate(currency, tuple(terms))
    relevance = {site.name: np.array([draw_int(0, 60) / 20 for _ in range(site.units)]) for site in sites}
    return Problem(tuple(sites), relevance, rates, {}, {name: rate(kept_counts(sites)) for name, rate in rates.items()})


def with_limits(problem, shares):
    """Limit each currency at a share of the way from the smallest to the whole network."""
    low = smallest_rates(replace(problem, limits=dict(problem.original)))
    limits = {
        currency: low[currency] + share * (problem.original[currency] - low[currency])
        for currency, share in zip(problem.rates, shares, strict=True)
    }
    return replace(problem, limits=limits)


def brute_force(problem):
    """Return the least distortion over all counts and all choices of layers, or infinity."""
    free = [site for site in problem.sites if site.kind != "layers"]
    grids = [np.arange(max(site.minimum, len(site.fixed), 1), site.units + 1) for site in free]
    mesh = dict(zip([site.name for site in free], np.meshgrid(*grids, indexing="ij", sparse=True), strict=True))
    best = math.inf
    for present in itertools.product((0.0, 1.0), repeat=2):
        if sum(present) < 1:
            continue
        counts = {**mesh, presence(0): present[0], presence(1): present[1]}
        total = float(sum(v for v, stays in zip(problem.relevance["layers"], present, strict=True) if not stays))
        for site in free:
            if site.layer is not None and not present[site.layer]:
                continue
            values = problem.relevance[site.name]
            goes = np.sort(np.delete(values, site.fixed))
            lost = np.array([goes[: site.units - k].sum() for k in range(site.units + 1)])
            total = total + lost[mesh[site.name]]
        keeps = np.ones((1,) * len(free), dtype=bool)
        for currency, limit in problem.limits.items():
            keeps = keeps & (problem.rates[currency](counts) <= limit * (1 + 1e-12))
        total, keeps = np.broadcast_arrays(total, keeps)
        best = min(best, float(np.min(total, where=keeps, initial=math.inf)))
    return best


def check(problem, allocation):
    """Assert what must hold of every allocation."""
    sites = {site.name: site for site in problem.sites}
    counts = kept_counts(problem.sites, allocation.kept)
    for currency, rate in problem.rates.items():
        assert allocation.rates[currency] == pytest.approx(rate(counts), rel=1e-12)
    for currency, limit in problem.limits.items():
        assert rate_within(allocation.rates[currency], limit)
    assert set(allocation.kept) == set(allocation.distortion)
    layers = set(allocation.kept.get("layers", range(100)))
    for name, units in allocation.kept.items():
        site, values = sites[name], np.maximum(problem.relevance[name], 0)
        assert list(units) == sorted(set(units))
        assert max(1, site.minimum) <= len(units) < site.units
        assert set(site.fixed) <= set(units)
        assert site.layer is None or site.layer in layers
        gone = sorted(set(range(site.units)) - set(units))
        assert allocation.distortion[name] == pytest.approx(values[gone].sum(), abs=1e-9)
        ordinary = set(units) - set(site.fixed)
        if site.kind != "layers" and ordinary:
            assert max(values[gone]) <= min(values[list(ordinary)])


def rate_within(amount, limit):
    return amount <= limit * (1 + 1e-12)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(data=st.data(), shared=st.booleans(), two=st.booleans(), currencies=st.integers(1, 2))
def test_equals_brute_force(data, shared, two, currencies):
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    problem = tiny_problem(draw, shared_heads=shared, two_widths=two, currencies=currencies)
    problem = with_limits(problem, [draw(0, 20) / 20 for _ in range(currencies)])
    expected = brute_force(problem)
    if expected == math.inf:
        # Two currencies whose smallest networks keep different layers need not be reachable together.
        with pytest.raises(UnreachableBudget):
            allocate(problem)
        return
    allocation = allocate(problem)
    check(problem, allocation)
    assert sum(allocation.distortion.values()) == pytest.approx(expected, rel=2e-4, abs=1e-6)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), levels=st.integers(2, 3), share=st.floats(0, 1))
def test_few_levels_keep_the_limits(seed, levels, share):
    generator = np.random.default_rng(seed)
    problem = tiny_problem(lambda low, high: int(generator.integers(low, high + 1)))
    kinds = ("vocabulary", "width", "heads", "neurons")
    problem = with_limits(replace(problem, levels=dict.fromkeys(kinds, levels)), [share])
    allocation = allocate(problem)
    check(problem, allocation)
    assert sum(allocation.distortion.values()) >= brute_force(problem) - 1e-6


@pytest.fixture(scope="module")
def minilm():
    """Sites and rates of a network of MiniLM's shape, without its weights."""
    import torch
    import transformers

    from isthmus.network import Network
    from isthmus.sites.discovery import discover

    config = transformers.BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    with torch.device("meta"):
        model = transformers.BertModel(config)
    rows = Slice("embeddings.word_embeddings.weight", 0)
    vocabulary = Site("vocabulary", "vocabulary", 30522, (rows,), minimum=1200, fixed=tuple(range(1200)))
    found = discover(Network("minilm", model, None))
    sites = (vocabulary, *(replace(site, minimum=96) if site.kind == "width" else site for site in found))
    milliseconds = dict(zip(FEATURES, (1.0, 1e-3, 0.2, 1e-3, 0.02, 1e-4, 1e-4, 2e-6), strict=True))
    terms = feature_terms(sites)
    latency = [Term(milliseconds[name] * term.coefficient, term.factors) for name in FEATURES for term in terms[name]]
    return sites, {"params": parameter_rate(model, sites), "latency": Rate("latency", tuple(latency))}


def minilm_problem(minilm, shares, seed=0, **options):
    sites, rates = minilm
    generator = np.random.default_rng(seed)
    totals = {"vocabulary": 0.6, "width": 8.0, "layers": 2.0, "heads": 0.5, "neurons": 0.5, "feature": 0.1}
    relevance = {}
    for site in sites:
        values = generator.lognormal(0, 2.0 if site.kind in ("width", "vocabulary") else 1.2, site.units)
        relevance[site.name] = values / values.sum() * totals[site.kind]
    original = {name: rate(kept_counts(sites)) for name, rate in rates.items()}
    limits = {currency: share * original[currency] for currency, share in shares.items()}
    return Problem(sites, relevance, rates, limits, original, **options)


@pytest.fixture(scope="module")
def minilm_allocation(minilm):
    """What is allocated at some shares, solved once."""
    return cache(lambda **shares: allocate(minilm_problem(minilm, shares)))


@pytest.mark.parametrize(
    "shares",
    [
        {"params": 0.75},
        {"params": 0.5},
        {"params": 0.25},
        {"params": 0.1},
        {"latency": 0.5},
        {"params": 0.5, "latency": 0.5},
        {"params": 0.25, "latency": 0.4},
    ],
    ids=str,
)
def test_minilm_spends_the_budget(minilm, minilm_allocation, shares):
    problem = minilm_problem(minilm, shares)
    allocation = minilm_allocation(**shares)
    check(problem, allocation)
    spent = {currency: allocation.rates[currency] / limit for currency, limit in problem.limits.items()}
    assert max(spent.values()) > 0.99
    if len(shares) == 1:
        assert max(spent.values()) > 0.999


def test_more_budget_loses_less(minilm_allocation):
    losses = [sum(minilm_allocation(params=share).distortion.values()) for share in (0.1, 0.25, 0.5, 0.75)]
    assert losses == sorted(losses, reverse=True)


def test_same_problem_same_allocation(minilm, minilm_allocation):
    shares = {"params": 0.5, "latency": 0.5}
    assert allocate(minilm_problem(minilm, shares)) == minilm_allocation(**shares)


def test_whole_budget_keeps_everything(minilm):
    allocation = allocate(minilm_problem(minilm, {"params": 1.0}))
    assert allocation.kept == {}
    assert allocation.distortion == {}


def test_frozen_kinds_and_sites_without_relevance_stay_whole(minilm):
    problem = minilm_problem(minilm, {"params": 0.5}, frozen=frozenset({"width", "layers"}))
    relevance = {name: values for name, values in problem.relevance.items() if name != "layers.2.neurons"}
    allocation = allocate(replace(problem, relevance=relevance))
    assert not {"width", "layers", "layers.2.neurons"} & set(allocation.kept)
    assert allocation.rates["params"] <= problem.limits["params"]


def test_ties_keep_the_lower_index_and_negative_relevance_counts_as_none():
    site = Site("neurons", "neurons", 6)
    rate = Rate("params", (Term(1.0, ("neurons",)),))
    relevance = {"neurons": np.array([1.0, 1.0, -0.5, 1.0, -0.1, 1.0])}
    allocation = allocate(Problem((site,), relevance, {"params": rate}, {"params": 2.0}))
    assert allocation.kept == {"neurons": (0, 1)}
    allocation = allocate(Problem((site,), relevance, {"params": rate}, {"params": 5.0}))
    assert allocation.kept == {"neurons": (0, 1, 3, 4, 5)}
    assert allocation.distortion == {"neurons": 0.0}


def test_what_lasts_counts_more_in_the_choice_and_is_reported_as_it_is():
    sites = (Site("neurons", "neurons", 4), Site("width", "width", 4))
    rate = Rate("params", (Term(1.0, ("neurons",)), Term(1.0, ("width",))))
    relevance = {"neurons": np.array([4.0, 3.0, 2.0, 1.0]), "width": np.array([2.0, 1.5, 1.0, 0.5])}
    limits = {"params": 5.0}
    plain = allocate(Problem(sites, relevance, {"params": rate}, limits))
    assert sum(plain.distortion.values()) == pytest.approx(0.5 + 1.0 + 1.0)  # the three cheapest of all
    lasting = allocate(Problem(sites, relevance, {"params": rate}, limits, lasting={"width": 10.0}))
    assert lasting.kept == {"neurons": (0,)}
    pressed = allocate(Problem(sites, relevance, {"params": rate}, limits, lasting={"neurons": 10.0}))
    assert pressed.kept == {"width": (0,)}
    assert pressed.distortion["width"] == pytest.approx(0.5 + 1.0 + 1.5)
    light = allocate(Problem(sites, relevance, {"params": rate}, limits, lasting={"neurons": 0.1}))
    assert light.distortion["neurons"] == pytest.approx(6.0)


def test_fixed_layers_and_fewest_layers():
    layers = Site("layers", "layers", 4, minimum=2, fixed=(3,))
    rate = Rate("params", tuple(Term(10.0, (presence(i),)) for i in range(4)))
    relevance = {"layers": np.array([0.1, 0.5, 0.2, 0.0])}
    allocation = allocate(Problem((layers,), relevance, {"params": rate}, {"params": 25.0}))
    assert allocation.kept == {"layers": (1, 3)}
    assert allocation.distortion["layers"] == pytest.approx(0.3)
    with pytest.raises(UnreachableBudget):
        allocate(Problem((layers,), relevance, {"params": rate}, {"params": 15.0}))


@pytest.mark.parametrize("shares", [{"params": 0.005}, {"latency": 0.02}, {"params": 0.005, "latency": 0.5}], ids=str)
def test_refusal_names_a_budget_that_can_be_met(minilm, shares):
    problem = minilm_problem(minilm, shares)
    with pytest.raises(UnreachableBudget) as caught:
        allocate(problem)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("budget " + ",".join(f"{name}={share * 100:g}%" for name, share in shares.items()) + ":")
    for currency in shares:
        assert re.search(rf"smallest this network can become is .*{currency}=[\d.]+% \([\d,.]+( ms)?\)", message)
    advised = message.rpartition("at least ")[2]
    text = ",".join(re.findall(r"\w+=[\d.]+%", message.partition(" is ")[2] if advised == "that" else advised))
    limits = parse_budget(text).amounts(problem.original)
    assert set(limits) == set(shares)
    asked = replace(problem, limits=limits)
    check(asked, allocate(asked))


def test_relevance_that_is_not_finite_is_refused():
    site = Site("neurons", "neurons", 2)
    rate = Rate("params", (Term(1.0, ("neurons",)),))
    with pytest.raises(BadInput, match="neurons is not finite"):
        Problem((site,), {"neurons": np.array([1.0, math.nan])}, {"params": rate}, {"params": 1.0})


def counted(curve):
    calls = []

    def measure(share):
        calls.append(share)
        return curve(share)

    return measure, calls


@pytest.mark.parametrize("floor", [0.9, 0.95, 0.98, 0.99])
@pytest.mark.parametrize("strength", [0.002, 0.005, 0.02])
@pytest.mark.parametrize("power", [1.0, 1.6, 2.5])
def test_floor_on_smooth_curves(floor, strength, power):
    measure, calls = counted(lambda share: 1 - strength * (share**-power - 1))
    found = smallest(measure, floor)
    truth = max(0.02, (1 + (1 - floor) / strength) ** (-1 / power))
    assert found.value >= floor
    assert truth - 1e-4 <= found.share <= truth * 1.12
    assert len(calls) == len(set(calls)) == len(found.trail) <= 5


@pytest.mark.parametrize("seed", range(20))
def test_floor_on_noisy_curves(seed):
    generator = np.random.default_rng(seed)
    measure, calls = counted(lambda share: 1 - 0.005 * (share**-1.5 - 1) + float(generator.normal(0, 0.002)))
    found = smallest(measure, 0.97)
    assert found.value >= 0.97
    assert found.share == min(trial.share for trial in found.trail if trial.holds)
    assert 0.2 <= found.share <= 0.45  # the curve itself crosses at 0.27
    assert [trial.share for trial in found.trail] == calls


def test_floor_on_a_step_and_at_the_lowest_share():
    assert smallest(lambda share: 1.0 if share >= 0.6 else 0.2, 0.98).share <= 0.75
    found = smallest(lambda share: 1.001, 0.98, low=0.05)
    assert found.share == pytest.approx(0.05, rel=0.5)


def test_floor_that_nothing_holds_is_refused():
    with pytest.raises(UnreachableBudget, match=r"floor 99%: .* ask for --keep 90\.\d%"):
        smallest(lambda share: 0.7 + 0.2061 * share, 0.99)
    with pytest.raises(UnreachableBudget):
        smallest(lambda share: math.nan, 0.9)
